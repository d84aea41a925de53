"""One bad item stops no lane: what cannot be sent, or is not taken, does not hold up what comes after it.

Spec: server-server-api/#transactions
"""

from __future__ import annotations

import json
from typing import Any
from urllib.parse import quote

import pytest
import trio

from homeserver.database import Transaction
from homeserver.federation.identifiers import ServerName
from homeserver.rooms.storage import find_stored_by_id
from tests.support.clock import let_days_pass
from tests.support.federation import Federation, create_room, join, send_state, send_text, texts, until, wait_text
from tests.support.homeservers import Client, Server
from tests.support.storage import list_parked
from tests.support.stranger import Stranger

MALLORY = ServerName("mallory.example")


def _damage(tx: Transaction, event_id: str) -> None:
    """Damages the row of an event, so that it cannot be read."""
    stored = find_stored_by_id(tx, event_id)
    assert stored is not None
    tx.run("UPDATE events SET content = ?, envelope = ? WHERE position = ?", b"\xff\xff", b"\xff", stored.position)


async def _two(federation: Federation) -> tuple[Server, Server, Client, Client, str]:
    a, b, alice, bob = await federation.start_two()
    room_id = await create_room(alice, preset="public_chat")
    await join(bob, room_id, "a.example")
    return a, b, alice, bob, room_id


async def test_a_damaged_event_is_left_out_while_a_destination_catches_up(federation: Federation) -> None:
    a, b, alice, bob, room_id = await _two(federation)
    federation.network.cut("a.example", "b.example")
    await send_text(alice, room_id, "before")
    bad = await send_text(alice, room_id, "bad")
    await send_state(alice, room_id, "org.example.after", {})
    await trio.sleep(60)
    await a.write(_damage, bad)
    other_room = await create_room(alice, preset="public_chat")
    federation.network.heal()
    await wait_text(bob, room_id, "before")
    await join(bob, other_room, "a.example")
    await send_text(alice, other_room, "elsewhere")
    await wait_text(bob, other_room, "elsewhere")


async def test_a_damaged_event_is_left_out_after_a_restart(
    federation: Federation, caplog: pytest.LogCaptureFixture
) -> None:
    federation.network.latency_s = 0.5
    a, b, alice, bob, room_id = await _two(federation)
    other_room = await create_room(alice, preset="public_chat")
    await join(bob, other_room, "a.example")
    bad = await send_text(alice, room_id, "bad")
    await send_text(alice, other_room, "good")
    await a.write(_damage, bad)
    await federation.kill("a.example")  # all of it is committed, nothing has arrived
    a = await federation.start("a.example")
    await wait_text(bob, other_room, "good")
    await send_text(a.with_token(alice.token), other_room, "and more")
    await wait_text(bob, other_room, "and more")
    assert [lane for lane, _, _, _ in await a.read(list_parked)] == ["federation"]
    assert 'homeserver_parked_items_total{lane="federation"} 1' in a.hs.metrics.text()
    assert any(record.message.startswith("an item cannot be read") for record in caplog.records)


def _refusing(taken: list[str], status: int) -> Any:
    """A destination that answers any transaction with a word in it with an error."""

    def take(body: Any) -> Any:
        if "poison" in json.dumps(body):
            return status, {"errcode": "M_UNKNOWN", "error": "I do not like it."}
        taken.extend(pdu["content"].get("body", "") for pdu in body["pdus"] if pdu["type"] == "m.room.message")
        return None

    return take


@pytest.mark.parametrize("status", [400, 413, 422, 500])
async def test_a_destination_that_fails_on_one_event_gets_the_others(federation: Federation, status: int) -> None:
    a = await federation.start("a.example")
    alice = await a.register("alice")
    room_id = await create_room(alice, preset="public_chat")
    mallory = Stranger(federation.network, MALLORY)
    await mallory.join("a.example", room_id, "mallory")
    taken: list[str] = []
    mallory.take = _refusing(taken, status)
    federation.network.leave(MALLORY)
    said = [f"message {number}" for number in range(70)]
    for number, text in enumerate(said):
        await send_text(alice, room_id, text)
        if number % 30 == 11:
            await send_text(alice, room_id, f"poison {number}")
    federation.network.join(MALLORY, mallory._serve)

    async def got_all() -> bool:
        return taken == said

    await until(got_all, seconds=24 * 3600)
    await send_text(alice, room_id, "poison at last")
    await trio.sleep(7200)
    await send_text(alice, room_id, "and on")
    said.append("and on")
    await until(got_all, seconds=24 * 3600)
    assert "homeserver_federation_items_dropped_total" in a.hs.metrics.text()


async def test_a_destination_that_fails_on_everything_loses_nothing(federation: Federation) -> None:
    a = await federation.start("a.example")
    alice = await a.register("alice")
    room_id = await create_room(alice, preset="public_chat")
    mallory = Stranger(federation.network, MALLORY)
    await mallory.join("a.example", room_id, "mallory")
    mallory.take = lambda body: (500, {"errcode": "M_UNKNOWN", "error": "My disk is full."})
    said = [f"message {number}" for number in range(60)]
    for text in said:
        await send_text(alice, room_id, text)
    await let_days_pass(1)
    asked = len(mallory.asked)
    taken: list[str] = []
    mallory.take = _refusing(taken, 500)

    async def got_all() -> bool:
        return taken == said

    await until(got_all, seconds=24 * 3600)
    assert asked < 1000


async def test_large_events_are_split_over_transactions_of_an_accepted_size(federation: Federation) -> None:
    a, b, alice, bob, room_id = await _two(federation)
    sizes: list[int] = []
    take = b.app

    async def measured(scope: Any, receive: Any, send: Any) -> None:
        if "/send/" in scope["path"]:
            sizes.append(int(dict(scope["headers"])[b"content-length"]))
        await take(scope, receive, send)

    federation.network.leave("b.example")
    for number in range(75):
        path = f"rooms/{quote(room_id)}/send/m.room.message/{number}"
        await alice.ok("PUT", path, json={"msgtype": "m.text", "body": f"{number} " + "x" * 62_000})
    federation.network.join("b.example", measured)

    async def got_all() -> bool:
        return len(await texts(bob, room_id, 100)) == 75

    await until(got_all)
    assert max(sizes) < 5 << 20
