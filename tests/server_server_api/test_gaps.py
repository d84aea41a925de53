"""Events that come without what they follow on: only their own room waits, and they are not lost.

Spec: server-server-api/#transactions, #backfilling-and-retrieving-missing-events
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any
from urllib.parse import quote

import trio

from homeserver import limits
from homeserver.federation.event import Event
from homeserver.federation.identifiers import EventID, ServerName
from tests.support.federation import Federation, create_room, join, send_text, texts, until, wait_text
from tests.support.homeservers import Client, Server
from tests.support.stranger import Joined, Stranger

HERE, MALLORY = "a.example", ServerName("mallory.example")
LIMIT_S = limits.peers.GAP_WAIT_S + 0.5
PREFIX = "/_matrix/federation/v1"


async def world(federation: Federation, rooms: int = 1) -> tuple[Server, Client, Stranger, list[Joined]]:
    """Rooms with alice and a stranger."""
    a = await federation.start(HERE)
    alice = await a.register("alice")
    mallory = Stranger(federation.network, MALLORY)
    room_ids = [await create_room(alice, preset="public_chat") for _ in range(rooms)]
    return a, alice, mallory, [await mallory.join(HERE, room_id, "mallory") for room_id in room_ids]


def is_silent(mallory: Stranger, room: Joined) -> None:
    """Whatever is asked of the stranger about the history of the room is never answered."""

    async def never(uri: str, content: Any) -> Any:
        await trio.sleep_forever()

    tell(mallory, room, never)


def tell(mallory: Stranger, room: Joined, missing: Callable[[str, Any], Awaitable[Any]] | dict[str, Any]) -> None:
    place = quote(room.room_id, safe="")
    mallory.answers["POST", f"{PREFIX}/get_missing_events/{place}"] = missing
    for name in ("state_ids", "state"):
        mallory.answers["GET", f"{PREFIX}/{name}/{place}"] = missing if callable(missing) else (404, {})


def with_gap(room: Joined, lost_text: str, text: str) -> tuple[Event, Event]:
    """An event that is not sent, and one that follows on it."""
    return room.text(lost_text), room.text(text)


async def test_a_gap_in_one_room_delays_neither_the_answer_nor_other_rooms(federation: Federation) -> None:
    _, alice, mallory, (gappy, healthy) = await world(federation, 2)
    is_silent(mallory, gappy)
    _, after = with_gap(gappy, "lost", "after the gap")
    with trio.fail_after(LIMIT_S):
        assert await mallory.send(HERE, "1", [after.pdu, healthy.text("with it").pdu]) == {
            after.event_id: {}, healthy.last.event_id: {}
        }  # fmt: skip
    with trio.fail_after(LIMIT_S):
        await mallory.send(HERE, "2", [healthy.text("after it").pdu])
    assert await texts(alice, healthy.room_id) == ["with it", "after it"]
    assert await texts(alice, gappy.room_id) == []


async def test_a_gap_that_can_be_closed_is_closed_before_the_answer(federation: Federation) -> None:
    _, alice, mallory, (room,) = await world(federation)
    lost, after = with_gap(room, "lost", "found")
    tell(mallory, room, {"events": [lost.pdu]})
    assert await mallory.send(HERE, "1", [after.pdu]) == {after.event_id: {}}
    assert await texts(alice, room.room_id) == ["lost", "found"]


async def test_an_event_is_received_once_its_server_is_reachable_again(federation: Federation) -> None:
    """Even if this server was killed meanwhile: the event was accepted, so it is not sent again."""
    a, alice, mallory, (room,) = await world(federation)
    lost, after = with_gap(room, "lost", "found")
    is_silent(mallory, room)
    await mallory.send(HERE, "1", [after.pdu])
    await federation.kill(HERE)
    a = await federation.start(HERE)
    alice = Client(a, alice.token)
    assert await texts(alice, room.room_id) == []
    tell(mallory, room, {"events": [lost.pdu]})
    await wait_text(alice, room.room_id, "found")
    assert await texts(alice, room.room_id) == ["lost", "found"]
    assert await count_parked(a) == 0


async def test_an_event_is_received_once_any_server_of_the_room_is_reachable(federation: Federation) -> None:
    a, alice, mallory, (room,) = await world(federation)
    lost, after = with_gap(room, "lost", "found")
    federation.network.leave(MALLORY)
    await mallory.send(HERE, "1", [after.pdu])
    await trio.sleep(20_000)
    federation.network.join(MALLORY, mallory._serve)
    tell(mallory, room, {"events": [lost.pdu]})
    await mallory.get(HERE, f"{PREFIX}/query/profile?user_id={quote(alice.user_id)}")
    with trio.fail_after(5):
        await wait_text(alice, room.room_id, "found")


async def test_a_later_event_releases_those_that_waited(federation: Federation) -> None:
    a, alice, mallory, (room,) = await world(federation)
    is_silent(mallory, room)
    lost, first = with_gap(room, "lost", "first")
    await mallory.send(HERE, "1", [first.pdu])
    await trio.sleep(300)
    tell(mallory, room, {"events": [lost.pdu, first.pdu]})
    second = room.text("second")
    await mallory.send(HERE, "2", [second.pdu])
    await wait_text(alice, room.room_id, "second")
    assert await texts(alice, room.room_id) == ["lost", "first", "second"]
    assert await count_parked(a) == 0


async def test_hopeless_events_do_not_block_others_of_their_room(federation: Federation) -> None:
    _, alice, mallory, (room,) = await world(federation)
    known = room.last
    hopeless = [room.text("hopeless", after=[EventID(f"${number:043d}")], depth=known.depth + 1) for number in range(6)]
    room.last = known
    lost, after = with_gap(room, "lost", "found")

    async def tell_about_one(uri: str, content: Any) -> Any:
        if content and content["latest_events"] == [after.event_id]:
            return {"events": [lost.pdu]}
        await trio.sleep(15)
        return 404, {}

    tell(mallory, room, tell_about_one)
    await mallory.send(HERE, "1", [*(each.pdu for each in hopeless), after.pdu])
    await until(lambda: _is_shown(alice, room, "found"), seconds=600)
    assert await texts(alice, room.room_id) == ["lost", "found"]


async def _is_shown(client: Client, room: Joined, text: str) -> bool:
    return text in await texts(client, room.room_id)


async def test_an_event_whose_key_arrives_late_blocks_nothing(federation: Federation) -> None:
    a, alice, mallory, (room,) = await world(federation)
    carol = Stranger(federation.network, ServerName("c.example"))
    b = await federation.start("b.example")
    bob = await b.register("bob")
    await join(bob, room.room_id, HERE)
    key = carol.answers["GET", "/_matrix/key/v2/server"]
    member = (await carol.join("b.example", room.room_id, "carol")).last
    federation.network.leave("b.example")

    async def slow(uri: str, content: Any) -> Any:
        await trio.sleep(8)
        return carol.key_response(uri, content)

    carol.answers["GET", "/_matrix/key/v2/server"] = slow
    a.hs.peers._keys.pop(carol.name, None)
    room.last = member
    with trio.fail_after(LIMIT_S):
        results = await mallory.send(HERE, "1", [member.pdu, room.text("hello").pdu])
    assert list(results.values()) == [{}, {}]
    carol.answers["GET", "/_matrix/key/v2/server"] = key
    await wait_text(alice, room.room_id, "hello")


async def test_waiting_events_are_limited_and_expire(federation: Federation) -> None:
    a, _, mallory, (room,) = await world(federation)
    is_silent(mallory, room)
    for number in range(4):
        pdus = [room.text("lost", after=[EventID(f"${number}{each:042d}")]).pdu for each in range(50)]
        await mallory.send(HERE, str(number), pdus)
    assert await count_parked(a) == limits.peers.PARKED_PER_ROOM_MAX

    async def is_empty() -> bool:
        return await count_parked(a) == 0

    await until(is_empty, seconds=2 * limits.peers.PARKED_MS_MAX / 1000)
    tries = [each for each in federation.network.exchanges if each.path.startswith(f"{PREFIX}/get_missing_events")]
    assert len(tries) < 40 * limits.peers.PARKED_PER_ROOM_MAX


async def test_a_forged_event_is_not_kept(federation: Federation) -> None:
    a, alice, mallory, (room,) = await world(federation)
    is_silent(mallory, room)
    forged = room.text("x", sender=alice.user_id)
    results = await mallory.send(HERE, "1", [forged.pdu])
    assert "error" in results[forged.event_id]
    assert await count_parked(a) == 0
    await send_text(alice, room.room_id, "we go on")


async def count_parked(server: Server) -> int:
    def count(tx: Any) -> int:
        return int(tx.one("SELECT COUNT(*) FROM parked_events")[0])

    return await server.hs.database.read(count)
