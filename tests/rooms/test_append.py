"""This server's own events: appended in one transaction, or not at all."""

from __future__ import annotations

from typing import Any

import pytest

from homeserver.database import Transaction
from homeserver.errors import MatrixError
from homeserver.federation import canonical_json
from homeserver.federation.build import Draft
from homeserver.federation.event import AUTH_EVENTS_MAX
from homeserver.federation.identifiers import EventID, RoomID, UserID
from homeserver.federation.redaction import redact
from homeserver.federation.room_versions import ROOM_VERSIONS
from homeserver.federation.signing import verify_json
from homeserver.limits import STATE_AHEAD_MS_MAX
from homeserver.rooms.append import append_create, append_local, build_template, build_unplaced
from homeserver.rooms.events import find_event
from homeserver.rooms.heads import get_head
from homeserver.rooms.membership import find_room_membership
from tests.federation.rooms_for_tests import ALICE, new_room
from tests.support.rooms import KEY, OUR_ALICE, OUR_BOB, OUR_CAROL, OURS, START_MS, Rooms

ALL_VERSIONS = list(ROOM_VERSIONS)


async def refused(rooms: Rooms, *args: Any, **kwargs: Any) -> tuple[int, str]:
    """Status and errcode of an append that must fail, and change nothing."""
    before = await rooms.read(_everything)
    with pytest.raises(MatrixError) as caught:
        await rooms.append(*args, **kwargs)
    assert await rooms.read(_everything) == before
    return caught.value.status, caught.value.errcode


def _everything(tx: Transaction) -> list[Any]:
    return [
        tx.all("SELECT * FROM events ORDER BY position"),
        tx.all("SELECT * FROM rooms ORDER BY room_nid"),
        tx.all("SELECT * FROM memberships ORDER BY user_nid, room_nid"),
        tx.all("SELECT * FROM state_nodes ORDER BY node_id"),
    ]


@pytest.mark.parametrize("version", ALL_VERSIONS)
async def test_a_message_follows_the_last_event(rooms: Rooms, version: str) -> None:
    room_id = await rooms.create(OUR_ALICE, OUR_BOB, version=version)
    first = await rooms.append(room_id, OUR_ALICE)
    second = await rooms.append(room_id, OUR_BOB)
    assert second.prev_events == (first.event_id,)
    assert second.depth == first.depth + 1
    assert await rooms.extremities(room_id) == {second.event_id}
    assert (await rooms.timeline(room_id))[-2:] == [first.event_id, second.event_id]


@pytest.mark.parametrize("version", ALL_VERSIONS)
async def test_stored_events_are_returned_as_signed(rooms: Rooms, version: str) -> None:
    room_id = await rooms.create(OUR_ALICE, version=version)
    sent = await rooms.append(room_id, OUR_ALICE, content={"body": "wörld", "n": [1, {"a": None}], "yes": True})
    stored = await rooms.read(find_event, sent.event_id)
    assert stored.pdu == sent.pdu
    key = KEY
    signed = redact(stored.pdu, stored.version)
    assert verify_json(signed, OURS, key.key_id, key.verify_key_base64)


async def test_auth_events_are_taken_from_the_state(rooms: Rooms) -> None:
    room_id = await rooms.create(OUR_ALICE, OUR_BOB, version="11")
    state = await rooms.state(room_id)
    message = await rooms.append(room_id, OUR_BOB)
    assert set(message.auth_events) == {
        state["m.room.create", ""],
        state["m.room.power_levels", ""],
        state["m.room.member", OUR_BOB],
    }
    assert len(message.auth_events) <= AUTH_EVENTS_MAX


async def test_state_events_change_the_state_and_messages_do_not(rooms: Rooms) -> None:
    room_id = await rooms.create(OUR_ALICE)
    before = await rooms.state(room_id)
    await rooms.append(room_id, OUR_ALICE)
    assert await rooms.state(room_id) == before
    topic = await rooms.append(room_id, OUR_ALICE, "m.room.topic", {"topic": "bees"}, "")
    assert await rooms.state(room_id) == {**before, ("m.room.topic", ""): topic.event_id}
    assert await rooms.state_before(topic.event_id) == before


@pytest.mark.parametrize(
    ("sender", "event_type", "content", "state_key", "refusal"),
    [
        (OUR_CAROL, "m.room.message", {}, None, (403, "M_FORBIDDEN")),
        (OUR_BOB, "m.room.topic", {"topic": "mine"}, "", (403, "M_FORBIDDEN")),
        (OUR_BOB, "org.example.of", {}, OUR_CAROL, (403, "M_FORBIDDEN")),
        (OUR_BOB, "m.room.member", {"membership": "leave"}, OUR_ALICE, (403, "M_FORBIDDEN")),
        (OUR_ALICE, "m.room.member", {"membership": "sleep"}, OUR_ALICE, (403, "M_FORBIDDEN")),
        (OUR_ALICE, "m.room.member", {}, OUR_ALICE, (403, "M_FORBIDDEN")),
        (OUR_ALICE, "m.room.member", {"membership": "invite"}, "nobody", (403, "M_FORBIDDEN")),
        (OUR_ALICE, "m.room.power_levels", {"users": {OUR_BOB: "high"}}, "", (403, "M_FORBIDDEN")),
        (OUR_ALICE, "m.room.message", {"body": 1.5}, None, (400, "M_BAD_JSON")),
        (OUR_ALICE, "m.room.message", {"body": 2**53}, None, (400, "M_BAD_JSON")),
        (OUR_ALICE, "m.room.message", {"body": "x" * 65536}, None, (413, "M_TOO_LARGE")),
        (OUR_ALICE, "x" * 256, {}, None, (413, "M_TOO_LARGE")),
        (OUR_ALICE, "org.example", {}, "x" * 256, (413, "M_TOO_LARGE")),
        (OUR_ALICE, "org.example\0", {}, "", (400, "M_INVALID_PARAM")),
        (OUR_ALICE, "org.example", {}, "\ud800", (400, "M_INVALID_PARAM")),
    ],
)
async def test_a_forbidden_event_changes_nothing(
    rooms: Rooms, sender: UserID, event_type: str, content: dict, state_key: str | None, refusal: tuple[int, str]
) -> None:
    room_id = await rooms.create(OUR_ALICE, OUR_BOB)
    assert await refused(rooms, room_id, sender, event_type, content, state_key) == refusal


async def test_appending_to_an_unknown_room_fails(rooms: Rooms) -> None:
    assert await refused(rooms, RoomID("!nowhere:test.example"), OUR_ALICE) == (404, "M_NOT_FOUND")


async def test_an_event_of_the_maximum_size_is_accepted(rooms: Rooms) -> None:
    room_id = await rooms.create(OUR_ALICE)
    empty = await rooms.append(room_id, OUR_ALICE, content={"body": ""})
    used = len(_canonical(empty.pdu))
    sent = await rooms.append(room_id, OUR_ALICE, content={"body": "x" * (65536 - used)})
    # The depth and the time may have grown by a digit.
    assert 65536 - 4 <= len(_canonical(sent.pdu)) <= 65536


def _canonical(pdu: dict[str, Any]) -> bytes:
    return canonical_json.encode(pdu)


async def test_rooms_created_in_the_same_millisecond_are_distinct(rooms: Rooms) -> None:
    """From room version 12 on the room's id is made of its create event alone."""
    version = ROOM_VERSIONS["12"]

    def create_two(tx: Transaction) -> list[RoomID]:
        draft = Draft(None, OUR_ALICE, "m.room.create", {"room_version": "12"}, "")
        return [append_create(tx, draft, version).room_id for _ in range(3)]

    assert len(set(await rooms.write(create_two))) == 3


async def _dated(rooms: Rooms, *drafts: Draft, now_ms: int = START_MS) -> list[int]:
    """The origin_server_ts of the drafts, appended one after another in one millisecond."""

    def append_all(tx: Transaction) -> list[int]:
        tx.now_ms = now_ms
        return [append_local(tx, draft).origin_server_ts for draft in drafts]

    return await rooms.write(append_all)


async def test_a_state_event_is_dated_after_the_one_it_replaces(rooms: Rooms) -> None:
    """With equal times, state resolution goes by the event IDs: a leave could beat the join after it."""
    room_id = await rooms.create(OUR_ALICE, OUR_BOB)
    memberships = [
        Draft(room_id, OUR_BOB, "m.room.member", {"membership": each}, OUR_BOB) for each in ("leave", "join")
    ]
    topics = [Draft(room_id, OUR_ALICE, "m.room.topic", {"topic": each}, "") for each in ("tea", "cake")]
    message = Draft(room_id, OUR_ALICE, "m.room.message", {"body": "hello"})
    now = START_MS + 3_600_000
    assert await _dated(rooms, *memberships, *topics, message, message, now_ms=now) == [
        now, now + 1, now, now + 1, now, now
    ]  # fmt: skip
    assert await _dated(rooms, *memberships, *topics, message, now_ms=now - 500) == [
        now + 2, now + 3, now + 2, now + 3, now - 500
    ]  # fmt: skip


async def test_state_is_not_dated_by_a_clock_that_was_far_off(rooms: Rooms) -> None:
    room_id = await rooms.create(OUR_ALICE)
    topic = Draft(room_id, OUR_ALICE, "m.room.topic", {"topic": "tea"}, "")
    ahead = START_MS + STATE_AHEAD_MS_MAX
    assert await _dated(rooms, topic, now_ms=ahead) == [ahead]
    assert await _dated(rooms, topic, now_ms=START_MS) == [START_MS]


async def test_state_is_dated_by_our_own_clock_alone(rooms: Rooms) -> None:
    room = new_room(ROOM_VERSIONS["11"])
    await rooms.adopt(room)
    await rooms.receive(room.append(room.build(ALICE, "m.room.member", {"membership": "invite"}, OUR_BOB)))
    join = Draft(room.room_id, OUR_BOB, "m.room.member", {"membership": "join"}, OUR_BOB)
    early = room.clock - 1000
    assert await _dated(rooms, join, now_ms=early) == [early]


async def test_a_failed_write_stores_nothing(rooms: Rooms) -> None:
    room_id = await rooms.create(OUR_ALICE)
    before = await rooms.read(_everything)

    def append_and_fail(tx: Transaction) -> None:
        for number in range(30):
            draft = Draft(room_id, OUR_ALICE, "org.example", {"n": number}, state_key=str(number))
            append_local(tx, draft)
        raise RuntimeError("power cut")

    with pytest.raises(RuntimeError):
        await rooms.write(append_and_fail)
    assert await rooms.read(_everything) == before
    event = await rooms.append(room_id, OUR_ALICE)
    assert len(event.prev_events) == 1


async def test_drafts_can_be_signed_by_another_server_first(rooms: Rooms) -> None:
    room_id = await rooms.create(OUR_ALICE)
    draft = Draft(room_id, OUR_ALICE, "m.room.member", {"membership": "invite"}, "@rem:other.test")
    event = await rooms.write(build_unplaced, draft)
    assert event.event_id not in await rooms.timeline(room_id)
    assert (await rooms.receive(event)).reason == ""
    assert (await rooms.timeline(room_id))[-1] == event.event_id

    join = Draft(room_id, UserID("@rem:other.test"), "m.room.member", {"membership": "join"}, "@rem:other.test")
    version, template = await rooms.read(build_template, join)
    assert version.id == "12"
    assert template["prev_events"] == [event.event_id]
    assert not template.keys() & {"hashes", "signatures", "event_id"}
    ban = Draft(room_id, UserID("@rem:other.test"), "m.room.member", {"membership": "ban"}, OUR_ALICE)
    with pytest.raises(MatrixError, match="M_FORBIDDEN"):
        await rooms.read(build_template, ban)


# Memberships


async def test_the_table_of_memberships_follows_the_state(rooms: Rooms) -> None:
    room_id = await rooms.create(OUR_ALICE)
    for sender, membership in (
        (OUR_ALICE, "invite"),
        (OUR_BOB, "join"),
        (OUR_ALICE, "leave"),
        (OUR_ALICE, "ban"),
        (OUR_ALICE, "leave"),
    ):
        event = await rooms.member(room_id, sender, membership, OUR_BOB)
        current = await rooms.read(find_room_membership, room_id, OUR_BOB)
        position = (await rooms.stored(event.event_id)).position
        assert current.membership == membership
        assert current.event_position == current.changed_position == position
        assert (current.stripped is not None) == (membership == "invite")
        assert current.members_position == position


async def test_invited_users_get_stripped_state(rooms: Rooms) -> None:
    room_id = await rooms.create(OUR_ALICE)
    await rooms.append(room_id, OUR_ALICE, "m.room.name", {"name": "Bees"}, "")
    await rooms.append(room_id, OUR_ALICE, "org.example.secret", {"a": 1}, "")
    invite = await rooms.member(room_id, OUR_ALICE, "invite", OUR_BOB)
    current = await rooms.read(find_room_membership, room_id, OUR_BOB)
    told = {event["type"]: event for event in current.stripped}
    assert set(told) == {"m.room.create", "m.room.name", "m.room.join_rules", "m.room.member"}
    assert told["m.room.name"] == {
        "type": "m.room.name", "state_key": "", "sender": OUR_ALICE, "content": {"name": "Bees"}
    }  # fmt: skip
    assert current.stripped[-1]["content"] == invite.content


async def test_the_head_moves_with_each_event(rooms: Rooms) -> None:
    room_id = await rooms.create(OUR_ALICE)
    before = await rooms.read(get_head, room_id)
    event = await rooms.append(room_id, OUR_ALICE)
    after = await rooms.read(get_head, room_id)
    assert after.depth == before.depth + 1 == event.depth
    assert after.last_position > before.last_position
    assert after.members_position == before.members_position
    assert after.extremity_ids == (EventID(event.event_id),)
