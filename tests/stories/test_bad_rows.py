"""A bad row does not stop the work on all others, in any part of the server that goes over rows by itself."""

from __future__ import annotations

from typing import Any
from urllib.parse import quote

import pytest
import trio

from homeserver import limits
from homeserver.database import Transaction
from tests.support.federation import Federation, create_room, join, sync
from tests.support.storage import list_parked

NOBODY = 1 << 40  # no string has this number


def _add_bad_presence(tx: Transaction) -> None:
    tx.run(
        "INSERT INTO presence (user_nid, is_local, state, status_msg, last_active_ms, currently_active, told_ms,"
        " due_ms, position) VALUES (?, 1, 'offline', NULL, 0, 0, 0, 1, 1)",
        NOBODY,
    )


def _add_bad_typing(tx: Transaction) -> None:
    tx.run(
        "INSERT INTO typing (room_nid, user_nid, expires_ms, position, is_local) VALUES (?, ?, 1, 0, 1)", NOBODY, NOBODY
    )


async def test_users_go_offline_despite_a_damaged_row(federation: Federation) -> None:
    a = await federation.start("a.example")
    alice, bob = await a.register("alice"), await a.register("bob")
    room_id = await create_room(alice, preset="public_chat")
    await join(bob, room_id)
    await a.write(_add_bad_presence)
    await sync(alice)
    await trio.sleep(3600)
    status: Any = await bob.ok("GET", f"presence/{quote(alice.user_id)}/status")
    assert status["presence"] == "offline"
    assert [(lane, item) for lane, item, _, _ in await a.read(list_parked)] == [("presence", str(NOBODY))]


async def test_typing_ends_despite_a_damaged_row(federation: Federation, caplog: pytest.LogCaptureFixture) -> None:
    a = await federation.start("a.example")
    alice = await a.register("alice")
    room_id = await create_room(alice)
    await a.write(_add_bad_typing)
    for _ in range(3):
        path = f"rooms/{quote(room_id)}/typing/{quote(alice.user_id)}"
        await alice.ok("PUT", path, json={"typing": True, "timeout": 5_000})
        since = (await sync(alice))["next_batch"]
        await trio.sleep(limits.LANE_TRIES * 5)
        ephemeral = (await sync(alice, since))["rooms"]["join"][room_id]["ephemeral"]["events"]
        assert ephemeral == [{"type": "m.typing", "content": {"user_ids": []}}]
    parked = [record for record in caplog.records if record.message.startswith("an item cannot be read")]
    assert len(parked) == 1
