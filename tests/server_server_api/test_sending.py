"""Transactions: what is sent arrives, whatever happens in between. Spec: server-server-api/#transactions"""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from typing import Any
from urllib.parse import quote

import trio

from homeserver import limits
from homeserver.database import Transaction
from homeserver.federation.build import Draft
from homeserver.federation.identifiers import RoomID, ServerName, UserID
from homeserver.rooms.append import append_local
from tests.support.clock import let_days_pass
from tests.support.federation import (
    Federation,
    checked,
    create_room,
    join,
    send_state,
    send_text,
    state_of,
    sync,
    texts,
    until,
    wait_text,
)
from tests.support.stranger import Stranger


async def test_messages_are_sent_at_once(federation: Federation) -> None:
    federation.network.latency_s = 0.02
    a, b, alice, bob = await federation.start_two()
    room_id = await create_room(alice, preset="public_chat")
    await join(bob, room_id, "a.example")
    since = (await sync(bob))["next_batch"]
    start = trio.current_time()
    await send_text(alice, room_id, "now")
    answer = await sync(bob, since, timeout=30000)
    events = answer["rooms"]["join"][room_id]["timeline"]["events"]
    assert [event["content"]["body"] for event in events] == ["now"]
    assert trio.current_time() - start < 0.05


async def test_messages_sent_during_an_outage_arrive_in_order(federation: Federation) -> None:
    a, b, alice, bob = await federation.start_two()
    room_id = await create_room(alice, preset="public_chat")
    await join(bob, room_id, "a.example")
    federation.network.cut("a.example", "b.example")
    for number in range(120):
        await send_text(alice, room_id, f"message {number}")
    await trio.sleep(3600)
    federation.network.heal()
    await wait_text(bob, room_id, "message 119")
    assert await texts(bob, room_id, 200) == [f"message {number}" for number in range(120)]


def _say(tx: Transaction, user_id: UserID, room_id: RoomID, texts: Iterable[str]) -> None:
    """Messages, sent at once."""
    for text in texts:
        append_local(tx, Draft(room_id, user_id, "m.room.message", {"msgtype": "m.text", "body": text}))


async def test_after_a_long_outage_the_newest_events_arrive_and_the_rest_are_fetched(federation: Federation) -> None:
    a, b, alice, bob = await federation.start_two()
    room_id = await create_room(alice, preset="public_chat")
    await join(bob, room_id, "a.example")
    federation.network.cut("a.example", "b.example")
    await a.write(_say, alice.user_id, room_id, map(str, range(limits.peers.CATCH_UP_ROOM_EVENTS_MAX + 20)))
    await send_text(alice, room_id, "enough")
    await send_state(alice, room_id, "m.room.topic", {"topic": "still the same"})
    await let_days_pass(1)
    federation.network.heal()
    await wait_text(bob, room_id, "enough")
    await send_text(bob, room_id, "what have I missed?")
    await wait_text(alice, room_id, "what have I missed?")
    assert await state_of(alice, room_id) == await state_of(bob, room_id)


async def test_events_of_others_do_not_crowd_out_ours_after_an_outage(federation: Federation) -> None:
    """A server that cannot be reached still reaches us, and says more than an outage may bring of one room."""
    a, b, alice, bob = await federation.start_two()
    room_id = await create_room(alice, preset="public_chat")
    await join(bob, room_id, "a.example")
    federation.network.leave("b.example")
    await send_text(alice, room_id, "can you hear me?")
    for part in ("first", "second"):  # neither leaves a gap, which could not be closed now
        await b.write(_say, bob.user_id, room_id, [part] * (limits.peers.CATCH_UP_ROOM_EVENTS_MAX * 2 // 3))
        await send_text(bob, room_id, f"end of the {part} part")
        await wait_text(alice, room_id, f"end of the {part} part")
    federation.network.join("b.example", checked(b.app))
    await wait_text(bob, room_id, "can you hear me?")


async def test_a_destination_that_contacts_us_is_retried_at_once(federation: Federation) -> None:
    a, b, alice, bob = await federation.start_two()
    room_id = await create_room(alice, preset="public_chat")
    await join(bob, room_id, "a.example")
    federation.network.cut("a.example", "b.example")
    await send_text(alice, room_id, "are you there?")
    await let_days_pass(1)  # by now an attempt is made once an hour
    federation.network.heal()
    start = trio.current_time()
    await send_text(bob, room_id, "I am back")
    await wait_text(bob, room_id, "are you there?")
    assert trio.current_time() - start < 120


async def test_unsent_events_are_sent_after_a_restart(federation: Federation) -> None:
    a, b, alice, bob = await federation.start_two()
    room_id = await create_room(alice, preset="public_chat")
    await join(bob, room_id, "a.example")
    federation.network.leave("b.example")
    for number in range(3):
        await send_text(alice, room_id, f"message {number}")
        await trio.sleep(0.4)
    await federation.kill("a.example")
    await federation.kill("b.example")
    b = await federation.start("b.example")
    bob = b.with_token(bob.token)
    await federation.start("a.example")
    await wait_text(bob, room_id, "message 2")
    assert await texts(bob, room_id) == ["message 0", "message 1", "message 2"]


async def test_kill_between_commit_and_sending_loses_nothing(federation: Federation) -> None:
    federation.network.latency_s = 0.5
    a, b, alice, bob = await federation.start_two()
    room_id = await create_room(alice, preset="public_chat")
    await join(bob, room_id, "a.example")
    for number in range(5):
        await send_text(alice, room_id, f"message {number}")
    await federation.kill("a.example")  # all of it is committed, nothing has arrived
    await federation.start("a.example")
    await wait_text(bob, room_id, "message 4")
    assert await texts(bob, room_id) == [f"message {number}" for number in range(5)]


async def test_lost_requests_and_responses_are_made_up_for(federation: Federation) -> None:
    a, b, alice, bob = await federation.start_two()
    room_id = await create_room(alice, preset="public_chat")
    await join(bob, room_id, "a.example")
    federation.network.loss = 0.4
    for number in range(30):
        await send_text(alice if number % 2 else bob, room_id, f"message {number}")
        await trio.sleep(1)
    federation.network.loss = 0

    async def same() -> bool:
        seen = await texts(alice, room_id), await texts(bob, room_id)
        return sorted(seen[0]) == sorted(seen[1]) and len(seen[0]) == 30

    await until(same, seconds=7200)
    assert await state_of(alice, room_id) == await state_of(bob, room_id)


async def test_a_kicked_server_sees_the_kick_and_nothing_later(federation: Federation) -> None:
    a, b, alice, bob = await federation.start_two()
    room_id = await create_room(alice, preset="public_chat")
    await join(bob, room_id, "a.example")
    federation.network.cut("a.example", "b.example")
    await send_text(alice, room_id, "last words")
    await alice.ok("POST", f"rooms/{quote(room_id)}/ban", json={"user_id": bob.user_id})
    await send_text(alice, room_id, "secret")
    await trio.sleep(60)
    federation.network.heal()

    async def banned() -> bool:
        answer = await sync(bob)
        return room_id not in answer.get("rooms", {}).get("join", {})

    await until(banned)
    await trio.sleep(3600)
    rows = await b.read(lambda tx: tx.all("SELECT 1 FROM events"))
    assert await texts(bob, room_id) == ["last words"], rows


async def test_idle_servers_exchange_nothing(federation: Federation) -> None:
    a, b, alice, bob = await federation.start_two()
    room_id = await create_room(alice, preset="public_chat")
    await join(bob, room_id, "a.example")
    await send_text(alice, room_id, "good night")
    await wait_text(bob, room_id, "good night")
    await trio.sleep(60)
    count = len(federation.network.exchanges)
    await trio.sleep(600)
    assert len(federation.network.exchanges) == count


async def test_many_events_are_sent_in_several_transactions(federation: Federation) -> None:
    a = await federation.start("a.example")
    alice = await a.register("alice")
    room_id = await create_room(alice, preset="public_chat")
    carol = Stranger(federation.network, ServerName("c.example"))
    await carol.join("a.example", room_id, "carol")
    federation.network.cut("a.example", carol.name)
    for number in range(130):
        await send_text(alice, room_id, f"message {number}")
    received: list[Any] = []
    carol.take = received.append
    federation.network.heal()

    async def all_there() -> bool:
        return sum(len(body["pdus"]) for body in received) >= 130

    await until(all_there, seconds=3600)
    assert all(len(body["pdus"]) <= 50 for body in received)
    bodies = [pdu["content"]["body"] for body in received for pdu in body["pdus"]]
    assert bodies == [f"message {number}" for number in range(130)]


async def test_a_refused_transaction_does_not_block_the_next(federation: Federation) -> None:
    a = await federation.start("a.example")
    alice = await a.register("alice")
    room_id = await create_room(alice, preset="public_chat")
    carol = Stranger(federation.network, ServerName("c.example"))
    await carol.join("a.example", room_id, "carol")
    statuses = iter([(400, {"errcode": "M_BAD_JSON", "error": "No."}), (200, {"pdus": {}})])
    bodies: list[Any] = []

    def take(body: Any) -> Any:
        bodies.append(body)
        return next(statuses)

    carol.take = take
    await send_text(alice, room_id, "first")
    await trio.sleep(1)
    await send_text(alice, room_id, "second")
    await trio.sleep(60)
    assert [pdu["content"]["body"] for body in bodies for pdu in body["pdus"]] == ["first", "second"]


async def test_a_failing_destination_gets_the_same_transaction_at_growing_intervals(
    federation: Federation,
) -> None:
    a = await federation.start("a.example")
    alice = await a.register("alice")
    room_id = await create_room(alice, preset="public_chat")
    carol = Stranger(federation.network, ServerName("c.example"))
    await carol.join("a.example", room_id, "carol")
    times: list[float] = []

    def fail(body: Any) -> Any:
        times.append(trio.current_time())
        return 503, {"errcode": "M_UNKNOWN", "error": "Not now."}

    carol.take = fail
    await send_text(alice, room_id, "hello")
    await trio.sleep(24 * 3600)
    pauses = [later - earlier for earlier, later in itertools.pairwise(times)]
    assert 1 < pauses[0] < 4
    assert 2700 < pauses[-1] < 4500
    assert len(times) < 60


async def test_events_received_during_a_join_are_not_lost(federation: Federation) -> None:
    federation.network.latency_s = 0.2
    a, b, alice, bob = await federation.start_two()
    room_id = await create_room(alice, preset="public_chat")

    async def talk() -> None:
        for number in range(20):
            await send_text(alice, room_id, f"message {number}")
            await trio.sleep(0.1)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(talk)
        await join(bob, room_id, "a.example")
    await trio.sleep(10)
    seen = await texts(bob, room_id)
    assert seen == [f"message {number}" for number in range(20)]
