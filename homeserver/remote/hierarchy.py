"""Summaries of rooms and spaces, from servers that are in them.

Spec: server-server-api/#get_matrixfederationv1hierarchyroomid

Theory of operation. An answer belongs to the server that gave it: it is cached under both names, so a server can lie
about a room only to those who were led to it. Answers are kept for some minutes, failures for one, so a server that is
silent delays a person at most once. Requests outlive those who wait for them, and their answers serve the next page.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from homeserver import limits
from homeserver.errors import MatrixError
from homeserver.federation.identifiers import (
    InvalidIdentifier,
    RoomID,
    ServerName,
    parse_room_alias,
    parse_room_id,
)
from homeserver.moments import is_recent
from homeserver.process.peers import Cause
from homeserver.remote.requests import Unreachable, path_to, send_signed
from homeserver.resources import Resources
from homeserver.rooms.restricted import CONDITIONS_MAX
from homeserver.rooms.spaces import CHILDREN_MAX, ORDER_CHARACTERS_MAX, VIA_MAX, Child, in_order, read_child
from homeserver.rooms.summaries import KNOWN_ALGORITHM

_TEXT_CHARACTERS_MAX = 10_000
_TEXTS = ("name", "topic", "avatar_url", "room_type", "join_rule", "room_version")
_FLAGS = ("world_readable", "guest_can_join")


class RemoteRoom(msgspec.Struct, frozen=True):
    """What a server said about a room. `summary` is None if it said nothing, `children` is empty unless it is a space.

    summaries: those of the children that it knows. inaccessible: children that nobody on this server can join or read.
    """

    summary: dict[str, Any] | None
    children: tuple[Child, ...] = ()
    summaries: Mapping[RoomID, dict[str, Any]] = msgspec.field(default_factory=dict)
    inaccessible: frozenset[RoomID] = frozenset()


NOTHING = RemoteRoom(None)


async def find_remote_room(
    hs: Resources, room_id: RoomID, servers: Sequence[ServerName], cause: Cause
) -> RemoteRoom | None:
    """Returns what the first of the servers that knows the room says about it; None if none of them answers so.

    The caller sets the deadline.
    """
    others = [server for server in servers if server != hs.server_name]
    for server in others[: limits.peers.HIERARCHY_SERVERS_ASKED_MAX]:
        room = find_cached_room(hs, room_id, server)
        if room is None:
            room = await hs.flights.join(hs.nursery, ("hierarchy", server, room_id), _fetch, hs, server, room_id, cause)
        if room.summary is not None:
            return room
    return None


def find_cached_room(hs: Resources, room_id: RoomID, server: ServerName) -> RemoteRoom | None:
    """Returns what the server has recently said, or that it did not answer; None if it was not asked recently."""
    cached = _cache(hs).get((server, room_id))
    if cached is None:
        return None
    room, fetched_ms = cached
    failed = room.summary is None
    span_ms = limits.peers.HIERARCHY_FAILURE_CACHED_MS if failed else limits.peers.HIERARCHY_CACHED_MS
    return room if is_recent(fetched_ms, hs.now_ms(), span_ms) else None


def find_any_cached(hs: Resources, room_id: RoomID, servers: Sequence[ServerName]) -> RemoteRoom | None:
    """Returns what one of the servers has recently said, or NOTHING if all have failed; None if one is to be asked."""
    others = [server for server in servers if server != hs.server_name]
    for server in others[: limits.peers.HIERARCHY_SERVERS_ASKED_MAX]:
        room = find_cached_room(hs, room_id, server)
        if room is None or room.summary is not None:
            return room
    return NOTHING


def _cache(hs: Resources) -> Any:
    return hs.database.caches.sized("remote_rooms", limits.peers.HIERARCHY_CACHED_BYTES_MAX)


async def _fetch(hs: Resources, server: ServerName, room_id: RoomID, cause: Cause) -> RemoteRoom:
    uri = path_to("v1", "hierarchy", room_id, query={"suggested_only": "false"})
    room, size = NOTHING, 0
    try:
        answer = await send_signed(
            hs, server, "GET", uri,
            cause=cause,
            timeout_s=limits.peers.HIERARCHY_TIMEOUT_S,
            max_bytes=limits.peers.HIERARCHY_BYTES_MAX,
        )  # fmt: skip
        if answer.status == 200:
            room, size = parse_room(answer.content, room_id)
    except (Unreachable, MatrixError):
        room = NOTHING  # remembered for a while, like a refusal
    _cache(hs).put((server, room_id), (room, hs.now_ms()), 500 + size)
    return room


def parse_room(content: object, room_id: RoomID) -> tuple[RemoteRoom, int]:
    """Returns the usable parts of an answer about a room, and about how many bytes they take in memory."""
    if not isinstance(content, dict):
        return NOTHING, 0
    summary = parse_summary(content.get("room"))
    if summary is None or summary["room_id"] != room_id:
        return NOTHING, 0
    events = content["room"].get("children_state")
    children = [child for event in _some(events) if (child := read_child(_without_extras(event))) is not None]
    unique = in_order(list({child.room_id: child for child in children}.values()))
    summaries = {each["room_id"]: each for item in _some(content.get("children")) if (each := parse_summary(item))}
    inaccessible = frozenset(each for each in _some(content.get("inaccessible_children")) if isinstance(each, str))
    texts = sum(len(value) for each in (summary, *summaries.values()) for value in each.values() if type(value) is str)
    size = texts + 1_500 * (1 + len(unique) + len(summaries)) + 300 * len(inaccessible)
    if summary.get("room_type") != "m.space":
        unique = ()
    return RemoteRoom(summary, unique, summaries, frozenset(map(RoomID, inaccessible))), size


def _without_extras(event: object) -> object:
    """Returns the event without properties of its content that the spec does not know: they may be large."""
    if not isinstance(event, dict) or not isinstance(event.get("content"), dict):
        return None
    content = event["content"]
    via = content.get("via")
    kept: dict[str, Any] = (
        {"via": [name for name in via[:VIA_MAX] if isinstance(name, str)]} if isinstance(via, list) else {}
    )
    if isinstance(content.get("order"), str) and len(content["order"]) <= ORDER_CHARACTERS_MAX:
        kept["order"] = content["order"]
    if isinstance(content.get("suggested"), bool):
        kept["suggested"] = content["suggested"]
    return {**event, "content": kept}


def _some(items: object) -> list[Any]:
    return items[:CHILDREN_MAX] if isinstance(items, list) else []


def parse_summary(content: object) -> dict[str, Any] | None:
    """Returns the known fields of another server's summary of a room that have the right type; None without an ID."""
    if not isinstance(content, dict):
        return None
    try:
        summary: dict[str, Any] = {"room_id": parse_room_id(content.get("room_id"))}
    except InvalidIdentifier:
        return None
    count = content.get("num_joined_members")
    summary["num_joined_members"] = count if type(count) is int and count >= 0 else 0
    summary |= {name: content.get(name) is True for name in _FLAGS}
    for name in _TEXTS:
        value = content.get(name)
        if isinstance(value, str) and len(value) <= _TEXT_CHARACTERS_MAX:
            summary[name] = value
    if content.get("encryption") == KNOWN_ALGORITHM:
        summary["encryption"] = KNOWN_ALGORITHM
    try:
        summary["canonical_alias"] = parse_room_alias(content.get("canonical_alias"))
    except InvalidIdentifier:
        pass  # it has none
    allowed = content.get("allowed_room_ids")
    if isinstance(allowed, list):
        summary["allowed_room_ids"] = [each for each in allowed[:CONDITIONS_MAX] if _is_room_id(each)]
    return summary


def _is_room_id(value: object) -> bool:
    try:
        parse_room_id(value)
    except InvalidIdentifier:
        return False
    return True
