"""Logout of one device or of all devices of a user. Spec: client-server-api/#post_matrixclientv3logout"""

from __future__ import annotations

from homeserver import authenticate
from homeserver.api.routes import Empty, Routes
from homeserver.authenticate import Requester
from homeserver.database import Transaction
from homeserver.feature import Feature
from homeserver.resources import Resources
from homeserver.users.devices import delete_devices_of_user, log_out_everywhere

routes = Routes()


@routes.post("/_matrix/client/v3/logout", rate_limit="", allow_locked=True, allow_guest=True, allow_suspended=True)
async def logout(hs: Resources, requester: Requester) -> Empty:
    await hs.database.write(_log_out, requester)
    return Empty()


@routes.post("/_matrix/client/v3/logout/all", rate_limit="", allow_locked=True, allow_guest=True, allow_suspended=True)
async def logout_all(hs: Resources, requester: Requester) -> Empty:
    await hs.database.write(log_out_everywhere, requester.user_id)
    return Empty()


def _log_out(tx: Transaction, requester: Requester) -> None:
    authenticate.delete_token(tx, requester.user_id, requester.token_id)
    if requester.device_id:
        delete_devices_of_user(tx, requester.user_id, [requester.device_id])


FEATURE = Feature(name="logout", spec="client-server-api/#post_matrixclientv3logout", routes=routes)
