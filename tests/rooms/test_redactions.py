"""Redacted content is deleted, whether the event or its redaction arrived first."""

from __future__ import annotations

from hashlib import sha256
from typing import Any

import pytest

from homeserver.database import Transaction
from homeserver.database.compression import decompress
from homeserver.errors import MatrixError
from homeserver.federation.event import Event
from homeserver.federation.room_versions import ROOM_VERSIONS
from homeserver.rooms.events import find_event
from homeserver.rooms.heads import get_head, state_content
from homeserver.rooms.membership import find_room_membership
from homeserver.rooms.outliers import store_outliers
from homeserver.rooms.receive import Received
from homeserver.rooms.sealed_rows import RowOpener
from homeserver.rooms.storage import Status
from tests.federation.rooms_for_tests import ALICE, BOB, CAROL, Room, new_room
from tests.support.rooms import OUR_ALICE, OUR_BOB, OUR_CAROL, Rooms

VERSIONS = list(ROOM_VERSIONS)
SECRET = "the secret recipe"


def _raw_contents(tx: Transaction) -> str:
    """Everything that any row of `events` holds as content."""
    rows = tx.all("SELECT room_nid, position, event_id, content FROM events")
    opener = RowOpener(tx)
    return "\n".join(decompress(opener.open_content(*row), 1 << 20).decode() for row in rows)


async def assert_gone(rooms: Rooms, event: Event, redaction: Event) -> None:
    stored = await rooms.stored(event.event_id)
    assert stored.redacted_by == (await rooms.stored(redaction.event_id)).position
    assert SECRET not in await rooms.read(_raw_contents)
    # It is still the same event, and servers that request it get it.
    whole = await rooms.read(find_event, event.event_id)
    assert whole.event_id == event.event_id
    assert whole.pdu["hashes"] == event.pdu["hashes"]


async def redact(rooms: Rooms, room_id: Any, sender: Any, event: Event, **options: Any) -> Event:
    return await rooms.append(room_id, sender, "m.room.redaction", {}, redacts=event.event_id, **options)


@pytest.mark.parametrize("version", VERSIONS)
async def test_a_message_loses_its_content(rooms: Rooms, version: str) -> None:
    room_id = await rooms.create(OUR_ALICE, OUR_BOB, version=version)
    event = await rooms.append(room_id, OUR_BOB, content={"body": SECRET})
    redaction = await redact(rooms, room_id, OUR_BOB, event)
    assert redaction.redacts == event.event_id
    assert ("redacts" in redaction.content) == ROOM_VERSIONS[version].redacts_in_content
    await assert_gone(rooms, event, redaction)
    assert (await rooms.stored(event.event_id)).content == {}


async def test_a_redaction_may_name_an_id_too_large_for_an_index(rooms: Rooms) -> None:
    """As large as an event may be, and too large for any index."""
    room_id = await rooms.create(OUR_ALICE)
    redacts = "$" + "".join(sha256(str(number).encode()).hexdigest() for number in range(500))
    redaction = await rooms.append(room_id, OUR_ALICE, "m.room.redaction", {"redacts": redacts})
    assert (await rooms.stored(redaction.event_id)).content == {"redacts": redacts}


async def test_redacted_state_keeps_the_protected_keys(rooms: Rooms) -> None:
    room_id = await rooms.create(OUR_ALICE)
    join = await rooms.append(room_id, OUR_BOB, "m.room.member", {"membership": "join", "displayname": SECRET}, OUR_BOB)
    redaction = await redact(rooms, room_id, OUR_ALICE, join)
    await assert_gone(rooms, join, redaction)
    assert (await rooms.stored(join.event_id)).content == {"membership": "join"}
    assert (await rooms.read(find_room_membership, room_id, OUR_BOB)).membership == "join"
    await rooms.append(room_id, OUR_BOB)


async def test_no_cache_keeps_redacted_content(rooms: Rooms) -> None:
    room_id = await rooms.create(OUR_ALICE)
    topic = await rooms.append(room_id, OUR_ALICE, "m.room.topic", {"topic": SECRET}, "")

    def read_topic(tx: Transaction) -> Any:
        return state_content(tx, get_head(tx, room_id).state_root, "m.room.topic")

    assert await rooms.read(read_topic) == {"topic": SECRET}
    await redact(rooms, room_id, OUR_ALICE, topic)
    assert await rooms.read(read_topic) == {}


async def test_stripped_state_of_invites_is_redacted_too(rooms: Rooms) -> None:
    room_id = await rooms.create(OUR_ALICE)
    name = await rooms.append(room_id, OUR_ALICE, "m.room.name", {"name": SECRET}, "")
    await rooms.member(room_id, OUR_ALICE, "invite", OUR_BOB)
    await redact(rooms, room_id, OUR_ALICE, name)
    stripped = (await rooms.read(find_room_membership, room_id, OUR_BOB)).stripped
    assert SECRET not in str(stripped)
    assert [event["content"] for event in stripped if event["type"] == "m.room.name"] == [{}]


async def test_the_first_redaction_counts(rooms: Rooms) -> None:
    room_id = await rooms.create(OUR_ALICE, OUR_BOB)
    event = await rooms.append(room_id, OUR_BOB, content={"body": SECRET})
    first = await redact(rooms, room_id, OUR_BOB, event)
    await redact(rooms, room_id, OUR_ALICE, event)
    await assert_gone(rooms, event, first)


@pytest.mark.parametrize("version", VERSIONS)
async def test_redactions_need_power_or_the_same_sender(rooms: Rooms, version: str) -> None:
    """Between servers the domain counts; among the users of this one, each answers for themselves."""
    room_id = await rooms.create(OUR_ALICE, OUR_BOB, OUR_CAROL, version=version)
    of_bert = await rooms.append(room_id, OUR_BOB, content={"body": "mine"})
    of_anna = await rooms.append(room_id, OUR_ALICE, content={"body": "hers"})
    for sender, target in ((OUR_CAROL, of_bert), (OUR_BOB, of_anna)):
        with pytest.raises(MatrixError, match="M_FORBIDDEN"):
            await redact(rooms, room_id, sender, target)
    assert (await rooms.stored(of_bert.event_id)).content == {"body": "mine"}
    await redact(rooms, room_id, OUR_CAROL, of_bert, as_admin=True)
    await redact(rooms, room_id, OUR_ALICE, of_anna)
    assert (await rooms.stored(of_bert.event_id)).content == {}


async def test_redacting_an_unknown_event_requires_the_redact_level(rooms: Rooms) -> None:
    room_id = await rooms.create(OUR_ALICE, OUR_BOB)
    unknown = "$" + "x" * 43
    await rooms.append(room_id, OUR_ALICE, "m.room.redaction", {}, redacts=unknown)
    with pytest.raises(MatrixError, match="M_FORBIDDEN"):
        await rooms.append(room_id, OUR_BOB, "m.room.redaction", {}, redacts=unknown)


async def test_events_of_other_rooms_cannot_be_redacted(rooms: Rooms) -> None:
    room_id, other = await rooms.create(OUR_ALICE), await rooms.create(OUR_ALICE)
    event = await rooms.append(other, OUR_ALICE, content={"body": "there"})
    await redact(rooms, room_id, OUR_ALICE, event)
    assert (await rooms.stored(event.event_id)).content == {"body": "there"}


# Redactions of peers


async def joined(rooms: Rooms, version: str) -> Room:
    room = new_room(ROOM_VERSIONS[version])
    room.member(BOB, "join")
    room.member(CAROL, "join")
    await rooms.adopt(room)
    return room


@pytest.mark.parametrize("version", VERSIONS)
async def test_redactions_of_peers_are_applied(rooms: Rooms, version: str) -> None:
    room = await joined(rooms, version)
    event = room.send(BOB, "m.room.message", {"body": SECRET})
    redaction = room.send(BOB, "m.room.redaction", _content(room, event), redacts=event.event_id)
    await rooms.receive_all([event, redaction])
    await assert_gone(rooms, event, redaction)


@pytest.mark.parametrize("version", VERSIONS)
async def test_a_redaction_may_arrive_before_its_event(rooms: Rooms, version: str) -> None:
    room = await joined(rooms, version)
    branch = room.fork()
    event = room.send(BOB, "m.room.message", {"body": SECRET})
    branch.clock += 10
    redaction = branch.send(BOB, "m.room.redaction", _content(room, event), redacts=event.event_id)
    await rooms.receive_all([redaction])
    await rooms.receive_all([event])
    await assert_gone(rooms, event, redaction)


@pytest.mark.parametrize("version", VERSIONS)
async def test_a_redaction_may_arrive_before_an_outlier(rooms: Rooms, version: str) -> None:
    room = await joined(rooms, version)
    branch = room.fork()
    event = room.send(ALICE, "m.room.topic", {"topic": SECRET}, "")
    branch.clock += 10
    redaction = branch.send(ALICE, "m.room.redaction", _content(room, event), redacts=event.event_id)
    await rooms.receive_all([redaction])
    await rooms.write(store_outliers, [event])
    await assert_gone(rooms, event, redaction)
    await rooms.receive_all([event])
    await assert_gone(rooms, event, redaction)


@pytest.mark.parametrize("version", ["3", "11", "12"])
async def test_a_redaction_without_power_is_accepted_but_has_no_effect(rooms: Rooms, version: str) -> None:
    room = await joined(rooms, version)
    event = room.send(BOB, "m.room.message", {"body": "mine"})
    redaction = room.send(CAROL, "m.room.redaction", _content(room, event), redacts=event.event_id)
    (_, received) = await rooms.receive_all([event, redaction])
    assert received.status == Status.TIMELINE
    assert (await rooms.stored(event.event_id)).redacted_by is None


async def test_rejected_and_soft_failed_redactions_have_no_effect(rooms: Rooms) -> None:
    room = await joined(rooms, "12")
    branch = room.fork()
    event = room.send(BOB, "m.room.message", {"body": "mine"})
    await rooms.receive_all([event, room.member(ALICE, "ban", BOB)])
    redaction = branch.send(BOB, "m.room.redaction", _content(room, event), redacts=event.event_id)
    outcome = await rooms.receive(redaction)
    assert isinstance(outcome, Received) and outcome.status == Status.SOFT_FAILED
    assert (await rooms.stored(event.event_id)).redacted_by is None


async def test_the_power_at_the_time_of_the_redaction_counts(rooms: Rooms) -> None:
    """CAROL has the power to redact when she does, and has lost it by the time the message comes."""
    room = await joined(rooms, "12")
    branch = room.fork()
    event = branch.send(BOB, "m.room.message", {"body": SECRET})
    up = room.set_levels(users={CAROL: 50})
    redaction = room.send(CAROL, "m.room.redaction", _content(room, event), redacts=event.event_id)
    down = room.set_levels(users={CAROL: 0})
    await rooms.receive_all([up, redaction, down, event])
    await assert_gone(rooms, event, redaction)


def _content(room: Room, event: Event) -> dict[str, Any]:
    return {"reason": "oops"}
