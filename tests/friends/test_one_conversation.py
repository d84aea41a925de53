"""Not in the spec: docs/friends.md. A pair has one conversation, whatever happens while the two ask each other.

Two servers that are started again, and a network that fails: requests, ends, partitions, losses and restarts in any
order, also in the middle of one another. Then the network is whole again, and both people ask once more, as people do.
In the end they are friends in one room, and in no other.
"""

from __future__ import annotations

import contextlib
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import trio
from hypothesis import example, given, settings
from hypothesis import strategies as st

from homeserver.errors import ClosedError, MatrixError
from homeserver.server import Homeserver
from homeserver.testing import FakeNetwork, one_server, run

A, B = "a.example", "b.example"
PEOPLE = {A: "@alice:a.example", B: "@bob:b.example"}
OTHER = {A: B, B: A}


@dataclass
class Running:
    hs: Homeserver
    scope: trio.CancelScope
    ended: trio.Event


@dataclass
class Pair:
    """Two people, the servers that they live on, and what is under way."""

    folder: Path
    network: FakeNetwork
    nursery: trio.Nursery
    running: dict[str, Running] = field(default_factory=dict)

    async def start(self, name: str) -> None:
        self.running[name] = await self.nursery.start(self._run, name)

    async def _run(self, name: str, *, task_status: trio.TaskStatus[Running]) -> None:
        ended = trio.Event()
        with trio.CancelScope() as scope:
            try:
                async with one_server(name, network=self.network, folder=self.folder) as hs:
                    await hs.register(PEOPLE[name].partition(":")[0][1:], exist_ok=True)
                    task_status.started(Running(hs, scope, ended))
                    await trio.sleep_forever()
            finally:
                ended.set()

    async def stop(self, name: str) -> None:
        """Cancels whatever the server does."""
        self.network.leave(name)
        running = self.running.pop(name)
        running.scope.cancel()
        await running.ended.wait()

    async def call(self, name: str, operation: str, *path: str, **options: Any) -> Any:
        client = await self.running[name].hs.log_in(PEOPLE[name])
        return await client.call(operation, *path, **options)

    async def ask(self, name: str) -> None:
        await self._try(name, "set_friend", body={"encrypted": False})

    async def end(self, name: str) -> None:
        await self._try(name, "delete_friend")

    async def _try(self, name: str, operation: str, **options: Any) -> None:
        with contextlib.suppress(MatrixError, ClosedError):
            if name in self.running:
                await self.call(name, operation, PEOPLE[OTHER[name]], **options)

    async def do(self, step: str, name: str) -> None:
        """Does a step. Requests go on in the background."""
        if step == "ask":
            self.nursery.start_soon(self.ask, name)
        elif step == "end":
            self.nursery.start_soon(self.end, name)
        elif step == "restart":
            await self.stop(name)
            await self.start(name)
        elif step == "cut":
            self.network.cut(A, B)
        elif step == "heal":
            self.network.heal()
        else:
            await trio.sleep({"moment": 0.07, "while": 3, "hour": 3600}[step])

    async def view(self, name: str) -> tuple[list[tuple[str, str]], list[str], list[str]]:
        """Returns states and rooms of the friends, the rooms that the user is in, and their direct chats."""
        friends = (await self.call(name, "get_friends"))["friends"]
        joined = (await self.call(name, "get_joined_rooms"))["joined_rooms"]
        direct = await self.call(name, "get_account_data", PEOPLE[name], "m.direct")
        return [(each["state"], each["room_id"]) for each in friends], joined, direct.get(PEOPLE[OTHER[name]], [])


async def _live(steps: list[tuple[str, str]], loss: float) -> None:
    with tempfile.TemporaryDirectory() as folder:
        network = FakeNetwork(latency_s=0.05, loss=loss, seed=1)
        async with trio.open_nursery() as nursery:
            pair = Pair(Path(folder), network, nursery)
            for name in (A, B):
                await pair.start(name)
            for step, name in steps:
                await pair.do(step, name)
            network.heal()
            network.loss = 0
            await trio.sleep(3600)
            await pair.ask(A)
            await pair.ask(B)
            await trio.sleep(3600)
            await pair.ask(A)  # it may have crossed an end
            await pair.ask(B)
            await trio.sleep(3600)
            views = [await pair.view(name) for name in (A, B)]
            for name in (A, B):
                await pair.stop(name)
    (friend,) = views[0][0]
    assert friend[0] == "friend"
    assert views == [([friend], [friend[1]], [friend[1]])] * 2


ASKED_AT_ONCE = [("cut", A), ("ask", A), ("ask", B), ("while", A), ("heal", A)]
STEPS = st.tuples(
    st.sampled_from(["ask", "ask", "ask", "end", "restart", "cut", "heal", "moment", "while", "hour"]),
    st.sampled_from([A, B]),
)


@example(steps=[("ask", A), ("ask", B)], loss=0)
@example(steps=[("ask", A), ("moment", A), ("ask", B), ("moment", A), ("ask", A)], loss=0)
@example(steps=ASKED_AT_ONCE, loss=0)
@example(steps=[*ASKED_AT_ONCE, ("restart", B), ("moment", A), ("restart", A)], loss=0.2)
@example(steps=[("ask", A), ("while", A), ("cut", A), ("end", A), ("ask", A), ("ask", B), ("heal", A)], loss=0)
@given(steps=st.lists(STEPS, max_size=12), loss=st.sampled_from([0.0, 0.3]))
@settings(max_examples=10)
def test_a_pair_has_one_conversation_whatever_happens(steps: list[tuple[str, str]], loss: float) -> None:
    run(lambda: _live(steps, loss))
