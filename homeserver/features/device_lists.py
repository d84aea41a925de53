"""Device lists: whose devices and keys clients have to ask for anew, and whose they may forget.

Spec: client-server-api/#tracking-the-device-list-for-a-user
"""

from __future__ import annotations

import msgspec

from homeserver.api.routes import Routes
from homeserver.authenticate import Requester
from homeserver.database import Transaction
from homeserver.feature import Feature, JsonObject, SyncContext
from homeserver.federation.identifiers import UserID
from homeserver.resources import Resources
from homeserver.rooms.membership import list_sharing
from homeserver.rooms.sharing import list_sharing_changes
from homeserver.rooms.timeline import find_since, parse_sync_token
from homeserver.users.encryption.cross_signing import list_signed_users
from homeserver.users.encryption.device_lists import list_changed_users

routes = Routes()


class ChangesQuery(msgspec.Struct, frozen=True, rename={"from_": "from"}):
    """`from_`, `to`: tokens of /sync. `to` is only a hint, so that the client misses nothing that came after it."""

    from_: str
    to: str


@routes.get("/_matrix/client/v3/keys/changes")
async def get_keys_changes(hs: Resources, requester: Requester, query: ChangesQuery) -> JsonObject:
    parse_sync_token(query.to)
    return await hs.database.read(_read_changes, requester.user_id, query.from_)


def _read_changes(tx: Transaction, user_id: UserID, from_: str) -> JsonObject:
    # After a restore from a backup the client may be wrong about everyone: then everyone counts as changed.
    since = find_since(tx, parse_sync_token(from_)) or 0
    changed, left = list_news(tx, user_id, since, tx.position)
    return {"changed": sorted(changed), "left": sorted(left)}


def sync_device_lists(tx: Transaction, context: SyncContext) -> None:
    """News: `device_lists`, in incremental syncs. After an initial one clients ask for whose keys they need."""
    if context.since == 0:
        return
    changed, left = list_news(tx, context.user_id, context.since, context.upto)
    if changed or left:
        context.extra["device_lists"] = {"changed": sorted(changed), "left": sorted(left)}


def list_news(tx: Transaction, user_id: UserID, since: int, upto: int) -> tuple[set[UserID], set[UserID]]:
    """Returns whose keys the user has to ask for after position `since`, and with whom no room is shared any more.

    Any room counts, encrypted or not, so that a client knows everybody's devices when a room becomes encrypted.
    """
    begun, ended = list_sharing_changes(tx, user_id, since)
    changed = set(list_changed_users(tx, since, upto))
    signed = set(list_signed_users(tx, user_id, since, upto))  # only the user's own devices see these signatures
    return begun | list_sharing(tx, user_id, changed) | (changed & {user_id}) | signed, ended


FEATURE = Feature(
    name="device_lists",
    spec="client-server-api/#tracking-the-device-list-for-a-user",
    routes=routes,
    sync=sync_device_lists,
)
