"""State resolution, versions 2 and 2.1 and what they share with 1. Spec: rooms/v2/#state-resolution, rooms/v12/…"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from homeserver.federation.auth_chains import KnownEvents, find_conflicted_subgraph
from homeserver.federation.event import Event, trusted_event
from homeserver.federation.identifiers import EventID
from homeserver.federation.room_versions import ROOM_VERSIONS, RoomVersion
from homeserver.federation.state_resolution import (
    Missing,
    auth_difference,
    is_power_event,
    resolve,
    resolve_conflicts,
    split_states,
)
from tests.federation.histories_for_tests import (
    History,
    State,
    histories,
    plain_auth_difference,
    plain_subgraph,
    resolve_all,
)
from tests.federation.json_values import PROPERTY
from tests.federation.rooms_for_tests import ALICE, ALL, BOB, CAROL, DAVE, alice_is_admin, new_room, versions

V2, V11, V12 = (ROOM_VERSIONS[version] for version in ("2", "11", "12"))

since_version_2 = pytest.mark.parametrize("version", versions(2))


class Store(Mapping[EventID, Event]):
    """Events that are loaded when asked for, and how often that was."""

    def __init__(self, events: Mapping[EventID, Event]) -> None:
        self.events = dict(events)
        self.asked: list[EventID] = []

    def __getitem__(self, event_id: EventID) -> Event:
        self.asked.append(event_id)
        return self.events[event_id]

    def __iter__(self) -> Iterator[EventID]:
        raise AssertionError("nobody may walk over all events")

    def __len__(self) -> int:
        raise AssertionError("nobody may count all events")


# Properties


@PROPERTY
@given(histories(), st.randoms(use_true_random=False))
def test_the_order_of_the_states_does_not_matter(history: History, random: Any) -> None:
    states = history.ends()
    resolved = resolve_all(history.version, states, history.events)
    shuffled = [dict(random.sample(list(state.items()), len(state))) for state in states]
    random.shuffle(shuffled)
    assert resolve_all(history.version, shuffled, history.events) == resolved
    assert resolve_all(history.version, [*shuffled, shuffled[0]], history.events) == resolved


@PROPERTY
@given(histories())
def test_equal_states_resolve_to_themselves(history: History) -> None:
    for state in history.after.values():
        assert resolve_all(history.version, [state], {}) == state
        assert resolve_all(history.version, [state, dict(state), state], {}) == state


@PROPERTY
@given(histories())
def test_unconflicted_state_is_kept(history: History) -> None:
    states = history.ends()
    resolved = resolve_all(history.version, states, history.events)
    unconflicted, conflicted = split_states(states)
    assert resolved.items() >= unconflicted.items()
    assert all({**unconflicted, **rest} == state for rest, state in zip(conflicted, states, strict=True))
    assert resolve_conflicts(history.version, unconflicted, conflicted, history.events) == {
        key: event_id for key, event_id in resolved.items() if key not in unconflicted
    }
    assert all(history.events[event_id].key == key for key, event_id in resolved.items())


@PROPERTY
@given(histories())
def test_ranks_change_only_the_cost(history: History) -> None:
    states = history.ends()
    plain, ranked = Store(history.events), Store(history.events)
    assert resolve_all(history.version, states, plain) == resolve_all(
        history.version, states, ranked, rank=history.rank()
    )
    for store in (plain, ranked):
        assert len(store.asked) == len(set(store.asked))
    assert set(ranked.asked) <= set(plain.asked)


@PROPERTY
@given(histories(), st.randoms(use_true_random=False), st.booleans())
def test_missing_events_are_reported_until_none_is_missing(history: History, random: Any, ranked: bool) -> None:
    states = history.ends()
    rank = history.rank() if ranked else None
    whole = resolve_all(history.version, states, history.events)
    have: dict[EventID, Event] = {}
    for event_id, event in history.events.items():
        if random.random() < 0.5:
            have[event_id] = event
    while isinstance(answer := resolve(history.version, states, have, rank=rank), Missing):
        assert answer.event_ids
        assert answer.event_ids.isdisjoint(have)
        have |= {event_id: history.events[event_id] for event_id in answer.event_ids}
    assert answer == whole


@PROPERTY
@given(histories())
def test_the_auth_difference_is_computed(history: History) -> None:
    states = history.ends()
    expected = plain_auth_difference(states, history.events)
    assert auth_difference(states, history.events) == expected
    assert auth_difference(states, history.events, rank=history.rank()) == expected


@PROPERTY
@given(histories(), st.data())
def test_the_conflicted_state_subgraph_is_computed(history: History, data: st.DataObject) -> None:
    conflicted = data.draw(st.sets(st.sampled_from(list(history.events))))
    expected = plain_subgraph(conflicted, history.events)
    for rank in (None, history.rank()):
        assert find_conflicted_subgraph(conflicted, KnownEvents(history.events), rank) == expected


# Named cases


@pytest.mark.parametrize("version", ALL)
def test_no_states_resolve_to_an_empty_state(version: RoomVersion) -> None:
    assert resolve(version, [], {}) == {}
    assert resolve(version, [{}, {}], {}) == {}


@pytest.mark.parametrize("version", ALL)
def test_missing_events_are_reported(version: RoomVersion) -> None:
    room = new_room(version)
    before = room.state_map()
    first, second = (room.fork().send(ALICE, "m.room.topic", {"topic": topic}, "") for topic in "ab")
    states: list[State] = [{**before, topic.key: topic.event_id} for topic in (first, second)]
    answer = resolve(version, states, {})
    assert answer == Missing(frozenset([first.event_id, second.event_id]))
    answer = resolve(version, states, {first.event_id: first}, rank={first.event_id: 1})
    assert isinstance(answer, Missing)
    assert second.event_id in answer.event_ids


def test_auth_difference_with_missing_events() -> None:
    room = new_room(V12)
    assert isinstance(auth_difference([room.state_map(), {}], {}), Missing)


@since_version_2
def test_a_ban_wins_over_concurrent_events_of_the_banned_user(version: RoomVersion) -> None:
    room = new_room(version)
    room.member(BOB, "join")
    room.set_levels(**alice_is_admin(version, **{BOB: 50}))
    one, other = room.fork(), room.fork()
    one.member(ALICE, "ban", BOB)
    other.send(BOB, "m.room.topic", {"topic": "mine"}, "")
    other.member(BOB, "ban", CAROL)
    resolved = resolve_all(version, [one.state_map(), other.state_map()], room.events)
    assert resolved == one.state_map()


@since_version_2
def test_the_later_of_two_topics_wins(version: RoomVersion) -> None:
    room = new_room(version)
    one, other = room.fork(), room.fork()
    one.send(ALICE, "m.room.topic", {"topic": "early"}, "")
    other.clock += 1
    later = other.send(ALICE, "m.room.topic", {"topic": "late"}, "")
    resolved = resolve_all(version, [one.state_map(), other.state_map()], room.events)
    assert resolved["m.room.topic", ""] == later.event_id


@since_version_2
def test_a_rejected_auth_event_is_not_used(version: RoomVersion) -> None:
    room = new_room(version, join_rule=None)
    before = room.state_map()
    rules = room.join_rule("public")
    bobs, carols = (room.fork().member(user, "join") for user in (BOB, CAROL))
    # The rules that both joins build upon are in neither state: they come from the auth events.
    states: list[State] = [{**before, joined.key: joined.event_id} for joined in (bobs, carols)]
    both = {bobs.key: bobs.event_id, carols.key: carols.event_id}
    assert resolve_all(version, states, room.events) == {**before, **both}
    assert resolve_all(version, states, room.events, rejected={rules.event_id}) == before


@since_version_2
def test_message_events_in_the_auth_chain_are_ignored(version: RoomVersion) -> None:
    room = new_room(version)
    one = room.fork()
    message = one.append(one.build(ALICE, "m.room.message", {}))
    usual = [room.state[key] for key in room.state if key[0] in ("m.room.create", "m.room.power_levels")]
    usual = [event for event in usual if version is not V12 or event.type != "m.room.create"]
    topic = one.append(
        one.build(ALICE, "m.room.topic", {}, "", auth=[*usual, room.state["m.room.member", ALICE], message])
    )
    resolved = resolve_all(version, [one.state_map(), room.state_map()], room.events)
    assert resolved[topic.key] == topic.event_id
    assert message.event_id not in resolved.values()


def test_power_events_are_recognised() -> None:
    room = new_room(V12)
    room.member(BOB, "join")
    assert is_power_event(room.state["m.room.power_levels", ""])
    assert is_power_event(room.state["m.room.join_rules", ""])
    assert not is_power_event(room.build(ALICE, "m.room.power_levels", {}, "other"))
    assert not is_power_event(room.build(ALICE, "m.room.power_levels", {}))
    assert is_power_event(room.build(ALICE, "m.room.member", {"membership": "ban"}, BOB))
    assert is_power_event(room.build(ALICE, "m.room.member", {"membership": "leave"}, BOB))
    assert not is_power_event(room.build(BOB, "m.room.member", {"membership": "leave"}, BOB))
    assert not is_power_event(room.build(ALICE, "m.room.member", {"membership": "invite"}, DAVE))
    assert not is_power_event(room.build(ALICE, "m.room.member", {"membership": "ban"}))
    assert not is_power_event(room.state["m.room.create", ""])


# Size and malice


def made_up(name: str, event_type: str, state_key: str, version: RoomVersion, auth: list[str], **content: Any) -> Event:
    """An event under a symbolic ID, unsigned."""
    references = (
        [[f"${event_id}", {}] for event_id in auth]
        if version.references_with_hashes
        else [f"${event_id}" for event_id in auth]
    )
    pdu = {
        "type": event_type,
        "state_key": state_key,
        "sender": ALICE,
        "room_id": "!create" if version.room_id_is_create_event_id else "!room:alpha.test",
        "content": content,
        "origin_server_ts": len(name),
        "depth": 1,
        "prev_events": [],
        "auth_events": references,
    }
    return trusted_event(pdu, version, EventID(f"${name}"))


def long_room(version: RoomVersion, length: int) -> tuple[dict[EventID, Event], State]:
    """A room whose power levels were changed `length` times, one after the other."""
    base = [] if version.room_id_is_create_event_id else ["create"]
    made = [
        made_up("create", "m.room.create", "", version, [], creator=ALICE),
        made_up("alice", "m.room.member", ALICE, version, base, membership="join"),
    ]
    before: list[str] = []
    for number in range(length):
        auth = [*base, "alice", *before]
        made.append(made_up(f"levels{number}", "m.room.power_levels", "", version, auth, **alice_is_admin(version)))
        before = [f"levels{number}"]
    events = {event.event_id: event for event in made}
    return events, {event.key: event.event_id for event in made}


@pytest.mark.parametrize("version", [V2, V11, V12])
@pytest.mark.parametrize("ranked", [False, True])
def test_long_auth_chains_are_resolved(version: RoomVersion, ranked: bool) -> None:
    length = 5_000  # several times what Python's stack has room for
    events, state = long_room(version, length)
    base = [] if version is V12 else ["create"]
    topics = [
        made_up(name, "m.room.topic", "", version, [*base, "alice", f"levels{length - back}"])
        for name, back in (("one", 3), ("two", 5))
    ]
    older = {**state, ("m.room.power_levels", ""): EventID("$levels0")}
    states = [{**state, topics[0].key: topics[0].event_id}, {**older, topics[1].key: topics[1].event_id}]
    events |= {topic.event_id: topic for topic in topics}
    rank = {event_id: number for number, event_id in enumerate(events)} if ranked else None
    resolved = resolve_all(version, states, events, rank=rank)
    assert resolved["m.room.power_levels", ""] == f"$levels{length - 1}"
    assert resolved["m.room.topic", ""] == "$one"


@pytest.mark.parametrize("version", [V2, V11, V12])
def test_a_recent_fork_reads_only_the_end_of_the_chain(version: RoomVersion) -> None:
    events, state = long_room(version, 5_000)
    base = [] if version is V12 else ["create"]
    topics = [made_up(name, "m.room.topic", "", version, [*base, "alice", "levels4999"]) for name in ("one", "three")]
    events |= {topic.event_id: topic for topic in topics}
    # Many that nobody disagrees about
    members = [made_up(f"m{n}", "m.room.member", f"@{n}:b.test", version, [*base, "levels0"]) for n in range(500)]
    events |= {member.event_id: member for member in members}
    state |= {member.key: member.event_id for member in members}
    store = Store(events)
    states = [{**state, topic.key: topic.event_id} for topic in topics]
    rank = {event_id: number for number, event_id in enumerate(events)}
    assert resolve_all(version, states, store, rank=rank)["m.room.topic", ""] == "$three"
    assert len(store.asked) < 10


def test_unconflicted_events_are_read_only_if_they_may_matter() -> None:
    room = new_room(V11)
    room.member(BOB, "join")
    room.set_levels(**alice_is_admin(V11, **{BOB: 50}))
    for number in range(20):
        room.send(ALICE, "org.example.unrelated", {}, f"{number}")
    one, other = room.fork(), room.fork()
    one.send(ALICE, "m.room.topic", {"topic": "a"}, "")
    other.send(BOB, "m.room.topic", {"topic": "b"}, "")
    store = Store(room.events)
    resolve_all(V11, [one.state_map(), other.state_map()], store)
    unrelated = {event.event_id for event in room.events.values() if event.type == "org.example.unrelated"}
    # BOB's membership is in the difference, but nobody disagrees about it.
    assert unrelated.isdisjoint(store.asked)


@pytest.mark.parametrize("ranked", [False, True])
def test_events_that_cite_each_other_are_tolerated(ranked: bool) -> None:
    """Possible only with the event IDs of versions 1 and 2, because they are not hashes."""
    events, state = long_room(V2, 3)
    loop = [
        made_up("a", "m.room.power_levels", "", V2, ["create", "alice", "b"]),
        made_up("b", "m.room.power_levels", "", V2, ["create", "alice", "a"]),
        made_up("self", "m.room.power_levels", "", V2, ["create", "alice", "self"]),
        made_up("topic", "m.room.topic", "", V2, ["create", "alice", "a"]),
    ]
    events |= {event.event_id: event for event in loop}
    rank = {event_id: number for number, event_id in enumerate(events)} if ranked else None
    states: list[State] = [{**state, event.key: event.event_id} for event in loop]
    resolved = resolve_all(V2, states, events, rank=rank)
    assert resolved == resolve_all(V2, states[::-1], events, rank=rank)
    assert resolved["m.room.member", ALICE] == "$alice"


def test_a_looping_mainline_is_tolerated() -> None:
    events, state = long_room(V2, 1)
    loop = [
        made_up("a", "m.room.power_levels", "", V2, ["create", "alice", "b"], users={ALICE: 100}),
        made_up("b", "m.room.power_levels", "", V2, ["create", "alice", "a"], users={ALICE: 100}),
        made_up("c", "m.room.power_levels", "", V2, ["create", "alice", "d"], users={ALICE: 100}),
        made_up("d", "m.room.power_levels", "", V2, ["create", "alice", "c"], users={ALICE: 100}),
        made_up("e", "m.room.topic", "", V2, ["create", "alice", "c"]),
        made_up("ff", "m.room.topic", "", V2, ["create", "alice", "a"]),
    ]
    events |= {event.event_id: event for event in loop}
    common: State = {**state, ("m.room.power_levels", ""): EventID("$a")}
    states = [{**common, event.key: event.event_id} for event in loop[4:]]
    assert resolve_all(V2, states, events)["m.room.topic", ""] == "$ff"
