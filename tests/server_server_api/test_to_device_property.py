"""Every to-device message reaches each of its devices exactly once and in order, whatever happens on the way.

Spec: client-server-api/#send-to-device-messaging, server-server-api/#send-to-device-messaging
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import trio
from hypothesis import given, settings
from hypothesis import strategies as st
from trio.testing import MockClock

from tests.support.examples import share_of_examples
from tests.support.federation import Federation, sync, until
from tests.support.homeservers import Client, Server

NAMES = ("a.example", "b.example")
NUMBERS = st.integers(0, 3)
STEPS = st.one_of(
    st.tuples(st.just("send"), NUMBERS, st.sampled_from([1, 1, 3, 45, 130])),
    st.tuples(st.sampled_from(["sync", "sync", "lose_answer"]), NUMBERS, st.just(0)),
    st.tuples(st.sampled_from(["cut", "heal", "restart", "lose_packets"]), NUMBERS, st.just(0)),
    st.tuples(st.just("wait"), st.just(0), st.sampled_from([0.1, 2.0, 400.0])),
)


@dataclass
class Device:
    """A device: which messages it is to get, and which it has been told in an answer that arrived."""

    client: Client
    user_id: str
    device_id: str
    since: str | None = None
    sent: list[int] = field(default_factory=list)
    got: list[int] = field(default_factory=list)

    async def sync(self, *, is_lost: bool = False) -> None:
        answer = await sync(self.client, self.since)
        if not is_lost:
            self.since = answer["next_batch"]
            self.got += [event["content"]["n"] for event in answer.get("to_device", {}).get("events", [])]


@dataclass
class World:
    """Alice, who sends, on one server, and two devices of Bob on each of the two."""

    federation: Federation
    servers: dict[str, Server] = field(default_factory=dict)
    devices: list[Device] = field(default_factory=list)
    alice: Client = field(init=False)
    count: int = 0

    async def begin(self) -> None:
        for name in NAMES:
            server = self.servers[name] = await self.federation.start(name)
            for client in (await server.register("bob"), await server.log_in("bob")):
                self.devices.append(Device(client, client.user_id, client.device_id))
        self.alice = await self.servers[NAMES[0]].register("alice")

    async def do(self, what: str, number: int, argument: Any) -> None:
        match what:
            case "send":
                for _ in range(argument):
                    await self.send(number)
            case "sync" | "lose_answer":
                await self.devices[number].sync(is_lost=what == "lose_answer")
            case "cut":
                self.federation.network.cut(*NAMES)
            case "heal":
                self.federation.network.heal()
                self.federation.network.loss = 0
            case "lose_packets":
                self.federation.network.loss = 0.3
            case "restart":
                await self.restart(NAMES[number % 2])
            case "wait":
                await trio.sleep(argument)

    async def send(self, number: int) -> None:
        """Sends the next message: to one device, or to all devices of its user."""
        self.count += 1
        device = self.devices[number]
        is_for_all = self.count % 3 == 0
        to = "*" if is_for_all else device.device_id
        body = {"messages": {device.user_id: {to: {"n": self.count}}}}
        for _ in range(1 + (self.count % 5 == 0)):  # now and then the answer is lost, and the request repeated
            await self.alice.ok("PUT", f"sendToDevice/a/{self.count}", json=body)
        for each in self.devices:
            if each is device or (is_for_all and each.user_id == device.user_id):
                each.sent.append(self.count)

    async def restart(self, name: str) -> None:
        await self.federation.kill(name)
        server = self.servers[name] = await self.federation.start(name)
        for device in self.devices:
            if device.user_id.endswith(name):
                device.client = server.with_token(device.client.token)
        if name == NAMES[0]:
            self.alice = server.with_token(self.alice.token)

    async def end(self) -> None:
        self.federation.network.heal()
        self.federation.network.loss = 0

        async def have_all() -> bool:
            for device in self.devices:
                await device.sync()
            return all(len(device.got) >= len(device.sent) for device in self.devices)

        await until(have_all, "all messages have arrived", seconds=48 * 3600)
        await trio.sleep(3600)
        for device in self.devices:
            await device.sync()
            await device.sync()
            assert device.got == device.sent
        for server in self.servers.values():
            for table in ("inbox", "outbox", "queue_sizes"):
                assert await server.read(lambda tx, table=table: tx.all(f"SELECT 1 FROM to_device_{table}")) == []


def play(steps: list[tuple[str, int, Any]]) -> None:
    async def run() -> None:
        with tempfile.TemporaryDirectory() as folder:
            async with trio.open_nursery() as nursery:
                world = World(Federation(nursery, Path(folder)))
                await world.begin()
                for step in steps:
                    await world.do(*step)
                await world.end()
                nursery.cancel_scope.cancel()

    trio.run(run, clock=MockClock(autojump_threshold=0))


@settings(max_examples=share_of_examples(0.2))
@given(steps=st.lists(STEPS, min_size=3, max_size=25), random=st.random_module())
def test_every_message_arrives_once_and_in_order(steps: list[tuple[str, int, Any]], random: Any) -> None:
    play(steps)


def test_messages_survive_simultaneous_failures() -> None:
    """One long example of everything together."""
    steps: list[tuple[str, int, Any]] = []
    for number in range(4):
        steps += [("send", number, 45), ("lose_answer", number, 0), ("sync", number, 0), ("cut", 0, 0)]
        steps += [("send", 3 - number, 45), ("restart", number, 0), ("wait", 0, 400.0), ("heal", 0, 0)]
        steps += [("lose_packets", 0, 0), ("send", number, 3), ("wait", 0, 2.0), ("restart", 1 - number % 2, 0)]
    play(steps)
