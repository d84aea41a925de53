"""Stored data that cannot be read back: an answer with an errcode, never a shorter one, and the rest works on.

Each kind of damage is tried in one of two rooms: rows of events, their content, nodes of the state, blobs of media.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from urllib.parse import quote

import pytest
import trio

from homeserver.config import BlobsSection, DatabaseSection
from homeserver.database import Transaction
from homeserver.federation.identifiers import RoomID
from homeserver.rooms.heads import get_head
from homeserver.rooms.storage import find_position
from tests.support.homeservers import Client, Homeservers, Server

READY = "/_homeserver/health/ready"

Harm = Callable[[Transaction, RoomID, str], None]


def _break_frame(tx: Transaction, room_id: RoomID, event_id: str) -> None:
    _set_content(tx, event_id, b"\x01" + b"\xff" * 40)


def _cut_content(tx: Transaction, room_id: RoomID, event_id: str) -> None:
    (content,) = tx.one("SELECT content FROM events WHERE position = ?", find_position(tx, event_id)) or (b"",)
    _set_content(tx, event_id, bytes(content)[: len(content) // 2])


def _scramble_json(tx: Transaction, room_id: RoomID, event_id: str) -> None:
    """Damages the JSON in an intact frame, as if its dictionary or literals were hit: it still decompresses."""
    _set_content(tx, event_id, b'\x00{"body":"he\x00llo","msg"type":"m.text"}')


def _scramble_text(tx: Transaction, room_id: RoomID, event_id: str) -> None:
    _set_content(tx, event_id, b'\x00{"body":"\xff\xfe","msgtype":"m.text"}')


def _empty_content(tx: Transaction, room_id: RoomID, event_id: str) -> None:
    _set_content(tx, event_id, b"")


def _set_content(tx: Transaction, event_id: str, content: bytes) -> None:
    tx.run("UPDATE events SET content = ? WHERE position = ?", content, find_position(tx, event_id))


def _lose_state_node(tx: Transaction, room_id: RoomID, event_id: str) -> None:
    tx.run("DELETE FROM state_nodes WHERE node_id = ?", get_head(tx, room_id).state_root)


def _change_state_node(tx: Transaction, room_id: RoomID, event_id: str) -> None:
    tx.run("UPDATE state_nodes SET content = ? WHERE node_id = ?", b"\x92\x00\x90", get_head(tx, room_id).state_root)


def _lose_member_event(tx: Transaction, room_id: RoomID, event_id: str) -> None:
    tx.run(
        "DELETE FROM events WHERE room_nid = ? AND type_nid = ? AND state_key_nid IS NOT NULL",
        tx.find(room_id), tx.find("m.room.member"),
    )  # fmt: skip


@pytest.fixture
async def alice(homeserver: Server) -> Client:
    return await homeserver.register("alice")


@pytest.fixture
async def sqlite_server(homeservers: Homeservers) -> Server:
    return await homeservers.start("sqlite.example", database=DatabaseSection(url="sqlite::memory:"))


async def send(client: Client, room_id: str, number: int) -> str:
    path = f"rooms/{quote(room_id)}/send/m.room.message/txn{number}"
    event_id: str = (await client.ok("PUT", path, json={"msgtype": "m.text", "body": f"{number} " * 20}))["event_id"]
    return event_id


async def harmed(server: Server, client: Client, harm: Harm) -> tuple[RoomID, RoomID, str]:
    """A damaged room, one that is whole, and the event in the damaged one that was harmed. No cache helps."""
    room_id, other = await server.make_room(client), await server.make_room(client)
    event_ids = [await send(client, room_id, number) for number in range(5)]
    await send(client, other, 99)
    await trio.sleep(1)  # whatever follows the stream has read the events by then
    await server.write(harm, room_id, event_ids[2])
    await server.read(_empty_caches)
    return room_id, other, event_ids[2]


def _empty_caches(tx: Transaction) -> None:
    tx._cache.caches._by_name.clear()


@pytest.mark.parametrize("harm", [_break_frame, _cut_content, _scramble_json, _scramble_text, _empty_content])
async def test_a_page_with_a_damaged_event_is_an_error(homeserver: Server, alice: Client, harm: Harm) -> None:
    room_id, _, event_id = await harmed(homeserver, alice, harm)
    for path in ("messages?dir=b", "messages?dir=f", f"event/{quote(event_id)}", f"context/{quote(event_id)}"):
        assert await alice.refused("GET", f"rooms/{quote(room_id)}/{path}") == (500, "M_UNKNOWN"), path
    assert (await alice.get(f"rooms/{quote(room_id)}/messages?dir=b&limit=2")).status_code == 200


@pytest.mark.parametrize("harm", [_lose_state_node, _change_state_node, _lose_member_event])
async def test_incomplete_state_is_an_error(homeserver: Server, alice: Client, harm: Harm) -> None:
    room_id, *_ = await harmed(homeserver, alice, harm)
    for path in ("state", "members", f"state/m.room.member/{quote(alice.user_id)}"):
        assert await alice.refused("GET", f"rooms/{quote(room_id)}/{path}") == (500, "M_UNKNOWN"), path


@pytest.mark.parametrize("harm", [_break_frame, _scramble_json, _lose_state_node, _lose_member_event])
async def test_other_rooms_keep_working(homeserver: Server, alice: Client, harm: Harm) -> None:
    """In /sync too, where the damaged room has a gap. Paginating back into it is an error."""
    room_id, other, _ = await harmed(homeserver, alice, harm)
    answer = await alice.ok("GET", "sync?timeout=0")
    assert len(answer["rooms"]["join"][other]["timeline"]["events"]) >= 2
    timeline = answer["rooms"]["join"][room_id]["timeline"]
    assert timeline["events"] == [] and timeline["limited"]
    page = await alice.get(f"rooms/{quote(room_id)}/messages?dir=b&from={timeline['prev_batch']}")
    assert page.status_code == 500
    assert await send(alice, other, 100)
    answer = await alice.ok("GET", f"sync?timeout=0&since={answer['next_batch']}")
    assert list(answer["rooms"]["join"]) == [other]


@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("event_id", b"\xff\xfe"),
        ("origin_server_ts", "yesterday"),
        ("status", b"\x00"),
        ("state_before", "text"),
        ("state_before", b"short"),
        ("state_before", None),
        ("envelope", "text"),
        ("content", 5),
        ("redacted_by", "text"),
    ],
)
async def test_values_of_the_wrong_type_are_reported_as_damage(
    sqlite_server: Server, column: str, value: object
) -> None:
    """SQLite takes any value in any column, so a damaged or edited row may hold anything."""
    alice = await sqlite_server.register("alice")

    def harm(tx: Transaction, room_id: RoomID, event_id: str) -> None:
        tx.run(f"UPDATE events SET {column} = ? WHERE position = ?", value, find_position(tx, event_id))

    room_id, other, _ = await harmed(sqlite_server, alice, harm)
    assert await alice.refused("GET", f"rooms/{quote(room_id)}/messages?dir=b") == (500, "M_UNKNOWN")
    await _check_other_rooms(sqlite_server, alice, other)


@pytest.mark.parametrize(
    ("table", "column", "value"),
    [
        ("rooms", "version", "99"),
        ("rooms", "state_root", "text"),
        ("rooms", "extremities", "text"),
        ("rooms", "depth", "deep"),
        ("rooms", "last_position", b"\xff"),
        ("rooms", "members_position", "text"),
        ("memberships", "event_position", "text"),
        ("memberships", "changed_position", b"\xff"),
        ("memberships", "stripped", b"no JSON"),
    ],
)
async def test_a_damaged_row_of_a_room_does_not_affect_other_rooms(
    sqlite_server: Server, table: str, column: str, value: object
) -> None:
    alice = await sqlite_server.register("alice")

    def harm(tx: Transaction, room_id: RoomID, event_id: str) -> None:
        tx.run(f"UPDATE {table} SET {column} = ? WHERE room_nid = ?", value, tx.find(room_id))

    *_, other, _ = await harmed(sqlite_server, alice, harm)
    await _check_other_rooms(sqlite_server, alice, other)


async def _check_other_rooms(server: Server, alice: Client, other: str) -> None:
    """Checks that the other room still works, also in an incremental sync, and that the health check fails."""
    answer = await alice.ok("GET", "sync?timeout=0")
    assert other in answer["rooms"]["join"]
    event_id = await send(alice, other, 100)
    answer = await alice.ok("GET", f"sync?timeout=0&since={answer['next_batch']}")
    assert answer["rooms"]["join"][other]["timeline"]["events"][-1]["event_id"] == event_id
    assert (await server.anonymous.get(READY)).status_code == 503


async def test_damage_is_logged_once_and_shown_by_the_health_check(
    homeserver: Server, alice: Client, caplog: pytest.LogCaptureFixture
) -> None:
    room_id, other, event_id = await harmed(homeserver, alice, _break_frame)
    assert (await homeserver.anonymous.get(READY)).status_code == 200
    for _ in range(5):
        await alice.refused("GET", f"rooms/{quote(room_id)}/messages?dir=b")
    told = [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert ["damaged" in record.message for record in told] == [True]
    assert not told[0].exc_info
    await send(alice, other, 100)
    refused = await homeserver.anonymous.get(READY)
    assert refused.status_code == 503 and "damaged" in refused.json()["reason"]


@pytest.mark.parametrize("size_bytes", [5_000, 1_000_000])
async def test_truncated_media_are_reported_as_missing(
    homeservers: Homeservers, tmp_path: Path, size_bytes: int
) -> None:
    server = await homeservers.start("media.example", blobs=BlobsSection(url="file:blobs"))
    alice = await server.register("alice")
    headers = {"content-type": "image/png"}
    answer = await alice.ok("POST", "/_matrix/media/v3/upload", content=b"x" * size_bytes, headers=headers)
    (blob,) = (path for path in (tmp_path / "media.example" / "blobs" / "media").rglob("*") if path.is_file())
    with blob.open("r+b") as file:
        file.truncate(size_bytes // 2)
    path = answer["content_uri"].removeprefix("mxc://")
    assert await alice.refused("GET", f"/_matrix/client/v1/media/download/{path}") == (500, "M_UNKNOWN")
    thumbnail = f"/_matrix/client/v1/media/thumbnail/{path}?width=32&height=32"
    assert await alice.refused("GET", thumbnail) == (400, "M_UNKNOWN"), "that it is no picture was noted before"
    assert (await server.anonymous.get(READY)).status_code == 503
