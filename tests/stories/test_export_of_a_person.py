"""What a person gets of their data can be read, and nothing of it is missing, however much there is."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import trio

from homeserver.database import Transaction
from homeserver.database.rows import list_rows_of
from homeserver.portability.people import OWNERS_PER_READ, export_person
from homeserver.process.sealing import is_sealed
from tests.support.federation import Federation, create_room, invite, until
from tests.support.homeservers import Client, Server


def _nothing(done: int, of: int) -> None:
    del done, of


async def _export(server: Server, client: Client, folder: Path) -> dict[str, list[dict[str, Any]]]:
    await export_person(server.hs, client.user_id, folder, _nothing)
    paths = (folder / "data").iterdir()
    return {path.stem: [json.loads(line) for line in path.read_text().splitlines()] for path in paths}


def _values(value: Any) -> Iterator[Any]:
    yield value
    inside = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    for each in inside:
        yield from _values(each)


async def test_values_that_are_sealed_at_rest_are_readable_in_an_export(federation: Federation, tmp_path: Path) -> None:
    a, _, alice, bob = await federation.start_two()
    bird = await create_room(bob, name="Birds of the moor")
    local = await create_room(await a.register("carol"), name="The wood")
    await invite(bob, bird, alice.user_id)

    async def is_invited() -> bool:
        return bird in (await alice.ok("GET", "sync")).get("rooms", {}).get("invite", {})

    await until(is_invited)
    carol = await a.log_in("carol")
    await invite(carol, local, alice.user_id)
    federation.network.cut("a.example", "b.example")
    fen = await create_room(alice, name="The fen")
    await alice.ok(
        "PUT", f"rooms/{fen}/send/m.room.message/1?org.matrix.msc4140.delay=86400000", json={"body": "Later"}
    )
    data = await _export(a, alice, tmp_path / "invited")
    shown = {row["room_nid"]: row["stripped"] for row in data["memberships"] if row["stripped"]}
    assert [each["content"] for each in shown[bird] if each["type"] == "m.room.name"] == [{"name": "Birds of the moor"}]
    assert [each["content"] for each in shown[local] if each["type"] == "m.room.name"] == [{"name": "The wood"}]
    (outside,) = data["outside_memberships"]
    assert (outside["pdu"]["sender"], outside["pdu"]["state_key"]) == (bob.user_id, alice.user_id)

    await alice.ok("POST", f"rooms/{bird}/leave", json={"reason": "I am afraid of birds"})
    await trio.sleep(20)
    data |= await _export(a, alice, tmp_path / "left")
    (leave,) = data["pending_leaves"]
    assert leave["content"]["reason"] == "I am afraid of birds"
    (delayed,) = data["delayed_events"]
    assert delayed["content"] == {"body": "Later"}
    for table, rows in data.items():
        for value in _values(rows):
            if isinstance(value, dict) and value.keys() == {"base64"}:
                assert not is_sealed(base64.b64decode(value["base64"])), table


async def test_a_damaged_row_does_not_keep_the_rest_from_being_exported(federation: Federation, tmp_path: Path) -> None:
    a, _, alice, _ = await federation.start_two()
    carol = await a.register("carol")
    for name in ("The wood", "The fen"):
        await invite(carol, await create_room(carol, name=name), alice.user_id)
    wood = (await carol.ok("GET", "joined_rooms"))["joined_rooms"][0]
    await a.write(_damage_invitation, wood)
    data = await _export(a, alice, tmp_path / "out")
    shown = {row["room_nid"]: row["stripped"] for row in data["memberships"] if row["stripped"]}
    assert len(shown) == 2
    assert shown.pop(wood).startswith("(damaged: ")
    ((intact,),) = [[each for each in events if each["type"] == "m.room.name"] for events in shown.values()]
    assert intact["content"]["name"] in ("The wood", "The fen")


def _damage_invitation(tx: Transaction, room_id: str) -> None:
    row = tx.one("SELECT stripped FROM memberships WHERE room_nid = ? AND stripped IS NOT NULL", tx.find(room_id))
    assert row is not None
    damaged = bytearray(row[0])
    damaged[-1] ^= 1
    tx.run(
        "UPDATE memberships SET stripped = ? WHERE room_nid = ? AND stripped IS NOT NULL",
        bytes(damaged),
        tx.find(room_id),
    )


async def test_rows_of_thousands_of_owners_are_all_exported(federation: Federation, tmp_path: Path) -> None:
    """For example the queues of many pushers, or the rooms of many sliding syncs."""
    a, _, alice, _ = await federation.start_two()
    connections = 11 * OWNERS_PER_READ + 7
    await a.write(_store_connections, alice.user_id, connections)
    data = await _export(a, alice, tmp_path / "out")
    assert len(data["sync_connections"]) == connections
    assert [row["connection"] for row in data["sync_connection_configs"]] == list(range(1, connections + 1))


def _store_connections(tx: Transaction, user_id: str, connections: int) -> None:
    numbers = range(1, connections + 1)
    tx.many(
        "INSERT INTO sync_connections (connection, user_nid, device_id, conn_id, acknowledged, pending, begun_position,"
        " used_position) VALUES (?, ?, ?, ?, 0, 0, 0, 0)",
        [(number, tx.find(user_id), "D", f"list {number}") for number in numbers],
    )
    tx.many(
        "INSERT INTO sync_connection_configs (connection, digest, config) VALUES (?, ?, ?)",
        [(number, b"digest", b"{}") for number in numbers],
    )


async def test_rows_that_go_while_they_are_paged_through_hide_no_other_ones(federation: Federation) -> None:
    a, _, alice, _ = await federation.start_two()
    await a.write(_store_connections, alice.user_id, 10)

    def _page(tx: Transaction, after: dict[str, Any] | None) -> list[dict[str, Any]]:
        return list_rows_of(tx, "sync_connections", "user_nid", [tx.find(alice.user_id)], after, 4)

    def _delete_first(tx: Transaction) -> None:
        tx.run("DELETE FROM sync_connections WHERE connection <= 3")

    first = await a.read(_page, None)
    await a.write(_delete_first)
    second = await a.read(_page, first[-1])
    third = await a.read(_page, second[-1])
    assert [row["connection"] for row in first + second + third] == list(range(1, 11))


async def test_a_table_with_a_key_of_several_columns_is_paged_through(federation: Federation) -> None:
    a, _, alice, bob = await federation.start_two()
    for number in range(9):
        await alice.ok("PUT", f"user/{alice.user_id}/account_data/org.example.{number}", json={"number": number})

    def _read_all(tx: Transaction) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = []
        owners = [tx.find(alice.user_id), tx.find(bob.user_id)]
        while page := list_rows_of(tx, "account_data", "user_nid", owners, found[-1] if found else None, 2):
            found += page
        return found

    rows = await a.read(_read_all)
    texts = [repr(row) for row in rows]
    assert len(set(texts)) == len(texts) >= 9
