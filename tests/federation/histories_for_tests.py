"""Forked histories of rooms, drawn by Hypothesis, and the spec's definitions in their plainest form to compare with."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from hypothesis import strategies as st

from homeserver.federation.auth_events import StateKey
from homeserver.federation.auth_rules import check
from homeserver.federation.event import Event
from homeserver.federation.identifiers import EventID
from homeserver.federation.room_versions import RoomVersion
from homeserver.federation.state_resolution import Missing, resolve
from tests.federation.json_values import versions as any_version
from tests.federation.rooms_for_tests import ALICE, BOB, CAROL, DAVE, Room, alice_is_admin, new_room

State = dict[StateKey, EventID]

USERS = [ALICE, BOB, CAROL, DAVE]
MEMBERSHIPS = ["join", "leave", "invite", "ban", "knock"]
RULES = ["public", "invite", "knock", "restricted"]


@dataclass
class History:
    """All events of a room in the order of their making, with the state after each."""

    version: RoomVersion
    events: dict[EventID, Event] = field(default_factory=dict)
    after: dict[EventID, State] = field(default_factory=dict)

    def ends(self) -> list[State]:
        """The states after the events that no other cites."""
        cited = {event_id for event in self.events.values() for event_id in event.prev_events}
        return [self.after[event_id] for event_id in self.events if event_id not in cited]

    def rank(self) -> dict[EventID, int]:
        return {event_id: number for number, event_id in enumerate(self.events)}


steps = st.tuples(
    st.lists(st.integers(0, 5), min_size=1, max_size=3),  # how far back the events lie that it follows on
    st.integers(0, len(USERS) - 1),
    st.integers(0, len(USERS) - 1),
    st.integers(0, 8),
    st.integers(0, 4),
    st.integers(0, 3),
)


@st.composite
def histories(draw: st.DrawFn, versions: st.SearchStrategy[RoomVersion] = any_version) -> History:
    """A room where what somebody wants is done if the rules allow it in the state that they see."""
    version = draw(versions)
    room = new_room(version, join_rule="public")
    history = History(version)
    state: State = {}
    for event in list(room.events.values()):
        state = {**state, event.key: event.event_id}
        history.events[event.event_id] = event
        history.after[event.event_id] = state
    for user in (BOB, CAROL):
        _follow(history, room, [room.last[0]], user, "m.room.member", {"membership": "join"}, user, 0)
        room.last = [list(history.events.values())[-1]]
    for back, sender, target, action, detail, moment in draw(st.lists(steps, max_size=14)):
        known = list(history.events.values())
        prev = list({event.event_id: event for event in (known[-1 - min(n, len(known) - 1)] for n in back)}.values())
        event_type, content, state_key = _wish(version, USERS[target], action, detail)
        _follow(history, room, prev, USERS[sender], event_type, content, state_key, moment)
    return history


def _wish(version: RoomVersion, target: str, action: int, detail: int) -> tuple[str, dict[str, Any], str | None]:
    if action <= 3:
        content = {"membership": MEMBERSHIPS[detail]}
        if detail == 0 and version.restricted_join:
            content["join_authorised_via_users_server"] = ALICE
        return "m.room.member", content, target
    if action <= 5:
        levels = alice_is_admin(version, **({} if target == ALICE else {target: 25 * detail}))
        return "m.room.power_levels", {**levels, "state_default": 25 * (action - 4)}, ""
    if action == 6:
        return "m.room.join_rules", {"join_rule": RULES[detail % len(RULES)]}, ""
    if action == 7:
        return "m.room.topic", {"topic": str(detail)}, ""
    return "m.room.message", {"body": "…"}, None


def _follow(
    history: History,
    room: Room,
    prev: Sequence[Event],
    sender: str,
    event_type: str,
    content: dict[str, Any],
    state_key: str | None,
    moment: int,
) -> None:
    before = resolve_all(history.version, [history.after[event.event_id] for event in prev], history.events)
    room.state = {key: history.events[event_id] for key, event_id in before.items()}
    room.clock = 1_700_000_000_000 + moment
    event = room.build(sender, event_type, content, state_key, prev=prev)
    if check(event, room.state) is not None:
        return
    history.events[event.event_id] = event
    history.after[event.event_id] = {**before, event.key: event.event_id} if event.is_state else before


def resolve_all(
    version: RoomVersion, states: Sequence[State], events: Mapping[EventID, Event], **options: Any
) -> State:
    """The resolution, of which nothing may be missing."""
    resolved = resolve(version, states, events, **options)
    assert not isinstance(resolved, Missing)
    return resolved


def chain_of(event_ids: Iterable[EventID], events: Mapping[EventID, Event]) -> set[EventID]:
    """The events and their auth chains."""
    chain: set[EventID] = set()
    waiting = list(event_ids)
    while waiting:
        event_id = waiting.pop()
        if event_id not in chain:
            chain.add(event_id)
            waiting += events[event_id].auth_events
    return chain


def plain_auth_difference(states: Sequence[State], events: Mapping[EventID, Event]) -> set[EventID]:
    chains = [chain_of(state.values(), events) for state in states]
    return set().union(*chains) - chains[0].intersection(*chains[1:])


def plain_subgraph(conflicted: set[EventID], events: Mapping[EventID, Event]) -> set[EventID]:
    """Returns the events that can be reached from a conflicted event and from which one can be reached."""
    return {
        event_id for event_id in chain_of(conflicted, events) if not chain_of([event_id], events).isdisjoint(conflicted)
    }
