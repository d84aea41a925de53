"""Privacy settings: what a person lets others see and ask. Not in the spec, see docs/status.md.

`homeserver.users.privacy` keeps them; the features that show something ask it.
"""

from __future__ import annotations

import msgspec

from homeserver.api.routes import Routes
from homeserver.authenticate import Requester
from homeserver.database import Transaction
from homeserver.errors import invalid_param
from homeserver.feature import Feature, JsonObject
from homeserver.federation.identifiers import UserID
from homeserver.resources import Resources
from homeserver.users.privacy import Privacy, read_privacy, set_privacy

routes = Routes()


@routes.get("/_homeserver/client/v1/privacy", allow_suspended=True)
async def get_privacy(hs: Resources, requester: Requester) -> Privacy:
    return await hs.database.read(read_privacy, requester.user_id)


@routes.put("/_homeserver/client/v1/privacy", allow_suspended=True)
async def put_privacy(hs: Resources, requester: Requester, body: dict) -> Privacy:
    """Changes the settings that the body names; the others stay as they are."""
    known = {field.name for field in msgspec.structs.fields(Privacy)}
    if unknown := body.keys() - known:
        raise invalid_param(f"There is no privacy setting {min(unknown)!r}; there are {', '.join(sorted(known))}.")
    return await hs.database.write(_put, requester.user_id, body)


def _put(tx: Transaction, user_id: UserID, changes: JsonObject) -> Privacy:
    try:
        return set_privacy(tx, user_id, {**msgspec.to_builtins(read_privacy(tx, user_id)), **changes})
    except msgspec.ValidationError as error:
        raise invalid_param(f"{error}.") from None


FEATURE = Feature(name="privacy", spec="none: docs/status.md", routes=routes)
