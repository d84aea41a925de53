"""The guarantees for features that take part in sync, tested with a made-up one."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import trio
from msgspec.structs import replace

from homeserver.features import FEATURES
from homeserver.rooms.timeline import parse_sync_token
from homeserver.testing import config_for_tests
from tests.support.homeservers import Client, NoWire, Server, running
from tests.support.people import ALWAYS_TOLD, join, public_room, room_in, send, set_state, sync
from tests.sync.parcels import Parcels, count_parcels, cut_notches, send_parcel, set_stamps

WAIT_S = 20


@dataclass
class Place:
    server: Server
    parcels: Parcels
    alice: Client
    room_id: Any

    async def sync(self, since: str | None = None, **query: Any) -> dict[str, Any]:
        """Alice syncs, without saying that she is there."""
        return await sync(self.alice, since, **{"set_presence": "offline", **query})

    async def sync_while(self, since: str, act: Callable[[], Awaitable[Any]]) -> tuple[dict[str, Any], float]:
        """The answer to a sync that waits while something is done after 5 s, and how long it took in seconds."""
        answers = []
        began = trio.current_time()

        async def wait() -> None:
            answers.append((await self.sync(since, timeout=WAIT_S * 1000), trio.current_time() - began))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(wait)
            await trio.sleep(5)
            await act()
        return answers[0]


@asynccontextmanager
async def opened(folder: Path) -> AsyncIterator[Place]:
    """A server with all features, but without their tails: a test of writes counts those of requests only."""
    parcels = Parcels()
    config = config_for_tests("test.example", folder)
    features = (replace(feature, tails=()) for feature in FEATURES)
    async with running(config, wire=NoWire(), features=(*features, parcels.feature())) as server:
        alice = await server.register("alice")
        yield Place(server, parcels, alice, await public_room(alice))


@pytest.fixture
async def place(tmp_path: Path, virtual_clock: None) -> AsyncIterator[Place]:
    async with opened(tmp_path) as place:
        yield place


def stamps(answer: dict[str, Any]) -> int:
    return answer["org.example.stamps"]


def parcels(answer: dict[str, Any]) -> int:
    return len(answer.get("to_device", {"events": []})["events"])


def notches(answer: dict[str, Any], room_id: str) -> int | None:
    return room_in(answer, room_id).get("unread_notifications", {}).get("notification_count")


async def test_always_told_sections_are_in_every_answer(place: Place) -> None:
    await place.server.write(set_stamps, place.alice.user_id, 3)
    answers = [await place.sync()]
    for timeout in (0, 1000):
        answers.append(await place.sync(answers[-1]["next_batch"], timeout=timeout))
    await send(place.alice, place.room_id)
    answers.append(await place.sync(answers[-1]["next_batch"]))
    assert [stamps(answer) for answer in answers] == [3] * 4
    assert ["rooms" in answer for answer in answers] == [True, False, False, True]


async def test_always_told_sections_do_not_end_a_wait_and_are_current(place: Place) -> None:
    since = (await place.sync())["next_batch"]

    async def buy() -> None:
        await place.server.write(set_stamps, place.alice.user_id, 7)
        await place.server.write(cut_notches, place.room_id, 2)

    answer, seconds = await place.sync_while(since, buy)
    assert seconds >= WAIT_S
    assert (stamps(answer), notches(answer, place.room_id)) == (7, 2)
    quiet = await place.sync(answer["next_batch"])
    assert quiet.keys() == {"next_batch", "org.example.stamps"} | ALWAYS_TOLD
    assert stamps(quiet) == 7


async def test_sections_may_differ_by_device(place: Place) -> None:
    """An answer to one device is not reused for another one."""
    phone = await place.server.log_in("alice")
    token = (await place.sync())["next_batch"]
    place.parcels.names_asked()
    await sync(phone, token, set_presence="offline")
    assert "sync_always" in place.parcels.names_asked()


async def test_news_ends_a_wait(place: Place) -> None:
    since = (await place.sync())["next_batch"]

    async def post() -> None:
        await place.server.write(send_parcel, place.alice.user_id, place.alice.device_id)

    answer, seconds = await place.sync_while(since, post)
    assert seconds < WAIT_S
    assert parcels(answer) == 1


async def test_counts_come_with_every_room_in_an_answer(place: Place) -> None:
    other = await public_room(place.alice)
    await place.server.write(cut_notches, place.room_id, 2)
    answer = await place.sync()
    assert [notches(answer, room_id) for room_id in (place.room_id, other)] == [2, 0]
    await send(place.alice, place.room_id)
    answer = await place.sync(answer["next_batch"])
    assert notches(answer, place.room_id) == 2
    assert other not in answer["rooms"]["join"]


async def test_a_feature_acknowledges_before_the_read(place: Place) -> None:
    since = (await place.sync())["next_batch"]
    await place.server.write(send_parcel, place.alice.user_id, place.alice.device_id)
    for _ in range(2):  # an answer may be lost: a repeated request gets it again
        answer = await place.sync(since)
        assert parcels(answer) == 1
    assert await place.server.read(count_parcels) == 1
    assert parcels(await place.sync(answer["next_batch"])) == 0
    assert await place.server.read(count_parcels) == 0


async def test_a_sync_that_changes_nothing_costs_one_read_and_no_write(place: Place) -> None:
    since = (await place.sync())["next_batch"]
    await send(place.alice, place.room_id)
    writes = place.server.hs.database.writes
    place.parcels.asked.clear()
    since = (await place.sync(since))["next_batch"]
    (tx,) = {tx for _, tx in place.parcels.asked}
    assert not tx.is_write
    assert place.parcels.names_asked() == ["is_due", "sync_always"]
    await place.sync(since)
    assert place.parcels.names_asked() == ["is_due"], "a quiet sync reads more than whether something is due"
    assert place.server.hs.database.writes == writes


async def test_news_is_asked_for_unless_only_messages_have_come(place: Place) -> None:
    async def post() -> None:
        await place.server.write(send_parcel, place.alice.user_id, place.alice.device_id)

    async def name() -> None:
        await set_state(place.alice, place.room_id, "m.room.name", {"name": "Kitchen"})

    async def say() -> None:
        await send(place.alice, place.room_id)

    for steps, is_asked in (([say], False), ([say, say], False), ([say, post], True), ([say, name], True)):
        since = (await place.sync())["next_batch"]
        for step in steps:
            await step()
        place.parcels.asked.clear()
        await place.sync(since)
        assert ("sync" in place.parcels.names_asked()) == is_asked


async def test_a_feature_with_nothing_to_write_is_not_asked_again(place: Place) -> None:
    place.parcels.idle_ms = 30_000
    since = (await place.sync())["next_batch"]
    for _ in range(2):
        since = (await place.sync(since))["next_batch"]
    place.parcels.asked.clear()
    since = (await place.sync(since))["next_batch"]
    assert place.parcels.names_asked() == []
    await trio.sleep(31)
    since = (await place.sync(since))["next_batch"]
    assert place.parcels.names_asked() == ["is_due"], "the time is over"
    await place.server.write(send_parcel, place.alice.user_id, place.alice.device_id)
    since = (await place.sync(since))["next_batch"]
    await place.sync(since)
    assert place.parcels.names_asked() == ["is_due", "sync", "sync_always", "is_due", "is_due", "write"], (
        "there is news"
    )
    assert await place.server.read(count_parcels) == 0


async def test_all_features_write_in_one_transaction(place: Place) -> None:
    await place.server.write(send_parcel, place.alice.user_id, place.alice.device_id)
    since = (await place.sync())["next_batch"]
    writes = place.server.hs.database.writes
    answer = await place.sync(since, set_presence="unavailable")
    assert place.server.hs.database.writes == writes + 1
    assert await place.server.read(count_parcels) == 0
    presence = answer["presence"]["events"]
    assert [event["content"]["presence"] for event in presence] == ["unavailable"]


async def test_features_see_the_filter(place: Place) -> None:
    await place.sync(filter={"room": {"timeline": {"unread_thread_notifications": True, "limit": 3}}})
    timeline = place.parcels.contexts[-1].filter.room.timeline
    assert (timeline.unread_thread_notifications, timeline.limit) == (True, 3)


async def test_each_room_has_its_own_since(place: Place) -> None:
    bob = await place.server.register("bob")
    theirs = await public_room(bob)
    first = await place.sync()
    assert {room_id: each.since for room_id, each in place.parcels.contexts[-1].rooms.items()} == {place.room_id: 0}
    await join(place.alice, theirs)
    await join(bob, place.room_id)
    answer = await place.sync(first["next_batch"])
    context = place.parcels.contexts[-1]
    known = parse_sync_token(first["next_batch"]).position
    assert context.since == known
    assert {room_id: each.since for room_id, each in context.rooms.items()} == {place.room_id: known, theirs: 0}
    assert context.rooms_by_since == {known: [place.room_id], 0: [theirs]}
    assert [room_id for room_id, each in context.rooms.items() if each.members_changed] == [place.room_id]
    await place.sync(answer["next_batch"], full_state=True)
    assert set(place.parcels.contexts[-1].rooms_by_since) == {parse_sync_token(answer["next_batch"]).position}
