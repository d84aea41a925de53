"""Fetches the event nearest to a time from other servers, where this server's history has a gap.

The event gets a place in the middle of the gap. A reader who goes back from there reaches the rest of the gap, which
backfill fills.

Spec: client-server-api/#get_matrixclientv1roomsroomidtimestamp_to_event,
server-server-api/#get_matrixfederationv1timestamp_to_eventroomid
"""

from __future__ import annotations

from functools import partial
from typing import Literal

import msgspec
import trio

from homeserver import limits
from homeserver.database import Transaction
from homeserver.errors import MatrixError
from homeserver.federation.event import Event
from homeserver.federation.identifiers import InvalidIdentifier, RoomID, ServerName, parse_event_id
from homeserver.federation.room_versions import RoomVersion
from homeserver.federation.wire.racing import first_answer
from homeserver.process.peers import PERSON
from homeserver.remote.access import choose_servers
from homeserver.remote.backfill import take_in
from homeserver.remote.fetching import fetch_event
from homeserver.remote.requests import ask, path_to
from homeserver.resources import Resources
from homeserver.rooms.gaps import Gap, find_gap_at
from homeserver.rooms.membership import is_server_joined
from homeserver.rooms.storage import list_placed
from homeserver.rooms.versions import get_room_version

Direction = Literal["f", "b"]


async def fill_gap_at(hs: Resources, room_id: RoomID, ts: int, direction: Direction) -> None:
    """Fetches the event nearest to a time, unless the nearest one that is stored is certainly the one.

    Never raises. If anything goes wrong, the nearest event that is stored remains the answer.
    """
    if await hs.database.read(_find_gap, room_id, ts, direction) is None:
        return
    key = ("by time", room_id, ts, direction)
    with trio.move_on_after(limits.peers.BACKFILL_WAIT_S):
        try:
            await hs.flights.join(hs.nursery, key, _fill, hs, room_id, ts, direction)
        except MatrixError:
            return  # too many fetches are running, or the server is closing


def _find_gap(tx: Transaction, room_id: RoomID, ts: int, direction: Direction) -> Gap | None:
    """Returns the gap that may have a nearer event, if this server is in the room, so that others answer it."""
    return find_gap_at(tx, room_id, ts, direction) if is_server_joined(tx, room_id, tx.server.name) else None


class _Question(msgspec.Struct, frozen=True):
    room_id: RoomID
    version: RoomVersion
    ts: int
    direction: Direction
    gap: Gap

    def is_nearer(self, ts: int) -> bool:
        """Returns whether an event of this time is wanted: on the right side, and nearer than what is stored."""
        if self.direction == "f":
            return self.ts <= ts and (self.gap.nearest_ts is None or ts < self.gap.nearest_ts)
        return ts <= self.ts and (self.gap.nearest_ts is None or ts > self.gap.nearest_ts)


async def _fill(hs: Resources, room_id: RoomID, ts: int, direction: Direction) -> None:
    at_once = hs.flights.limiter("backfill", limits.peers.BACKFILLS_AT_ONCE_MAX)
    async with hs.peers.locks.hold(("backfill", room_id)), at_once:
        gap = await hs.database.read(_find_gap, room_id, ts, direction)
        if gap is None:
            return
        version = await hs.database.read(get_room_version, room_id)
        question = _Question(room_id, version, ts, direction, gap)
        servers = await choose_servers(hs, room_id, None)
        hedge = limits.peers.HEDGES["person"]
        attempts = [partial(_ask, hs, server, question) for server in servers]
        found = await first_answer(attempts, hedge.stagger_s, hedge.timeout_s)
        if found is not None:
            server, event = found
            await take_in(hs, server, servers, [event], gap)


class _Answer(msgspec.Struct, frozen=True):
    event_id: str
    origin_server_ts: int


async def _ask(hs: Resources, server: ServerName, question: _Question) -> tuple[ServerName, Event] | None:
    """Returns the event that a server knows to be nearer, None if it does not know any."""
    query = {"ts": str(question.ts), "dir": question.direction}
    try:
        content = await ask(hs, server, "GET", path_to("v1", "timestamp_to_event", question.room_id, query=query))
        answer = msgspec.convert(content, _Answer)
        event_id = parse_event_id(answer.event_id)
    except (MatrixError, msgspec.ValidationError, InvalidIdentifier):
        return None  # the next server may know
    placed = await hs.database.read(list_placed, [event_id])
    if placed or not question.is_nearer(answer.origin_server_ts):
        return None
    event = await fetch_event(hs, server, event_id, question.version, question.room_id, PERSON)
    return None if event is None or not question.is_nearer(event.origin_server_ts) else (server, event)
