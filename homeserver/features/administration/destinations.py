"""The admin API for other servers: whether they answer, and which rooms they are in with us."""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from homeserver.api.routes import Empty, Routes
from homeserver.authenticate import Requester, check_admin
from homeserver.errors import MatrixError, not_found
from homeserver.feature import JsonObject
from homeserver.features.administration.common import V1, Direction, check_page
from homeserver.features.administration.common import next_token as more
from homeserver.federation.identifiers import ServerName
from homeserver.remote.administration import (
    Destination,
    find_destination,
    list_servers,
    request_retry,
)
from homeserver.resources import Resources
from homeserver.rooms.administration import list_rooms_with_server

DESTINATIONS = f"{V1}/federation/destinations"

routes = Routes()

Order = Literal["destination", "retry_last_ts", "retry_interval", "failure_ts", "last_successful_stream_ordering"]


class DestinationsQuery(msgspec.Struct, frozen=True, rename={"start": "from", "direction": "dir"}):
    """destination: a part of the server's name."""

    start: int = 0
    limit: int = 100
    order_by: Order = "destination"
    direction: Direction = "f"
    destination: str = ""


@routes.get(DESTINATIONS)
async def list_destinations_for_admin(hs: Resources, requester: Requester, query: DestinationsQuery) -> JsonObject:
    """Lists the servers that share a room with us, and those that we owe something."""
    check_admin(requester)
    limit = check_page(query.start, query.limit)
    found = [each for each in await list_servers(hs) if query.destination in each.server]
    bodies = sorted((_body(each) for each in found), key=lambda body: str(body["destination"]))
    if query.order_by != "destination":
        bodies.sort(key=lambda body: body[query.order_by] or 0)
    if query.direction == "b":
        bodies.reverse()
    page = bodies[query.start : query.start + limit]
    return {"destinations": page, "total": len(bodies), **more(query.start, limit, len(bodies))}


def _body(each: Destination) -> dict[str, Any]:
    """Returns a destination in the format that tools expect."""
    return {
        "destination": each.server,
        "retry_last_ts": 0 if each.back_off is None else each.back_off.tried_ms or each.back_off.since_ms,
        "retry_interval": 0 if each.back_off is None else each.delay_ms,
        "failure_ts": None if each.back_off is None else each.back_off.since_ms,
        "last_successful_stream_ordering": each.acked_position,
    }


@routes.get(f"{DESTINATIONS}/{{destination}}")
async def get_destination_for_admin(hs: Resources, requester: Requester, destination: ServerName) -> JsonObject:
    check_admin(requester)
    return _body(await _get(hs, destination))


async def _get(hs: Resources, server: ServerName) -> Destination:
    found = await find_destination(hs, server)
    if found is None:
        raise not_found("This server has nothing to do with that server.")
    return found


class PageQuery(msgspec.Struct, frozen=True, rename={"start": "from", "direction": "dir"}):
    start: int = 0
    limit: int = 100
    direction: Direction = "f"


@routes.get(f"{DESTINATIONS}/{{destination}}/rooms")
async def list_rooms_of_destination_for_admin(
    hs: Resources, requester: Requester, destination: ServerName, query: PageQuery
) -> JsonObject:
    check_admin(requester)
    limit = check_page(query.start, query.limit)
    await _get(hs, destination)
    rooms = await hs.database.read(list_rooms_with_server, destination)
    rooms.sort(reverse=query.direction == "b")
    page = rooms[query.start : query.start + limit]
    bodies = [{"room_id": room_id, "stream_ordering": position} for room_id, position in page]
    return {"rooms": bodies, "total": len(rooms), **more(query.start, limit, len(rooms))}


@routes.post(f"{DESTINATIONS}/{{destination}}/reset_connection")
async def reset_connection(hs: Resources, requester: Requester, destination: ServerName) -> Empty:
    """Ends the back-off of a server that does not answer: what it lacks is sent to it now."""
    check_admin(requester)
    if (await _get(hs, destination)).back_off is None:
        raise MatrixError(400, "M_UNKNOWN", "That server is not in back-off.")
    await hs.database.write(request_retry, destination)
    return Empty()
