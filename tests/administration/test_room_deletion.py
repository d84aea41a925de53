"""Rooms are deleted with everything that is stored of them, and a kill at any moment loses nothing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

import msgspec
import pytest
import trio

from homeserver.database import Database, Transaction
from homeserver.features.administration.room_deletion import request_deletion, run_deletion
from homeserver.rooms.inventory import OTHER_TABLES, ROOM_TABLES
from homeserver.rooms.tasks import find_task
from tests.stories.test_erasure import list_columns
from tests.support.archive import archive_all
from tests.support.engine import list_tables
from tests.support.homeservers import Client, Server
from tests.support.people import create, invite, public_room, redact, say, send, state, sync

V1, V2 = "/_synapse/admin/v1", "/_synapse/admin/v2"
Json = dict[str, Any]

STAYS = {"strings.value", "tasks.resource_nid", "tasks.result", "tasks.parameters", "forgotten_rooms.room_nid"}
"""Where something says which room it was, or how far its deletion has come."""


def deleted(room_id: str, version: str = V2) -> str:
    return f"{version}/rooms/{quote(room_id, safe='')}"


@pytest.fixture
async def bob(server: Server) -> Client:
    return await server.register("bob")


async def wait_for(boss: Client, delete_id: str) -> Json:
    while True:
        told = await boss.ok("GET", f"{V2}/rooms/delete_status/{delete_id}")
        if told["status"] in ("complete", "failed"):
            return told
        await trio.sleep(0.5)


def count_traces(tx: Transaction, room_id: str, event_ids: list[str]) -> set[str]:
    """Each column in which something still refers to the room."""
    room_nid, found = tx.find(room_id), set()
    for table in list_tables(tx):
        columns = list_columns(tx, table)
        for row in tx.all(f"SELECT {', '.join(columns)} FROM {table}"):
            for column, value in zip(columns, row, strict=True):
                is_room = column == "room_nid" and value == room_nid
                is_text = isinstance(value, str) and (room_id in value or any(each in value for each in event_ids))
                if is_room or is_text:
                    found.add(f"{table}.{column}")
    return found


async def lively_room(server: Server, alice: Client, bob: Client) -> tuple[str, list[str]]:
    """A room with messages, a thread, a redaction, receipts, tags, an alias and a file."""
    room_id = await public_room(alice, bob, room_alias_name="doomed", visibility="public", name="Doomed")
    ids = await say(alice, room_id, *(f"doomed {number}" for number in range(30)))
    reply = {"msgtype": "m.text", "body": "r", "m.relates_to": {"rel_type": "m.thread", "event_id": ids[0]}}
    ids.append(await send(bob, room_id, reply))
    await redact(alice, room_id, ids[1])
    await bob.ok("POST", f"rooms/{quote(room_id)}/receipt/m.read/{quote(ids[5])}", json={})
    await bob.ok("PUT", f"user/{bob.user_id}/rooms/{quote(room_id)}/tags/u.work", json={})
    upload = await alice.post("/_matrix/media/v3/upload", content=b"a file", headers={"content-type": "text/plain"})
    uri = upload.json()["content_uri"]
    await send(alice, room_id, {"msgtype": "m.file", "body": "f", "url": uri})
    await sync(bob)
    await trio.sleep(5)
    return room_id, ids


async def test_a_room_is_deleted_with_all_that_is_stored_of_it(
    server: Server, boss: Client, alice: Client, bob: Client
) -> None:
    room_id, ids = await lively_room(server, alice, bob)
    carol = await server.register("carol")
    await invite(alice, room_id, carol)
    other = await public_room(alice, bob)
    await say(alice, other, "stays")
    nodes = await server.read(lambda tx: tx.values("SELECT COUNT(*) FROM state_nodes")[0])
    told = await wait_for(boss, (await boss.ok("DELETE", deleted(room_id), json={}))["delete_id"])
    assert (told["status"], told["room_id"]) == ("complete", room_id)
    assert sorted(told["shutdown_room"]["kicked_users"]) == [alice.user_id, bob.user_id]
    assert told["shutdown_room"]["local_aliases"] == ["#doomed:test.example"]
    assert await server.read(count_traces, room_id, ids) <= STAYS
    assert await server.read(lambda tx: tx.values("SELECT COUNT(*) FROM state_nodes")[0]) < nodes
    assert await alice.ok("GET", "joined_rooms") == {"joined_rooms": [other]}
    assert (await carol.ok("GET", "sync")).get("rooms", {}) == {}
    assert await alice.refused("GET", f"rooms/{quote(room_id)}/messages?dir=b") == (403, "M_FORBIDDEN")
    assert await boss.refused("GET", deleted(room_id, V1)) == (404, "M_NOT_FOUND")
    assert await alice.refused("GET", "directory/room/%23doomed%3Atest.example") == (404, "M_NOT_FOUND")
    assert (await boss.ok("GET", f"{deleted(room_id)}/delete_status"))["results"] == [told]
    assert (await boss.ok("GET", f"{V1}/rooms/{quote(room_id)}/block")) == {"block": False}
    await say(alice, other, "still there")


async def test_members_are_moved_to_a_room_that_says_why(
    server: Server, boss: Client, alice: Client, bob: Client
) -> None:
    room_id, _ = await lively_room(server, alice, bob)
    body = {"new_room_user_id": boss.user_id, "room_name": "Closed", "message": "Spam.", "block": True, "purge": False}
    answer = await boss.ok("DELETE", deleted(room_id, V1), json=body)
    new = answer["new_room_id"]
    assert sorted(answer["kicked_users"]) == [alice.user_id, bob.user_id]
    assert (await alice.ok("GET", "joined_rooms"))["joined_rooms"] == [new]
    there = await state(alice, new)
    assert there["m.room.name", ""]["content"] == {"name": "Closed"}
    text = {"msgtype": "m.text", "body": "x"}
    assert await alice.refused("PUT", f"rooms/{quote(new)}/send/m.room.message/x", json=text) == (403, "M_FORBIDDEN")
    assert (await alice.ok("GET", "directory/room/%23doomed%3Atest.example"))["room_id"] == new
    assert await alice.refused("POST", f"join/{quote(room_id)}", json={}) == (403, "M_FORBIDDEN")
    assert (await boss.ok("GET", deleted(room_id, V1)))["joined_local_members"] == 0  # it is not purged


async def test_wrong_deletions_are_refused(boss: Client, alice: Client) -> None:
    room_id = await create(alice)
    assert await boss.refused("DELETE", deleted("!unknown:test.example"), json={}) == (404, "M_NOT_FOUND")
    assert await boss.refused("DELETE", deleted("!unknown:test.example", V1), json={}) == (404, "M_NOT_FOUND")
    blocked = await boss.ok("DELETE", deleted("!unknown:test.example", V1), json={"block": True})
    assert blocked["kicked_users"] == []
    for body in ({"new_room_user_id": "@x:elsewhere.example"}, {"message": "x" * 5000}):
        assert await boss.refused("DELETE", deleted(room_id), json=body) == (400, "M_INVALID_PARAM"), body
    assert await boss.refused("DELETE", deleted(room_id), json={"purge": "no"}) == (400, "M_BAD_JSON")
    assert await boss.refused("GET", f"{V2}/rooms/delete_status/unknown") == (404, "M_NOT_FOUND")
    assert await boss.refused("GET", f"{deleted(room_id)}/delete_status") == (404, "M_NOT_FOUND")
    assert (await alice.ok("GET", "joined_rooms"))["joined_rooms"] == [room_id]


async def test_a_second_request_joins_the_first(boss: Client, alice: Client) -> None:
    room_id = await create(alice)
    first = await boss.ok("DELETE", deleted(room_id), json={})
    assert await boss.ok("DELETE", deleted(room_id), json={}) == first
    assert (await wait_for(boss, first["delete_id"]))["status"] == "complete"


async def test_nobody_comes_back_while_a_room_is_being_deleted(boss: Client, alice: Client, bob: Client) -> None:
    room_id = await public_room(alice, bob)
    told = await boss.ok("DELETE", deleted(room_id), json={})
    assert await bob.refused("POST", f"join/{quote(room_id)}", json={}) in ((403, "M_FORBIDDEN"), (404, "M_NOT_FOUND"))
    await wait_for(boss, told["delete_id"])


async def test_every_table_with_rooms_is_in_the_inventory(server: Server) -> None:
    def list_missing(tx: Transaction) -> set[str]:
        known = {*ROOM_TABLES, *OTHER_TABLES}
        tables = list_tables(tx)
        assert known <= set(tables) | {"forgotten_rooms"}
        return {table for table in tables if "room_nid" in list_columns(tx, table)} - known

    assert await server.read(list_missing) == set()


class Killed(Exception):
    """The process has ended."""


@dataclass(slots=True)
class MortalDatabase:
    """A database whose process ends before a write, after some others."""

    database: Database
    left: int

    def __getattr__(self, name: str) -> Any:
        return getattr(self.database, name)

    async def write(self, fn: Any, *args: Any) -> Any:
        if self.left == 0:
            raise Killed
        self.left -= 1
        return await self.database.write(fn, *args)


async def test_a_deletion_that_is_killed_again_and_again_gets_done(
    server: Server, boss: Client, alice: Client, bob: Client
) -> None:
    room_id, ids = await lively_room(server, alice, bob)
    await archive_all(server.hs)
    await say(alice, room_id, "after the archive")
    assert await server.read(lambda tx: tx.values("SELECT COUNT(*) FROM archive_blocks")[0]) > 0
    parameters = {
        "new_room_user_id": boss.user_id, "room_name": None, "message": None, "block": False, "purge": True,
        "force_purge": False, "requester": boss.user_id,
    }  # fmt: skip
    task = await server.write(request_deletion, room_id, parameters, is_urgent=False)
    kills = 0
    while not (await server.read(find_task, task.task_id)).has_ended:
        mortal: Any = MortalDatabase(server.hs.database, kills)
        try:
            await run_deletion(msgspec.structs.replace(server.hs, database=mortal), task.task_id)
        except Killed:
            kills += 1
    ended = await server.read(find_task, task.task_id)
    assert ended.status == "complete" and kills > 8
    assert sorted(ended.result["shutdown_room"]["kicked_users"]) == [alice.user_id, bob.user_id]
    assert await server.read(count_traces, room_id, ids) <= STAYS
    assert await server.read(lambda tx: tx.values("SELECT COUNT(*) FROM archive_blocks")[0]) == 0
    joined = (await alice.ok("GET", "joined_rooms"))["joined_rooms"]
    assert joined == [ended.result["shutdown_room"]["new_room_id"]]
