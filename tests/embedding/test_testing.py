"""`homeserver.testing` in the hands of another project: no fixtures of ours, no test runner, nothing left behind."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import trio

from homeserver import AsyncioHomeserver, Client, RoomEvent
from homeserver.testing import FakeNetwork, config_for_tests, now_ms, one_server, run, two_servers


async def _hear(client: Client, text: str) -> RoomEvent:
    """The message with this text, once it has come."""
    async for event in client.events():
        if event.body == text:
            return event
    raise AssertionError("the server has closed")


async def _say_hello() -> None:
    async with two_servers() as (a, b):
        alice, bob = await a.register("alice"), await b.register("bob")
        room_id = await alice.create_room(invite=[bob.user_id])
        await bob.join(room_id)
        await alice.send(room_id, "Hello?")
        assert (await _hear(bob, "Hello?")).sender == alice.user_id


def test_a_message_travels_from_one_server_to_another() -> None:
    run(_say_hello)


def test_two_servers_start_quickly() -> None:
    """50 ms of CPU on an idle machine; the bound is six times that, for busy and slow ones."""
    taken = []
    for _ in range(4):
        start = time.process_time()
        run(_say_hello)
        taken.append(time.process_time() - start)
    assert min(taken) < 0.3


def test_messages_sent_during_a_partition_arrive_after_it() -> None:
    async def main() -> float:
        network = FakeNetwork(latency_s=0.05)
        async with two_servers(network=network) as (a, b):
            alice, bob = await a.register("alice"), await b.register("bob")
            room_id = await alice.create_room(invite=[bob.user_id])
            await bob.join(room_id)
            network.cut("a.example", "b.example")
            start = trio.current_time()
            await alice.send(room_id, "Can you hear me?")
            await trio.sleep(3600)
            assert "Can you hear me?" not in [event.body for event in await bob.messages(room_id)]
            network.heal()
            await _hear(bob, "Can you hear me?")
            return trio.current_time() - start

    began = time.monotonic()
    assert run(main) > 3600
    assert time.monotonic() - began < 60


def test_lost_requests_are_retried() -> None:
    async def main() -> None:
        network = FakeNetwork(seed=1)
        async with two_servers(network=network) as (a, b):
            alice, bob = await a.register("alice"), await b.register("bob")
            room_id = await alice.create_room(invite=[bob.user_id])
            await bob.join(room_id)
            network.loss = 0.5
            for number in range(10):
                await alice.send(room_id, f"message {number}")
            await _hear(bob, "message 9")
            said = [event.body for event in await bob.messages(room_id, limit=10)]
            assert said == [f"message {number}" for number in range(9, -1, -1)]
        assert any(exchange.status is None for exchange in network.exchanges)

    run(main)


def test_a_server_that_is_switched_off_answers_nothing() -> None:
    async def main() -> int | None:
        network = FakeNetwork(latency_s=1)
        async with two_servers(network=network) as (a, b):
            alice, bob = await a.register("alice"), await b.register("bob")
            room_id = await alice.create_room(invite=[bob.user_id])
            await bob.join(room_id)
            await alice.send(room_id, "Hello?")
            await trio.sleep(1.5)  # the answer is on its way
            network.leave("b.example")
            await trio.sleep(1)
            return network.exchanges[-1].status

    assert run(main) is None


def test_asyncio_programs_can_use_an_in_memory_server(tmp_path: Path) -> None:
    async def main() -> str:
        config = config_for_tests("test.example", tmp_path)
        async with AsyncioHomeserver(config, inline_database=True) as hs:
            alice = await hs.register("alice", "a good password")
            await alice.send(await alice.create_room(), "Hello?")
            return alice.user_id

    assert asyncio.run(main()) == "@alice:test.example"
    assert {path.name for path in (tmp_path / "test.example").iterdir()} == {"signing.key", "master.key"}


def test_reopening_a_server_on_its_folder_restores_its_data(tmp_path: Path) -> None:
    async def main() -> list[str]:
        async with one_server(folder=tmp_path) as hs:
            alice = await hs.register("alice")
            room_id = await alice.create_room()
            await alice.send(room_id, "I shall be back.")
        async with one_server(folder=tmp_path) as hs:
            alice = await hs.log_in("alice")
            return [event.body for event in await alice.messages(room_id, limit=1)]

    assert run(main) == ["I shall be back."]


def test_the_wall_clock_follows_the_test_clock() -> None:
    async def main() -> int:
        async with one_server() as hs:
            alice = await hs.register("alice")
            start = now_ms()
            await trio.sleep(3600)
            room_id = await alice.create_room()
            sent: int = (await alice.messages(room_id, limit=1))[0].event["origin_server_ts"]
            return sent - start

    assert run(main) == 3_600_000
