"""Aliases and room directories of other servers.

Spec: server-server-api/#querying-for-information, #published-room-directory
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from homeserver import limits
from homeserver.database import Transaction
from homeserver.errors import MatrixError, invalid_param, not_found
from homeserver.federation import canonical_json
from homeserver.federation.canonical_json import NotCanonical
from homeserver.federation.identifiers import (
    InvalidIdentifier,
    RoomAlias,
    RoomID,
    ServerName,
    UserID,
    parse_room_alias,
    parse_room_id,
    parse_server_name,
    server_name_of,
)
from homeserver.process.peers import PERSON
from homeserver.remote.answers import Verdict, ask_many
from homeserver.remote.application_services import provide_alias
from homeserver.remote.requests import Unreachable, ask, path_to
from homeserver.resources import Resources
from homeserver.rooms.aliases import find_alias
from homeserver.rooms.heads import find_head
from homeserver.rooms.membership import find_room_membership, list_joined_servers


async def resolve_alias(hs: Resources, alias: RoomAlias) -> tuple[RoomID, list[ServerName]]:
    """Returns the room of a remote alias, and servers in it. Raises MatrixError 404 or 502."""
    destination = server_name_of(alias)
    answer = await ask(hs, destination, "GET", path_to("v1", "query", "directory", query={"room_alias": alias}))
    try:
        room_id = parse_room_id(answer.get("room_id"))
    except InvalidIdentifier as error:
        raise MatrixError(502, "M_UNKNOWN", f"{destination} gave no room ID for {alias}.") from error
    listed = answer.get("servers")
    servers = [server for name in (listed if isinstance(listed, list) else ()) if (server := _server(name)) is not None]
    return room_id, list(dict.fromkeys([*servers[: limits.VIA_SERVERS_MAX - 1], destination]))


async def resolve_room(
    hs: Resources, name: str, via: list[ServerName], appservice: str | None = None
) -> tuple[RoomID, list[ServerName]]:
    """Returns the room ID for a room ID or alias, and the servers through which to reach the room.

    appservice: the application service that makes the request, if one does.

    Raises MatrixError 400, 404 or 502.
    """
    try:
        if not name.startswith("#"):
            return parse_room_id(name), via
        alias = parse_room_alias(name)
    except InvalidIdentifier as error:
        raise invalid_param(str(error)) from None
    if server_name_of(alias) != hs.server_name:
        room_id, servers = await resolve_alias(hs, alias)
        return room_id, list(dict.fromkeys([*via, *servers]))
    await provide_alias(hs, alias, appservice)
    found = await hs.database.read(find_alias, alias)
    if found is None:
        raise not_found(f"There is no room called {alias}.")
    return found[0], via


def parse_via(names: Iterable[str]) -> list[ServerName]:
    """Returns the servers that a client lists in `via`. Raises M_INVALID_PARAM."""
    try:
        servers = [parse_server_name(name) for name in names]
    except InvalidIdentifier as error:
        raise invalid_param(f"via: {error}") from None
    return list(dict.fromkeys(servers))[: limits.VIA_SERVERS_MAX]


def list_servers_to_ask(
    tx: Transaction, room_id: RoomID, user_id: UserID | None, via: list[ServerName]
) -> list[ServerName]:
    """Returns the servers given by the client, the inviter's, the room ID's, and those known to be in the room."""
    servers = list(via)
    membership = None if user_id is None else find_room_membership(tx, room_id, user_id)
    for event in (membership.stripped or ()) if membership is not None else ():
        sender = event.get("sender")
        if event.get("type") == "m.room.member" and event.get("state_key") == user_id and isinstance(sender, str):
            servers.append(server_name_of(sender))
    if ":" in room_id:
        servers.append(server_name_of(room_id))
    head = find_head(tx, room_id)
    if head is not None and head.extremities:
        servers += sorted(list_joined_servers(tx, head))
    return list(dict.fromkeys(servers))[: limits.VIA_SERVERS_MAX]


async def public_rooms(hs: Resources, server: ServerName, body: dict[str, Any]) -> dict[str, Any]:
    """Returns a page of another server's room directory. `body`: as for POST /publicRooms; None means absent."""
    question = {key: value for key, value in body.items() if value is not None}
    rooms: list[dict[str, Any]] = []
    left_bytes = limits.PUBLIC_ROOMS_BYTES_MAX

    def take(text: bytes) -> Verdict:
        nonlocal left_bytes
        left_bytes -= len(text)
        if len(rooms) >= limits.PUBLIC_ROOMS_LIMIT_MAX or left_bytes < 0:
            return "full"
        try:
            room = canonical_json.decode(text)
        except NotCanonical:
            return "junk"
        if not isinstance(room, dict) or "room_id" not in room:
            return "junk"
        rooms.append(room)
        return "taken"

    try:
        answer = await ask_many(
            hs, server, "POST", path_to("v1", "publicRooms"), question,
            cause=PERSON,
            take={"chunk": take},
            members={"next_batch", "prev_batch", "total_room_count_estimate"},
            timeout_s=limits.peers.FEDERATION_TIMEOUT_S,
            max_bytes=limits.PUBLIC_ROOMS_BYTES_MAX,
        )  # fmt: skip
    except Unreachable as error:
        raise MatrixError(502, "M_UNKNOWN", str(error)) from error
    if answer.status != 200:
        raise answer.error(server)
    return {**answer.content, "chunk": rooms}


def _server(name: object) -> ServerName | None:
    try:
        return parse_server_name(name)
    except InvalidIdentifier:
        return None
