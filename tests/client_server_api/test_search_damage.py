"""Damaged events do not keep others from being found. Spec: client-server-api/#server-side-search"""

from __future__ import annotations

import pytest

from homeserver.database import Transaction
from homeserver.rooms.envelope import event_key
from tests.client_server_api.test_search import find, server
from tests.support.homeservers import Server
from tests.support.people import create, redact, say

__all__ = ["server"]


@pytest.mark.parametrize("kind", ["m.room.message", "m.room.redaction"])
async def test_messages_beside_a_damaged_event_are_found(server: Server, kind: str) -> None:
    alice = await server.register("alice")
    room_id = await create(alice)
    first, damaged, gone, last = await say(alice, room_id, "kettle 1", "kettle 2", "kettle 3", "kettle 4")
    await redact(alice, room_id, gone)

    def damage(tx: Transaction) -> None:
        which = "event_id = ?" if kind == "m.room.message" else "type_nid = ?"
        value = event_key(damaged) if kind == "m.room.message" else tx.find(kind)
        assert tx.run(f"UPDATE events SET content = ? WHERE {which}", b"", value) == 1

    await server.write(damage)
    server.hs.database.drop_caches()
    found = await find(alice, "kettle")
    assert found == [last, first] if kind == "m.room.message" else [last, damaged, first]
    (newest,) = await say(alice, room_id, "kettle 5")
    assert (await find(alice, "kettle"))[0] == newest
