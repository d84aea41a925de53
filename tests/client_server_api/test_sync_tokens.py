"""Tokens of another history, as clients hold them after a restore from a backup. Spec: client-server-api/#syncing

A backup is the folder of the data, copied while the server is stopped.
"""

from __future__ import annotations

import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from homeserver.config import DatabaseSection
from homeserver.database import Transaction
from homeserver.database.stream import Stream
from tests.support.homeservers import Client, NoWire, Server, config_for_tests, running
from tests.support.keys import SIGNED, Device
from tests.support.people import (
    ALWAYS_TOLD,
    ids,
    join,
    leave,
    messages,
    path_of,
    public_room,
    room_in,
    say,
    sync,
    texts,
    timeline,
)
from tests.support.rows import row


@asynccontextmanager
async def started(folder: Path) -> AsyncIterator[Server]:
    config = config_for_tests("test.example", folder, database=DatabaseSection(url="sqlite:homeserver.db"))
    async with running(config, wire=NoWire()) as server:
        yield server


def again(server: Server, *clients: Client) -> list[Client]:
    """The same devices, of the server that runs now."""
    return [Client(server, client.token, client.user_id, client.device_id) for client in clients]


def back_up(folder: Path) -> None:
    shutil.copytree(folder / "test.example", folder / "backup")


def restore(folder: Path) -> None:
    shutil.rmtree(folder / "test.example")
    shutil.copytree(folder / "backup", folder / "test.example")


@pytest.mark.usefixtures("homeservers")
@pytest.mark.parametrize("restarts", [0, 1])
@pytest.mark.parametrize("passed", [False, True], ids=["at once", "when the stream has passed the token"])
async def test_a_client_that_synced_after_the_backup_misses_nothing(
    tmp_path: Path, restarts: int, passed: bool
) -> None:
    async with started(tmp_path) as server:
        alice, bob = await server.register("alice"), await server.register("bob")
        room_id = await public_room(alice, bob)
        left_room = await public_room(alice, bob)
        await leave(bob, left_room)
        await say(alice, room_id, "before")
        early = (await sync(bob))["next_batch"]
    back_up(tmp_path)
    for _ in range(restarts + 1):
        async with started(tmp_path) as server:
            alice, bob = again(server, alice, bob)
            await join(bob, left_room)
            await say(alice, room_id, *(f"lost {number}" for number in range(10)))
            lost = (await sync(bob))["next_batch"]
    restore(tmp_path)
    async with started(tmp_path) as server:
        alice, bob = again(server, alice, bob)
        (event_id,) = await say(alice, room_id, "after")
        if passed:
            await say(alice, room_id, *(f"after {number}" for number in range(80)))
        # A token from before the backup goes on as if nothing had happened.
        everything = {"room": {"timeline": {"limit": 200}}}
        assert texts(timeline(await sync(bob, early, filter=everything), room_id))[0] == "after"

        answer = await sync(bob, lost, filter=everything, timeout=30_000)
        room = room_in(answer, room_id)
        assert room["timeline"]["limited"]
        assert event_id in ids(room["timeline"]["events"])
        assert "lost" not in str(room)
        assert {event["type"] for event in room["state"]["events"]} >= {"m.room.create"} or "m.room.create" in {
            event["type"] for event in room["timeline"]["events"]
        }
        assert room_in(answer, left_room, "leave")  # the client thinks that it is in that room
        assert "rooms" not in await sync(bob, answer["next_batch"])
        await say(alice, room_id, "at last")
        assert texts(timeline(await sync(bob, answer["next_batch"]), room_id)) == ["at last"]


@pytest.mark.usefixtures("homeservers")
async def test_one_time_keys_from_a_backup_are_not_issued_again(tmp_path: Path) -> None:
    """The device uploads others as soon as it syncs: it is told that it has none."""
    async with started(tmp_path) as server:
        alice = await server.register("alice")
        device = Device(alice.user_id, alice.device_id)
        keys = device.one_time_keys(3)
        await alice.ok("POST", "keys/upload", json={"device_keys": device.keys(), "one_time_keys": keys})
    back_up(tmp_path)
    claim = {"one_time_keys": {device.user_id: {device.device_id: SIGNED}}}
    async with started(tmp_path) as server:
        (alice,) = again(server, alice)
        await alice.ok("POST", "keys/claim", json=claim)
        lost = (await sync(alice))["next_batch"]
    restore(tmp_path)
    async with started(tmp_path) as server:
        (alice,) = again(server, alice)
        answer = await sync(alice, lost)
        assert answer["device_one_time_keys_count"] == {SIGNED: 0}
        new = device.one_time_keys(2)
        await alice.ok("POST", "keys/upload", json={"one_time_keys": new})
        for token in (lost, answer["next_batch"]):  # the answer to the first may have been lost
            assert (await sync(alice, token))["device_one_time_keys_count"] == {SIGNED: 2}
        claimed = await alice.ok("POST", "keys/claim", json=claim)
        assert claimed["one_time_keys"][device.user_id][device.device_id].keys() <= new.keys()


@pytest.mark.usefixtures("homeservers")
async def test_paginating_from_a_token_lost_in_a_restore_misses_nothing(tmp_path: Path) -> None:
    async with started(tmp_path) as server:
        alice = await server.register("alice")
        room_id = await public_room(alice)
        await say(alice, room_id, *(f"before {number}" for number in range(5)))
    back_up(tmp_path)
    async with started(tmp_path) as server:
        (alice,) = again(server, alice)
        events = await say(alice, room_id, *(f"lost {number}" for number in range(20)))
        lost_tokens = [
            (await sync(alice))["next_batch"],
            (await messages(alice, room_id, limit=2))["end"],
            (await alice.ok("GET", path_of(room_id, "context", events[15])))["end"],
        ]
    restore(tmp_path)
    async with started(tmp_path) as server:
        (alice,) = again(server, alice)
        await say(alice, room_id, *(f"after {number}" for number in range(40)))
        for token in [*lost_tokens, "s5_unknown", "t5_5_unknown"]:
            options = {"from": token, "limit": 200}
            back = texts((await messages(alice, room_id, **options))["chunk"])
            assert [text for text in back if text.startswith("before")] == [f"before {4 - n}" for n in range(5)], token
            forth = texts((await messages(alice, room_id, "f", **options))["chunk"])
            assert [text for text in forth if text.startswith("after")] == [f"after {n}" for n in range(40)], token
            assert (await alice.ok("GET", path_of(room_id, "members") + f"?at={token}"))["chunk"]


async def test_tokens_without_a_generation_still_work(server: Server) -> None:
    alice = await server.register("alice")
    room_id = await public_room(alice)
    position = server.hs.stream.position

    def upgrade(tx: Transaction) -> None:
        tx.run("UPDATE stream_generations SET began = ? WHERE name <> ''", position)

    await server.write(upgrade)
    await say(alice, room_id, "news")
    answer = await sync(alice, f"s{position}")
    assert texts(timeline(answer, room_id)) == ["news"]
    assert not room_in(answer, room_id)["timeline"]["limited"]
    assert texts((await messages(alice, room_id, "f", **{"from": f"t{position << 20}"}))["chunk"]) == ["news"]


async def test_malformed_sync_tokens_are_refused(homeserver: Server) -> None:
    alice = await homeserver.register("alice")
    for token in ["", "x", "s", "s-1", "t5", "s5_", "s5_a b", "s5_" + "x" * 100, "t1_1_abc", "s1_1_1 "]:
        with row(token):
            assert await alice.refused("GET", "sync", params={"since": token}) == (400, "M_INVALID_PARAM")


async def test_a_forged_token_starts_an_initial_sync(homeserver: Server) -> None:
    alice = await homeserver.register("alice")
    room_id = await homeserver.make_room(alice)
    for token in ("s9999999999999999999", "s0_unknown", f"s99999_{homeserver.hs.database.generation}"):
        assert room_in(await sync(alice, token), room_id)["timeline"]["limited"]


async def test_a_token_may_be_ahead_of_the_stream_of_this_node(homeserver: Server) -> None:
    alice = await homeserver.register("alice")
    await homeserver.make_room(alice)
    token = (await alice.ok("GET", "sync"))["next_batch"]
    # What is committed is seen by readers at once, and told to the stream a moment later: this is that moment.
    homeserver.hs.stream = Stream(homeserver.hs.stream.position - 1)
    for _ in range(2):
        answer = await alice.ok("GET", f"sync?since={token}")
        assert (answer["next_batch"], answer.keys()) == (token, {"next_batch"} | ALWAYS_TOLD)
