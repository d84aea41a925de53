"""The summary of one room, for people who consider joining it. Spec: client-server-api/#room-summaries

Users without an account see rooms that everyone may join, knock on or read; that is also all they learn about whether
a room exists.
"""

from __future__ import annotations

import msgspec
import trio

from homeserver import limits
from homeserver.api.routes import Request, Routes
from homeserver.authenticate import Requester
from homeserver.database import Transaction
from homeserver.errors import not_found
from homeserver.feature import Feature, JsonObject
from homeserver.federation.identifiers import RoomID, UserID
from homeserver.limits import Bucket
from homeserver.process.peers import PERSON
from homeserver.remote.directory import list_servers_to_ask, parse_via, resolve_room
from homeserver.remote.hierarchy import RemoteRoom, find_remote_room
from homeserver.remote.keys import take_stranger
from homeserver.resources import Resources
from homeserver.rooms.heads import find_head
from homeserver.rooms.membership import find_membership, is_server_joined
from homeserver.rooms.summaries import may_see_summary, room_summary

routes = Routes()


class SummaryQuery(msgspec.Struct, frozen=True):
    """Spec: client-server-api/#get_matrixclientv1room_summaryroomidoralias"""

    via: list[str] = []


@routes.get("/_matrix/client/v1/room_summary/{room_id_or_alias}", rate_limit="room_summary")
@routes.get("/_matrix/client/unstable/im.nheko.summary/summary/{room_id_or_alias}", rate_limit="room_summary")
@routes.get("/_matrix/client/unstable/im.nheko.summary/rooms/{room_id_or_alias}/summary", rate_limit="room_summary")
async def get_room_summary(
    hs: Resources, requester: Requester | None, room_id_or_alias: str, query: SummaryQuery, request: Request
) -> JsonObject:
    via = parse_via(query.via)
    user_id = None if requester is None else requester.user_id
    if requester is None and _leads_elsewhere(hs, room_id_or_alias):
        take_stranger(hs, request.client_ip, 1)
    room_id, servers = await resolve_room(hs, room_id_or_alias, via)
    summary = await hs.database.read(_find_local, room_id)
    if summary is None:
        # Requests of strangers to other servers have a rate limit and a share of the connections of their own.
        cause = PERSON if requester is not None else take_stranger(hs, request.client_ip, 1)
        remote: RemoteRoom | None = None
        candidates = await hs.database.read(list_servers_to_ask, room_id, user_id, servers)
        with trio.move_on_after(limits.peers.HIERARCHY_PAGE_S):
            remote = await find_remote_room(hs, room_id, candidates, cause)
        summary = None if remote is None else remote.summary
    answer = None if summary is None else await hs.database.read(_show, summary, user_id)
    if answer is None:
        raise not_found("There is no such room, or you may not see it.")
    return answer


def _leads_elsewhere(hs: Resources, name: str) -> bool:
    """Returns whether it is an alias that another server has to look up."""
    return name.startswith("#") and not name.endswith(f":{hs.server_name}")


def _find_local(tx: Transaction, room_id: RoomID) -> JsonObject | None:
    head = find_head(tx, room_id)
    if head is None or not is_server_joined(tx, room_id, tx.server.name):
        return None
    return room_summary(tx, head)


def _show(tx: Transaction, summary: JsonObject, user_id: UserID | None) -> JsonObject | None:
    """Returns the summary with the user's membership; None if the user may not see it."""
    if not may_see_summary(tx, summary, user_id):
        return None
    membership = None if user_id is None else find_membership(tx, summary["room_id"], user_id)
    return summary if membership is None else {**summary, "membership": membership}


FEATURE = Feature(
    name="room_summary",
    spec="client-server-api/#get_matrixclientv1room_summaryroomidoralias",
    routes=routes,
    limits={"room_summary": Bucket(50, 2)},  # each may ask three other servers
    unstable_features={"im.nheko.summary": True, "org.matrix.msc3266": True},
)
