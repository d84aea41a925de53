"""Receives events of other servers: fetches what they depend on, then stores each in one write.

Spec: server-server-api/#checks-performed-on-receipt-of-a-pdu, #backfilling-and-retrieving-missing-events
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

import msgspec

from homeserver import limits
from homeserver.database import Transaction
from homeserver.federation.event import Event
from homeserver.federation.identifiers import EventID, ServerName, server_name_of
from homeserver.process.peers import Cause
from homeserver.remote.fetching import fetch_auth_events, fetch_missing, fetch_state_before
from homeserver.remote.policy_servers import recommend_received
from homeserver.resources import Resources
from homeserver.rooms.events import to_events
from homeserver.rooms.graph import Missing, leading_to
from homeserver.rooms.heads import find_head
from homeserver.rooms.receive import Received, receive_event
from homeserver.rooms.storage import list_placed
from homeserver.rooms.timeline import START, list_forwards

ROUNDS_MAX = 6  # of "fetch what is missing, try again" per event: its auth events, its ancestors, their state


class Gap(msgspec.Struct):
    """The remaining effort for closing the gaps before some events that one server sent for a room.

    servers: those to ask, one after another. states: how many more states may be fetched.
    """

    servers: Sequence[ServerName]
    cause: Cause
    states: int = limits.peers.GAP_STATES_MAX


def receive(
    tx: Transaction,
    event: Event,
    *,
    state: Collection[EventID] | None = None,
    ordering: int | None = None,
    pass_on: bool = False,
) -> Received | Missing:
    """Does the same as `receive_event`. pass_on: only we got the event, so we send it to the room's other servers.

    An event of our own users that comes back from another server is not sent again.
    """
    outcome = receive_event(tx, event, state=state, ordering=ordering)
    is_own = server_name_of(event.sender) == tx.server.name
    if isinstance(outcome, Received) and outcome.is_new and (pass_on or is_own):
        note_relay(tx, outcome.position, is_ours=pass_on)
    return outcome


def note_relay(tx: Transaction, position: int, *, is_ours: bool) -> None:
    """Notes an exception from the rule who sends an event: we send another server's, or do not send our own."""
    tx.run(
        "INSERT INTO relays (position, is_ours) VALUES (?, ?) ON CONFLICT (position) DO NOTHING", position, int(is_ours)
    )


async def receive_behind_gap(hs: Resources, event: Event, gap: Gap) -> Received | None:
    """Fetches the events between a checked event and what we have, and receives all. None if that is impossible now."""
    return await _receive(hs, event, gap, may_walk=True)


async def _receive(hs: Resources, event: Event, gap: Gap, *, may_walk: bool) -> Received | None:
    """Receives the event after fetching what it needs. `may_walk`: ancestors are received too, one level deep."""
    state: list[EventID] | None = None
    (event,) = await recommend_received(hs, [event], gap.cause)
    for _ in range(ROUNDS_MAX):
        outcome = await hs.database.write(_receive_with, event, state)
        if isinstance(outcome, Received):
            return outcome
        if outcome.auth_events:
            if not await fetch_auth_events(hs, gap.servers, event, outcome.auth_events, gap.cause):
                return None
        elif not outcome.prev_events:
            return None
        elif may_walk:
            may_walk = False
            await _receive_ancestors(hs, event, gap)
        else:
            if not gap.states or state is not None:
                return None
            gap.states -= 1
            state = await fetch_state_before(hs, gap.servers, event, gap.cause)
            if state is None:
                return None
    return None


def _receive_with(tx: Transaction, event: Event, state: list[EventID] | None) -> Received | Missing:
    return receive(tx, event, state=state)


async def _receive_ancestors(hs: Resources, event: Event, gap: Gap) -> None:
    """Fetches and receives the events between this one and what we have, but none from before we joined."""
    place = await hs.database.read(_get_place, event)
    if event.depth <= place.first_depth:
        return
    for server in gap.servers:
        fetched = await fetch_missing(
            hs, server, event, place.known, place.first_depth, limits.peers.GAP_EVENTS_MAX, gap.cause
        )
        ancestors = await hs.database.read(_between, event, fetched, place.first_depth)
        for ancestor in ancestors:
            await _receive(hs, ancestor, gap, may_walk=False)
        if ancestors:
            return


class _Place(msgspec.Struct, frozen=True):
    """The place of an event: the events before it that we have, and the depth at which our history begins."""

    known: list[EventID]
    first_depth: int


def _get_place(tx: Transaction, event: Event) -> _Place:
    head = find_head(tx, event.room_id)
    extremities = head.extremity_ids if head is not None else ()
    first = to_events(tx, list_forwards(tx, event.room_id, START, 1))
    placed = list_placed(tx, event.prev_events)
    return _Place(list(dict.fromkeys([*extremities, *placed])), first[0].depth if first else 0)


def _between(tx: Transaction, event: Event, fetched: Sequence[Event], first_depth: int) -> list[Event]:
    """Returns the fetched events that connect the event with what we have, in order.

    Events older than our history are left to backfill. As new events they would appear in the wrong place.
    """
    placed = set(list_placed(tx, [each.event_id for each in fetched]))
    unknown = [each for each in fetched if each.event_id not in placed and each.depth >= first_depth]
    return leading_to(event.prev_events, unknown)
