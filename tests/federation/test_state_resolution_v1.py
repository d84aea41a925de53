"""State resolution of room version 1. Spec: rooms/v1/#state-resolution"""

from __future__ import annotations

from hashlib import sha1

from hypothesis import given
from hypothesis import strategies as st

from homeserver.federation.event import Event, trusted_event
from homeserver.federation.room_versions import ROOM_VERSIONS
from homeserver.federation.state_resolution import Missing, resolve
from tests.federation.histories_for_tests import State, histories, resolve_all
from tests.federation.json_values import PROPERTY
from tests.federation.rooms_for_tests import ALICE, BOB, CAROL, DAVE, Room, alice_is_admin, new_room

V1 = ROOM_VERSIONS["1"]


def resolved(*branches: Room) -> State:
    return resolve_all(V1, [branch.state_map() for branch in branches], branches[0].events)


def with_depth(room: Room, event: Event, depth: int) -> Event:
    """The event at another depth, in the room in its place."""
    event = trusted_event({**event.pdu, "depth": depth}, V1, event.event_id)
    return room.append(event)


def room_of_three() -> Room:
    room = new_room(V1)
    room.member(BOB, "join")
    room.member(CAROL, "join")
    room.set_levels(**alice_is_admin(V1, **{BOB: 50}))
    return room


def test_entries_in_only_one_state_do_not_conflict() -> None:
    room = room_of_three()
    one, other = room.fork(), room.fork()
    topic = one.send(ALICE, "m.room.topic", {}, "")
    name = other.send(ALICE, "m.room.name", {}, "")
    assert resolved(one, other) == {**room.state_map(), topic.key: topic.event_id, name.key: name.event_id}


def test_each_power_levels_event_must_be_allowed_by_the_previous_one() -> None:
    room = room_of_three()
    one, other = room.fork(), room.fork()
    demoted = one.set_levels(**alice_is_admin(V1))
    other.set_levels(**alice_is_admin(V1, **{BOB: 50}), events={"m.room.power_levels": 50})
    bobs = other.send(BOB, "m.room.power_levels", other.state["m.room.power_levels", ""].content, "")
    assert demoted.depth < bobs.depth
    # The shallower comes first, and does not let BOB change anything any more.
    assert resolved(one, other)[demoted.key] == demoted.event_id
    assert resolved(other, one)[demoted.key] == demoted.event_id


def test_the_deeper_power_levels_win_if_allowed() -> None:
    room = room_of_three()
    one, other = room.fork(), room.fork()
    one.set_levels(**alice_is_admin(V1, **{BOB: 20}))
    other.set_levels(**alice_is_admin(V1, **{BOB: 30}))
    last = other.set_levels(**alice_is_admin(V1, **{BOB: 40}))
    assert resolved(one, other)[last.key] == last.event_id


def test_power_levels_are_resolved_before_members_and_members_before_others() -> None:
    room = room_of_three()
    one, other = room.fork(), room.fork()
    demoted = one.set_levels(**alice_is_admin(V1))
    kicked = one.member(ALICE, "leave", BOB)
    alices = one.send(ALICE, "m.room.topic", {"topic": "Alice's"}, "")
    other.member(BOB, "join", displayname="Bobby")
    with_depth(other, other.build(BOB, "m.room.topic", {"topic": "Bob's"}, ""), 100)
    state = resolved(one, other)
    assert state[demoted.key] == demoted.event_id
    assert state[kicked.key] == kicked.event_id
    assert state[alices.key] == alices.event_id


def test_join_rules_are_resolved_before_members() -> None:
    room = room_of_three()
    one, other = room.fork(), room.fork()
    closed = with_depth(one, one.build(ALICE, "m.room.join_rules", {"join_rule": "invite"}, ""), 100)
    one.member(ALICE, "invite", DAVE)
    one.member(ALICE, "leave", DAVE)
    joined = with_depth(other, other.build(DAVE, "m.room.member", {"membership": "join"}, DAVE), 200)
    state = resolved(one, other)
    assert state[closed.key] == closed.event_id
    assert state[joined.key] == one.state[joined.key].event_id


def test_conflicts_of_members_are_resolved_independently() -> None:
    room = room_of_three()
    one, other = room.fork(), room.fork()
    # On one side CAROL is kicked by BOB, on the other BOB by ALICE.
    one.member(BOB, "leave", CAROL)
    other.member(ALICE, "leave", BOB)
    state = resolved(one, other)
    assert state == resolved(other, one)
    assert state["m.room.member", BOB] == other.state["m.room.member", BOB].event_id


def test_the_deepest_allowed_of_other_events_wins() -> None:
    room = room_of_three()
    one, other = room.fork(), room.fork()
    shallow = one.send(ALICE, "m.room.topic", {"topic": "shallow"}, "")
    deep = with_depth(other, other.build(ALICE, "m.room.topic", {"topic": "deep"}, ""), 100)
    assert resolved(one, other)[deep.key] == deep.event_id
    third = room.fork()
    with_depth(third, third.build(CAROL, "m.room.topic", {"topic": "not allowed"}, ""), 200)
    assert resolved(one, other, third)[deep.key] == deep.event_id
    assert resolved(one, third)[deep.key] == shallow.event_id


def test_if_no_event_is_allowed_the_oldest_wins() -> None:
    room = room_of_three()
    branches = [room.fork() for _ in range(3)]
    events = [
        with_depth(branch, branch.build(CAROL, "m.room.topic", {"topic": str(depth)}, ""), depth)
        for depth, branch in enumerate(branches, 50)
    ]
    assert resolved(*branches)["m.room.topic", ""] == events[0].event_id


def test_among_equally_deep_the_lowest_sha1_stands() -> None:
    room = room_of_three()
    branches = [room.fork() for _ in range(6)]
    topics = [branch.send(ALICE, "m.room.topic", {}, "").event_id for branch in branches]
    expected = min(topics, key=lambda event_id: sha1(event_id.encode()).digest())
    assert resolved(*branches)["m.room.topic", ""] == expected


def test_missing_events_are_reported() -> None:
    room = room_of_three()
    one, other = room.fork(), room.fork()
    topics = [branch.send(ALICE, "m.room.topic", {}, "") for branch in (one, other)]
    states = [one.state_map(), other.state_map()]
    missing = frozenset(topic.event_id for topic in topics)
    assert resolve(V1, states, {}) == Missing(missing)
    have = {topic.event_id: topic for topic in topics}
    answer = resolve(V1, states, have)
    assert isinstance(answer, Missing)
    assert answer.event_ids <= set(room.state_map().values())


@PROPERTY
@given(histories(st.just(V1)), st.randoms(use_true_random=False))
def test_conflicts_are_ordered_by_depth_and_hash(history, random) -> None:  # type: ignore[no-untyped-def]
    states = history.ends()
    shuffled = list(states)
    random.shuffle(shuffled)
    assert resolve_all(V1, states, history.events) == resolve_all(V1, shuffled, history.events)


def test_invitations_conflict_like_other_memberships() -> None:
    room = room_of_three()
    one, other = room.fork(), room.fork()
    one.member(ALICE, "invite", DAVE)
    other.member(ALICE, "ban", DAVE)
    assert resolved(one, other)["m.room.member", DAVE] == resolved(other, one)["m.room.member", DAVE]
