"""A damaged page of the database costs the rooms whose rows are on it. The others go on being sent to other servers."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest
import trio

from homeserver.config import DatabaseSection
from homeserver.federation.identifiers import RoomID
from tests.support.engine import ENGINE, file_url
from tests.support.federation import Federation, checked, create_room, join, send_text, sync, wait_text
from tests.support.storage import damage_pages

pytestmark = pytest.mark.skipif(ENGINE != "sqlite", reason="the files of PostgreSQL are not ours")

# Rows between those of one room and those of the next, so that they are on different pages.
FILLING = 600

Damage = Callable[[Path, RoomID], int]


def _number(path: Path, room_id: str) -> int:
    with closing(sqlite3.connect(path)) as connection:
        return int(connection.execute("SELECT nid FROM strings WHERE value = ?", (room_id,)).fetchone()[0])


def _damage_names(path: Path, room_id: RoomID) -> int:
    return damage_pages(path, "strings", room_id.encode())


def _damage_rooms(path: Path, room_id: RoomID) -> int:
    with closing(sqlite3.connect(path)) as connection:
        sql = "SELECT state_root FROM rooms WHERE room_nid = ?"
        (root,) = connection.execute(sql, (_number(path, room_id),)).fetchone()
    return damage_pages(path, "rooms", root)


def _damage_memberships(path: Path, room_id: RoomID) -> int:
    return damage_pages(path, "memberships_of_room", _number(path, room_id).to_bytes(2, "big") + b"join")


def _fill(path: Path) -> None:
    """Puts enough rows behind those that are there, in the tables that the tests damage."""
    with closing(sqlite3.connect(path)) as connection, connection:
        (last,) = connection.execute("SELECT MAX(nid) FROM strings").fetchone()
        numbers = range(last + 1, last + 1 + FILLING)
        connection.executemany(
            "INSERT INTO strings (nid, value) VALUES (?, ?)", [(number, f"filling {number}") for number in numbers]
        )
        connection.executemany(
            "INSERT INTO rooms (room_nid, version, create_position, state_root, extremities, depth, last_position,"
            " members_position) VALUES (?, '11', 0, randomblob(16), x'90', 0, 0, 0)",
            [(number,) for number in numbers],
        )
        connection.executemany(
            "INSERT INTO memberships (user_nid, room_nid, membership, event_position, changed_position, server_nid,"
            " forgotten) VALUES (?, ?, 'join', 0, 0, ?, 0)",
            [(number, number, number) for number in numbers],
        )


@pytest.mark.parametrize("damage", [_damage_names, _damage_rooms, _damage_memberships])
async def test_events_of_other_rooms_are_delivered(federation: Federation, tmp_path: Path, damage: Damage) -> None:
    path = tmp_path / "a.example" / "homeserver.db"
    section = DatabaseSection(url=file_url(path.parent))
    a, b = await federation.start("a.example", database=section), await federation.start("b.example")
    alice, bob = await a.register("alice"), await b.register("bob")
    first = await create_room(alice, preset="public_chat")
    await join(bob, first, "a.example")
    await federation.kill("a.example")
    _fill(path)

    a = await federation.start("a.example", database=section)
    alice = a.with_token(alice.token)
    bad = await create_room(alice, preset="public_chat")
    await join(bob, bad, "a.example")
    await federation.kill("a.example")
    _fill(path)

    a = await federation.start("a.example", database=section)
    alice = a.with_token(alice.token)
    last = await create_room(alice, preset="public_chat")
    await join(bob, last, "a.example")
    federation.network.leave("b.example")
    for room_id in (first, bad, last):
        await send_text(alice, room_id, "while you were away")
    await trio.sleep(60)
    await federation.kill("a.example")
    assert damage(path, bad) > 0

    a = await federation.start("a.example", database=section)
    alice = a.with_token(alice.token)
    federation.network.join("b.example", checked(b.app))
    for room_id in (first, last):
        await wait_text(bob, room_id, "while you were away")
    for room_id in (first, last):
        await send_text(alice, room_id, "and now")
        await wait_text(bob, room_id, "and now")


async def test_an_unreadable_server_name_does_not_exclude_other_servers(
    federation: Federation, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "a.example" / "homeserver.db"
    section = DatabaseSection(url=file_url(path.parent))
    a, b = await federation.start("a.example", database=section), await federation.start("b.example")
    alice, bob = await a.register("alice"), await b.register("bob")
    room_id = await create_room(alice, preset="public_chat")
    await join(bob, room_id, "a.example")
    await send_text(alice, room_id, "before")
    await federation.kill("a.example")
    _fill(path)

    a = await federation.start("a.example", database=section)
    alice = a.with_token(alice.token)
    c = await federation.start("c.example")
    await join(await c.register("carol"), room_id, "a.example")
    await trio.sleep(60)
    for server in ("b.example", "c.example"):
        federation.network.leave(server)
    await send_text(alice, room_id, "while you were away")
    await trio.sleep(60)
    await federation.kill("a.example")
    _fill(path)
    assert damage_pages(path, "strings", b"c.example") > 0

    a = await federation.start("a.example", database=section)
    federation.network.join("b.example", checked(b.app))
    await wait_text(bob, room_id, "while you were away")
    await send_text(a.with_token(alice.token), room_id, "and now")
    await wait_text(bob, room_id, "and now")
    assert any("its name cannot be read" in record.message for record in caplog.records)


async def test_messages_of_an_inbox_that_cannot_be_read_are_not_taken_for_received(
    federation: Federation, tmp_path: Path
) -> None:
    path = tmp_path / "a.example" / "homeserver.db"
    section = DatabaseSection(url=file_url(path.parent))
    a = await federation.start("a.example", database=section)
    alice, bob = await a.register("alice"), await a.register("bob")
    since = (await sync(bob))["next_batch"]
    for n in range(3):
        content = {"text": "x" * 3_000, "n": f"number {n}"}  # each on a page of its own
        await alice.ok("PUT", f"sendToDevice/a/{n}", json={"messages": {bob.user_id: {bob.device_id: content}}})
    await federation.kill("a.example")
    assert damage_pages(path, "to_device_inbox", b"number 1") == 1

    a = await federation.start("a.example", database=section)
    phone = a.with_token(bob.token)
    for n in range(3):
        await phone.ok("PUT", f"user/{bob.user_id}/account_data/org.example.note", json={"n": n})
        answer = await sync(phone, since)
        assert answer["account_data"]["events"][0]["content"] == {"n": n}
        since = answer["next_batch"]
    first = "SELECT 1 FROM to_device_inbox ORDER BY position LIMIT 1"
    assert await a.read(lambda tx: tx.all(first)) == [(1,)]
