"""The room directories of other networks, which application services keep.

Spec: application-service-api/#published-room-directories
"""

from __future__ import annotations

from typing import Literal

import msgspec

from homeserver import limits
from homeserver.api.routes import Empty, Routes
from homeserver.authenticate import Requester
from homeserver.config import ApplicationService
from homeserver.database import Transaction
from homeserver.errors import MatrixError, forbidden, invalid_param
from homeserver.features.application_services.interest import Interest
from homeserver.federation.identifiers import RoomID
from homeserver.resources import Resources
from homeserver.rooms.aliases import Network, count_network_rooms, set_network_visibility
from homeserver.rooms.heads import get_head

routes = Routes()

# Each costs a look-up in every page of the directory. Large networks are searched by `/thirdparty/location`.
ROOMS_MAX = 10_000


class VisibilityBody(msgspec.Struct, frozen=True):
    visibility: Literal["public", "private"]


@routes.put("/_matrix/client/v3/directory/list/appservice/{network_id}/{room_id}")
async def update_appservice_room_directory_visibility(
    hs: Resources, requester: Requester, network_id: str, room_id: RoomID, body: VisibilityBody
) -> Empty:
    service = hs.application_services.find(requester.appservice)
    if service is None:
        raise forbidden("Only application services keep the directories of other networks.")
    if not 0 < len(network_id.encode()) <= limits.NETWORK_ID_BYTES_MAX:
        raise invalid_param(f"The ID of a network has 1 to {limits.NETWORK_ID_BYTES_MAX} bytes.")
    await hs.database.write(_list_room, service, network_id, room_id, body.visibility == "public")
    return Empty()


def _list_room(tx: Transaction, service: ApplicationService, network_id: str, room_id: RoomID, is_public: bool) -> None:
    get_head(tx, room_id)
    if is_public and not Interest(tx, service, tx.position).has_room(room_id):
        raise forbidden("The application service has no user in that room, and it is not in its namespaces.")
    if is_public and count_network_rooms(tx, service.id) >= ROOMS_MAX:
        raise MatrixError(403, "M_RESOURCE_LIMIT_EXCEEDED", f"An application service may list {ROOMS_MAX} rooms.")
    set_network_visibility(tx, room_id, Network(service.id, network_id), is_public=is_public)
