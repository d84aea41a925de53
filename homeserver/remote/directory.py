"""Aliases and room directories of other servers.

Spec: server-server-api/#querying-for-information, #published-room-directory
"""

from __future__ import annotations

from typing import Any

from homeserver.errors import MatrixError
from homeserver.federation.identifiers import (
    InvalidIdentifier,
    RoomAlias,
    RoomID,
    ServerName,
    parse_room_id,
    parse_server_name,
    server_name_of,
)
from homeserver.limits import VIA_SERVERS_MAX
from homeserver.remote.requests import ask, path_to
from homeserver.resources import Resources


async def resolve_alias(hs: Resources, alias: RoomAlias) -> tuple[RoomID, list[ServerName]]:
    """The room of an alias of another server, and servers in it. MatrixError 404: no such alias; 502: no answer."""
    destination = server_name_of(alias)
    answer = await ask(hs, destination, "GET", path_to("v1", "query", "directory", query={"room_alias": alias}))
    try:
        room_id = parse_room_id(answer.get("room_id"))
    except InvalidIdentifier as error:
        raise MatrixError(502, "M_UNKNOWN", f"{destination} names no room for {alias}.") from error
    listed = answer.get("servers")
    servers = [server for name in (listed if isinstance(listed, list) else ()) if (server := _server(name)) is not None]
    return room_id, list(dict.fromkeys([*servers[: VIA_SERVERS_MAX - 1], destination]))


async def public_rooms(hs: Resources, server: ServerName, body: dict[str, Any]) -> dict[str, Any]:
    """A page of the other server's room directory. `body`: as of POST /publicRooms, where None stands for absent."""
    question = {key: value for key, value in body.items() if value is not None}
    answer = await ask(hs, server, "POST", path_to("v1", "publicRooms"), question)
    chunk = answer.get("chunk")
    if not isinstance(chunk, list):
        raise MatrixError(502, "M_UNKNOWN", f"{server} did not answer with a list of rooms.")
    return {**answer, "chunk": [room for room in chunk if isinstance(room, dict) and "room_id" in room]}


def _server(name: object) -> ServerName | None:
    try:
        return parse_server_name(name)
    except InvalidIdentifier:
        return None
