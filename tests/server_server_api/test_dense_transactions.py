"""Transactions made of as many JSON values as they can hold: each event is decoded, and judged, when its turn comes.

Spec: server-server-api/#transactions
"""

from __future__ import annotations

from typing import Any

import pytest

from homeserver.federation.identifiers import ServerName
from tests.support.federation import Federation, create_room, texts
from tests.support.stranger import Joined, Stranger

HERE = ServerName("a.example")
MALLORY = ServerName("mallory.example")
VALUES: dict[str, list[Any]] = {
    "numbers": [0] * 30_000,
    "arrays": [[]] * 20_000,
    "objects": [{"": {}}] * 7_000,
    "text like values": ["[{,:"] * 8_000,
}


def dense(room: Joined, name: str, value: list[Any]) -> Any:
    """A message filled with values."""
    return room.event("m.room.message", {"msgtype": "m.text", "body": name, "a": value})


@pytest.mark.parametrize("name", VALUES)
async def test_the_densest_transaction_is_accepted(federation: Federation, name: str) -> None:
    server = await federation.start(HERE)
    alice = await server.register("alice")
    mallory = Stranger(federation.network, MALLORY)
    rooms = [await create_room(alice, preset="public_chat", room_version="10") for _ in range(2)]
    joined = [await mallory.join(HERE, room_id, "mallory") for room_id in rooms]
    events = [dense(joined[number % 2], f"dense {number}", VALUES[name]) for number in range(10)]
    events.append(joined[0].text("small"))
    results = await mallory.send(HERE, "1", [event.pdu for event in events])
    assert results == {event.event_id: {} for event in events}
    expected = {f"dense {number}" for number in range(0, 10, 2)} | {"small"}
    assert expected <= set(await texts(alice, rooms[0]))
    assert server.hs.budgets.peers.held == 0


async def test_junk_in_a_large_transaction_does_not_affect_the_rest(federation: Federation) -> None:
    server = await federation.start(HERE)
    alice = await server.register("alice")
    mallory = Stranger(federation.network, MALLORY)
    room_id = await create_room(alice, preset="public_chat", room_version="10")
    room = await mallory.join(HERE, room_id, "mallory")
    first, second = room.text("first"), room.text("second")
    deep: Any = 0
    for _ in range(600):
        deep = [deep]
    content = {"msgtype": "m.text", "body": "junk"}
    junk = [
        {**first.pdu, "content": {**content, "a": [0] * 100_000}},
        {**first.pdu, "content": {**content, "a": "x" * 300_000}},
        {**first.pdu, "content": {**content, "a": deep}},
        {"room_id": room_id},
        [0] * 100_000,
        5,
    ]
    typing = {"room_id": room_id, "user_id": room.user_id, "typing": True}
    edus = [{"edu_type": "m.typing", "content": {**typing, "a": [0] * 100_000}}, 5, {}]
    results = await mallory.send(HERE, "1", [first.pdu, *junk, second.pdu], edus)
    assert results == {first.event_id: {}, second.event_id: {}}
    assert [text for text in await texts(alice, room_id) if text != "junk"] == ["first", "second"]
