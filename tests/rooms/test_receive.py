"""Events of peers: what becomes of each, and that the tables agree afterwards (`rooms` checks that at each test's end).

The peer is a `Room` of tests/federation: it makes and signs events of any server, allowed or not.
"""

from __future__ import annotations

from typing import Any

import pytest
from msgspec.structs import replace

from homeserver.errors import MatrixError
from homeserver.federation.build import Draft, build_event, reference_to
from homeserver.federation.event import Event
from homeserver.federation.room_versions import ROOM_VERSIONS
from homeserver.federation.state_resolution import resolve
from homeserver.rooms.gaps import list_missing
from homeserver.rooms.graph import Missing
from homeserver.rooms.heads import get_head
from homeserver.rooms.membership import find_membership
from homeserver.rooms.outliers import store_outliers
from homeserver.rooms.receive import Received
from homeserver.rooms.storage import Status
from homeserver.rooms.timeline import END
from tests.federation.rooms_for_tests import ALICE, BOB, CAROL, Room, alice_is_admin, key_of, new_room
from tests.support.rooms import OUR_ALICE, OUR_BOB, Rooms, take_over

VERSIONS = ["1", "2", "3", "6", "9", "10", "11", "12"]


def said(room: Room, sender: str, text: str = "hello", **options: Any) -> Event:
    return room.send(sender, "m.room.message", {"msgtype": "m.text", "body": text}, **options)


async def joined(rooms: Rooms, version: str = "12") -> Room:
    """A room of ALICE at a peer, with BOB and CAROL in it, that OUR_ALICE has joined."""
    room = new_room(ROOM_VERSIONS[version])
    room.member(BOB, "join")
    room.member(CAROL, "join")
    await rooms.adopt(room)
    return room


async def accepted(rooms: Rooms, *events: Event) -> None:
    for event in events:
        outcome = await rooms.receive(event)
        assert isinstance(outcome, Received), (event, outcome)
        assert outcome.status == Status.TIMELINE, (event, outcome)


@pytest.mark.parametrize("version", VERSIONS)
async def test_events_of_peers_are_appended_in_order(rooms: Rooms, version: str) -> None:
    room = await joined(rooms, version)
    events = [said(room, BOB), said(room, CAROL), room.send(ALICE, "m.room.topic", {"topic": "bees"}, "")]
    await accepted(rooms, *events)
    assert (await rooms.timeline(room.room_id))[-3:] == [event.event_id for event in events]
    assert await rooms.state(room.room_id) == room.state_map()
    assert await rooms.extremities(room.room_id) == {events[-1].event_id}


async def test_known_events_are_ignored(rooms: Rooms) -> None:
    room = await joined(rooms)
    event = said(room, BOB)
    first = await rooms.receive(event)
    second = await rooms.receive(event)
    assert isinstance(first, Received) and isinstance(second, Received)
    assert (first.is_new, second.is_new) == (True, False)
    assert second.position == first.position


async def test_events_of_unknown_rooms_need_their_auth_events(rooms: Rooms) -> None:
    room = new_room(ROOM_VERSIONS["12"])
    event = said(room, ALICE)
    assert await rooms.receive(event) == Missing(auth_events=frozenset(event.auth_events))


# Ancestors and auth events that are missing


async def test_missing_ancestors_are_reported(rooms: Rooms) -> None:
    room = await joined(rooms)
    between = said(room, BOB)
    last = said(room, BOB)
    assert await rooms.receive(last) == Missing(prev_events=frozenset({between.event_id}))
    await accepted(rooms, between, last)


async def test_missing_auth_events_are_reported(rooms: Rooms) -> None:
    room = await joined(rooms)
    before = room.last
    join = room.member("@dave:delta.test", "join")
    message = said(room, "@dave:delta.test", prev=before)
    assert await rooms.receive(message) == Missing(auth_events=frozenset({join.event_id}))
    assert await rooms.write(store_outliers, [join]) == frozenset()
    outcome = await rooms.receive(message)
    assert isinstance(outcome, Received)
    # dave is not in the state that the message follows on, whatever its auth events say
    assert outcome.status == Status.REJECTED


async def test_an_event_without_prev_events_is_refused(rooms: Rooms) -> None:
    room = await joined(rooms)
    assert await rooms.receive(room.build(BOB, "m.room.message", {}, prev=[])) == Missing()


async def test_an_event_without_prev_events_is_refused_after_we_left(rooms: Rooms) -> None:
    room = await joined(rooms)
    room.append(await rooms.member(room.room_id, OUR_ALICE, "leave"))
    await rooms.adopt(room)
    assert await rooms.receive(room.build(BOB, "m.room.message", {}, prev=[])) == Missing()


async def test_an_event_that_follows_another_room_is_refused(rooms: Rooms) -> None:
    room = await joined(rooms)
    other = await rooms.create(OUR_ALICE)
    foreign = await rooms.append(other, OUR_ALICE)
    event = room.build(BOB, "m.room.message", {}, prev=[*room.last, foreign])
    assert await rooms.receive(event) == Missing()


async def test_a_second_create_event_is_refused(rooms: Rooms) -> None:
    room = await joined(rooms, "11")
    create = room.build(ALICE, "m.room.create", {"room_version": "11", "again": True}, "", prev=[], auth=[])
    assert await rooms.receive(create) == Missing()


async def test_an_event_after_a_gap_is_placed_with_a_given_state(rooms: Rooms) -> None:
    room = await joined(rooms)
    lost = room.send(ALICE, "m.room.topic", {"topic": "lost"}, "")
    event = said(room, BOB)
    state = [each.event_id for each in room.state.values()]
    # The state names an event that is not here yet.
    assert await rooms.receive(event, state=state) == Missing(auth_events=frozenset({lost.event_id}))
    await rooms.write(store_outliers, [lost])
    outcome = await rooms.receive(event, state=state)
    assert isinstance(outcome, Received) and outcome.status == Status.TIMELINE
    assert await rooms.read(list_missing, room.room_id, END, 1)
    assert (await rooms.state_before(event.event_id))["m.room.topic", ""] == lost.event_id
    assert (await rooms.state(room.room_id))["m.room.topic", ""] == lost.event_id


async def test_a_given_state_cannot_omit_the_create_event(rooms: Rooms) -> None:
    room = await joined(rooms)
    said(room, BOB)
    event = said(room, BOB)
    outcome = await rooms.receive(event, state=[room.state["m.room.member", BOB].event_id])
    assert isinstance(outcome, Received)
    create_id = room.state["m.room.create", ""].event_id
    assert (await rooms.state_before(event.event_id))["m.room.create", ""] == create_id


async def test_a_late_ancestor_does_not_become_an_extremity(rooms: Rooms) -> None:
    room = await joined(rooms)
    late = said(room, BOB, "late")
    event = said(room, CAROL)
    await rooms.receive(event, state=[each.event_id for each in room.state.values()])
    await accepted(rooms, late)
    assert await rooms.extremities(room.room_id) == {event.event_id}
    missing = await rooms.read(list_missing, room.room_id, END, 10)
    assert late.event_id not in [event_id for event_id, _ in missing]
    # It is news anyway.
    assert (await rooms.timeline(room.room_id))[-1] == late.event_id
    head = await rooms.read(get_head, room.room_id)
    assert head.last_position == (await rooms.stored(late.event_id)).position


async def test_an_outlier_can_be_placed_later(rooms: Rooms) -> None:
    room = await joined(rooms)
    outlier = room.send(ALICE, "m.room.topic", {"topic": "bees"}, "")
    await rooms.write(store_outliers, [outlier])
    stored = await rooms.stored(outlier.event_id)
    assert (stored.status, stored.ordering, stored.state_before) == (Status.OUTLIER, None, None)
    message = said(room, BOB)
    assert await rooms.receive(message) == Missing(prev_events=frozenset({outlier.event_id}))
    await accepted(rooms, outlier, message)
    assert (await rooms.timeline(room.room_id))[-2:] == [outlier.event_id, message.event_id]
    assert (await rooms.stored(outlier.event_id)).position == stored.position


async def test_outliers_wait_for_their_auth_events(rooms: Rooms) -> None:
    room = await joined(rooms)
    join = room.member("@dave:delta.test", "join")
    message = said(room, "@dave:delta.test")
    assert await rooms.write(store_outliers, [message]) == frozenset({join.event_id})
    assert await rooms.write(store_outliers, [message, join]) == frozenset()
    assert (await rooms.stored(message.event_id)).status == Status.OUTLIER


async def test_outliers_that_their_auth_events_forbid_are_rejected(rooms: Rooms) -> None:
    room = await joined(rooms)
    topic = room.append(room.build(BOB, "m.room.topic", {"topic": "mine"}, ""))
    forged = said(room, BOB, auth=[*room.state.values()])
    await rooms.write(store_outliers, [topic, forged])
    assert (await rooms.stored(topic.event_id)).status == Status.REJECTED
    assert (await rooms.stored(forged.event_id)).status == Status.REJECTED


async def test_outliers_of_a_room_with_a_deep_create_event_are_stored(rooms: Rooms) -> None:
    """No event of room version 12 cites the create event, so its sender can choose any depth."""
    version = ROOM_VERSIONS["12"]
    draft = Draft(None, ALICE, "m.room.create", {"room_version": "12"}, "", origin_server_ts=1)
    create = build_event(
        draft, version, prev_events=[], auth_events=[], depth=1000, server_name="alpha.test", key=key_of("alpha.test")
    )
    room = Room(version, room_id=create.room_id)
    room.append(create)
    room.clock = 2
    room.append(join_of_depth(room, 2))
    room.join_rule("public")
    others = [event for event in room.events.values() if event is not create]
    assert await rooms.write(store_outliers, others) >= frozenset({create.event_id})
    await rooms.adopt(room)
    assert await rooms.read(find_membership, room.room_id, ALICE) == "join"


def join_of_depth(room: Room, depth: int) -> Event:
    """ALICE's join, which says that it lies at this depth."""
    draft = Draft(room.room_id, ALICE, "m.room.member", {"membership": "join"}, ALICE, origin_server_ts=room.clock)
    return build_event(
        draft,
        room.version,
        prev_events=[reference_to(event) for event in room.last],
        auth_events=[],
        depth=depth,
        server_name="alpha.test",
        key=key_of("alpha.test"),
    )


# Forks


@pytest.mark.parametrize("version", VERSIONS)
async def test_two_branches_are_merged(rooms: Rooms, version: str) -> None:
    room = await joined(rooms, version)
    branch = room.fork()
    name = room.send(ALICE, "m.room.name", {"name": "left"}, "")
    topic = branch.send(ALICE, "m.room.topic", {"topic": "right"}, "")
    await accepted(rooms, name, topic)
    assert await rooms.extremities(room.room_id) == {name.event_id, topic.event_id}
    assert await rooms.state(room.room_id) == {**room.state_map(), ("m.room.topic", ""): topic.event_id}
    ours = await rooms.append(room.room_id, OUR_ALICE)
    assert set(ours.prev_events) == {name.event_id, topic.event_id}
    assert await rooms.extremities(room.room_id) == {ours.event_id}


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
async def test_conflicting_branches_are_resolved(rooms: Rooms, version: str, order: tuple[int, int]) -> None:
    room = await joined(rooms, version)
    ban, branch = room, room.fork()
    ban_events = [ban.member(ALICE, "ban", BOB)]
    branch.clock += 5000
    branch_events = [said(branch, BOB), branch.member(BOB, "join", displayname="Bobby"), said(branch, BOB)]
    for events in [(ban_events, branch_events)[number] for number in order]:
        await rooms.receive_all(events)
    expected = resolve(room.version, [ban.state_map(), branch.state_map()], {**ban.events, **branch.events})
    # A server that received the ban first has soft-failed the rest, and its state stays at the ban.
    state = await rooms.state(room.room_id)
    assert state in (expected, ban.state_map())
    assert state["m.room.member", BOB] == ban_events[0].event_id or order == (1, 0)
    membership = await rooms.read(find_membership, room.room_id, BOB)
    assert membership == ("ban" if state["m.room.member", BOB] == ban_events[0].event_id else "join")


async def test_forks_of_messages_need_no_resolution(rooms: Rooms) -> None:
    room = await joined(rooms)
    branches = [room.fork() for _ in range(3)]
    before = await rooms.read(lambda tx: tx.all("SELECT * FROM resolved_heads"))
    events = [said(branch, BOB, str(number)) for number, branch in enumerate(branches)]
    await accepted(rooms, *events)
    assert await rooms.extremities(room.room_id) == {event.event_id for event in events}
    assert await rooms.read(lambda tx: tx.all("SELECT * FROM resolved_heads")) == before


async def test_more_extremities_than_an_event_may_cite_are_merged_in_steps(rooms: Rooms) -> None:
    room = await joined(rooms)
    branches = [room.fork() for _ in range(25)]
    for number, branch in enumerate(branches):
        branch.send(ALICE, "org.example.of_branch", {"n": number}, str(number))
    await accepted(rooms, *(branch.last[0] for branch in branches))
    whole = await rooms.state(room.room_id)
    assert sum(key[0] == "org.example.of_branch" for key in whole) == 25
    ours = await rooms.append(room.room_id, OUR_ALICE)
    assert len(ours.prev_events) == 20
    assert len(await rooms.extremities(room.room_id)) == 6
    # The state before it is that after the events that it names, as every other server computes it.
    named = await rooms.state_before(ours.event_id)
    assert sum(key[0] == "org.example.of_branch" for key in named) == 20
    assert await rooms.state(room.room_id) == whole
    second = await rooms.append(room.room_id, OUR_ALICE)
    assert len(second.prev_events) == 6
    assert await rooms.extremities(room.room_id) == {second.event_id}
    assert await rooms.state_before(second.event_id) == whole


async def test_a_member_may_be_removed_by_state_resolution(rooms: Rooms) -> None:
    """The join was allowed on its branch, and is not once both are known: the room was closed before."""
    room = await joined(rooms)
    branch = room.fork()
    closed = room.join_rule("invite")
    branch.clock = room.clock + 60_000
    joins = branch.member("@dave:delta.test", "join")
    await accepted(rooms, joins)
    assert await rooms.read(find_membership, room.room_id, "@dave:delta.test") == "join"
    await accepted(rooms, closed)
    assert ("m.room.member", "@dave:delta.test") not in await rooms.state(room.room_id)
    assert await rooms.read(find_membership, room.room_id, "@dave:delta.test") == "leave"


# Rejected and soft-failed


async def test_an_event_forbidden_by_the_state_before_it_is_rejected(rooms: Rooms) -> None:
    room = await joined(rooms)
    allowed = dict(room.state)
    gone = room.member(BOB, "leave")
    auth = [allowed["m.room.power_levels", ""], allowed["m.room.member", BOB]]
    message = room.build(BOB, "m.room.message", {"body": "still here"}, auth=auth)
    await accepted(rooms, gone)
    outcome = await rooms.receive(message)
    assert isinstance(outcome, Received)
    assert outcome.status == Status.REJECTED and outcome.reason
    assert message.event_id not in await rooms.timeline(room.room_id)
    assert await rooms.extremities(room.room_id) == {gone.event_id}
    assert (await rooms.receive(message)) == replace(outcome, is_new=False, reason="")


async def test_events_after_a_rejected_one_ignore_its_effect(rooms: Rooms) -> None:
    room = await joined(rooms)
    before = room.state_map()
    bad = room.build(BOB, "m.room.topic", {"topic": "mine"}, "")
    after = room.build(CAROL, "m.room.message", {"body": "hm"}, prev=[bad])
    outcome = await rooms.receive(bad)
    assert isinstance(outcome, Received) and outcome.status == Status.REJECTED
    await accepted(rooms, after)
    assert await rooms.state(room.room_id) == before
    # It follows, by way of the rejected one, on what was the end.
    assert await rooms.extremities(room.room_id) == {after.event_id}


async def test_a_rejected_outlier_can_be_placed(rooms: Rooms) -> None:
    """Else whatever follows on it could never be received."""
    room = await joined(rooms)
    bad = room.build(BOB, "m.room.topic", {"topic": "mine"}, "")
    after = room.build(CAROL, "m.room.message", {"body": "hm"}, prev=[bad])
    await rooms.write(store_outliers, [bad])
    assert await rooms.receive(after) == Missing(prev_events=frozenset({bad.event_id}))
    outcome = await rooms.receive(bad)
    assert isinstance(outcome, Received) and outcome.status == Status.REJECTED
    await accepted(rooms, after)


async def test_an_event_forbidden_by_the_current_state_is_soft_failed(rooms: Rooms) -> None:
    room = await joined(rooms)
    branch = room.fork()
    ban = room.member(ALICE, "ban", BOB)
    await accepted(rooms, ban)
    evasion = said(branch, BOB, "I was here before")
    outcome = await rooms.receive(evasion)
    assert isinstance(outcome, Received)
    assert outcome.status == Status.SOFT_FAILED and outcome.reason
    assert await rooms.extremities(room.room_id) == {ban.event_id}
    assert evasion.event_id not in await rooms.timeline(room.room_id)
    # Others may build on it, and are not held responsible.
    after = branch.build(CAROL, "m.room.message", {"body": "hm"}, prev=[evasion, ban])
    await accepted(rooms, after)
    assert await rooms.extremities(room.room_id) == {after.event_id}


async def test_history_is_never_soft_failed(rooms: Rooms) -> None:
    room = new_room(ROOM_VERSIONS["12"])
    room.member(BOB, "join")
    state = [event.event_id for event in room.state.values()]
    old = said(room, BOB, "long ago")
    room.member(BOB, "leave")
    await rooms.adopt(room)
    outcome = await rooms.receive(old, state=state, ordering=17)
    assert isinstance(outcome, Received) and outcome.status == Status.TIMELINE
    assert (await rooms.timeline(room.room_id))[0] == old.event_id


@pytest.mark.parametrize("version", VERSIONS)
async def test_events_citing_rejected_auth_events_are_rejected(rooms: Rooms, version: str) -> None:
    room = await joined(rooms, version)
    levels = alice_is_admin(room.version, **{BOB: 100})
    forged = room.append(room.build(BOB, "m.room.power_levels", levels, ""))
    topic = room.build(BOB, "m.room.topic", {"topic": "mine"}, "")
    for event in (forged, topic):
        outcome = await rooms.receive(event)
        assert isinstance(outcome, Received) and outcome.status == Status.REJECTED


# Entering and leaving


@pytest.mark.parametrize("version", VERSIONS)
async def test_a_joined_room_gets_the_state_of_the_resident(rooms: Rooms, version: str) -> None:
    room = new_room(ROOM_VERSIONS[version])
    room.member(BOB, "join")
    room.member(BOB, "leave")
    join = await rooms.adopt(room)
    assert await rooms.state(room.room_id) == room.state_map()
    assert await rooms.timeline(room.room_id) == [join.event_id]
    assert await rooms.read(find_membership, room.room_id, BOB) == "leave"
    assert await rooms.read(find_membership, room.room_id, OUR_ALICE) == "join"
    assert await rooms.read(list_missing, room.room_id, END, 1)
    ours = await rooms.append(room.room_id, OUR_ALICE)
    assert ours.prev_events == (join.event_id,)


async def test_a_join_forbidden_by_its_state_changes_nothing(rooms: Rooms) -> None:
    room = new_room(ROOM_VERSIONS["12"], join_rule="invite")
    before = await _tables(rooms)
    with pytest.raises(MatrixError, match="M_FORBIDDEN"):
        await rooms.adopt(room)
    assert await _tables(rooms) == before


@pytest.mark.parametrize("missing", [("m.room.create", ""), ("m.room.power_levels", "")])
async def test_a_join_with_an_incomplete_state_changes_nothing(rooms: Rooms, missing: tuple[str, str]) -> None:
    room = new_room(ROOM_VERSIONS["11"])
    join = room.build(OUR_ALICE, "m.room.member", {"membership": "join"}, OUR_ALICE)
    state = [event for key, event in room.state.items() if key != missing]
    before = await _tables(rooms)
    try:
        outcome = await rooms.write(take_over, join, state, state)
    except MatrixError as error:
        assert error.status == 502
    else:
        assert isinstance(outcome, Missing)
        return  # the driver fetches what is missing, and what came stays as outliers
    assert await _tables(rooms) == before


async def _tables(rooms: Rooms) -> list[Any]:
    names = ("events", "rooms", "memberships")
    queries = {name: "SELECT * FROM " + name for name in names}
    return [await rooms.read(lambda tx, query=query: tx.all(query)) for query in queries.values()]


async def test_a_known_room_cannot_be_replaced_by_another(rooms: Rooms) -> None:
    """Room ids of the older versions are chosen freely, so that two create events may claim the same."""
    room = await joined(rooms, "10")
    room.append(await rooms.member(room.room_id, OUR_ALICE, "leave"))
    other = new_room(ROOM_VERSIONS["10"], forged=True)
    assert other.room_id == room.room_id
    with pytest.raises(MatrixError, match="a different room"):
        await rooms.adopt(other)


async def test_a_room_can_be_joined_again_after_leaving(rooms: Rooms) -> None:
    room = await joined(rooms)
    await accepted(rooms, said(room, BOB, "before"))
    room.append(await rooms.member(room.room_id, OUR_ALICE, "leave"))
    assert await rooms.read(find_membership, room.room_id, OUR_ALICE) == "leave"
    room.member(BOB, "leave")
    room.send(ALICE, "m.room.topic", {"topic": "while you were out"}, "")
    join = await rooms.adopt(room)
    assert await rooms.extremities(room.room_id) == {join.event_id}
    assert await rooms.state(room.room_id) == room.state_map()
    assert await rooms.read(find_membership, room.room_id, BOB) == "leave"
    assert await rooms.read(list_missing, room.room_id, END, 1)
    await accepted(rooms, said(room, ALICE, "welcome back"))


async def test_a_room_can_be_joined_again_if_nothing_has_happened(rooms: Rooms) -> None:
    room = await joined(rooms)
    room.append(await rooms.member(room.room_id, OUR_ALICE, "leave"))
    join = await rooms.adopt(room)
    assert await rooms.extremities(room.room_id) == {join.event_id}
    await accepted(rooms, said(room, ALICE))


async def test_local_users_invited_in_the_meantime_keep_their_invitations(rooms: Rooms) -> None:
    room = await joined(rooms)
    invite = room.member(ALICE, "invite", OUR_BOB)
    await accepted(rooms, invite)
    assert await rooms.read(find_membership, room.room_id, OUR_BOB) == "invite"
    branch = room.fork()
    await accepted(rooms, room.member(ALICE, "leave", OUR_BOB))
    # What follows on the other branch does not bring the invitation back.
    await accepted(rooms, said(branch, CAROL))
    assert await rooms.read(find_membership, room.room_id, OUR_BOB) == "leave"
