"""Not in the spec: docs/friends.md. A pair has one conversation, whatever happens while the two ask each other.

Two or three servers that are started again, and a network that fails: requests, ends, partitions, losses and restarts
in any order, also in the middle of one another. Then the network is whole again, and all people ask each other once
more, as people do. In the end each two are friends in one room, and in no other.
"""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import combinations, permutations
from pathlib import Path
from typing import Any

import trio
from hypothesis import example, given, settings
from hypothesis import strategies as st

from homeserver.errors import ClosedError, MatrixError
from homeserver.server import Homeserver
from homeserver.testing import FakeNetwork, one_server, run
from tests.support.examples import share_of_examples

A, B, C = "a.example", "b.example", "c.example"
PEOPLE = {A: "@alice:a.example", B: "@bob:b.example", C: "@carol:c.example"}


@dataclass
class Running:
    hs: Homeserver
    scope: trio.CancelScope
    ended: trio.Event


@dataclass
class World:
    """People, the servers that they live on, and what is under way."""

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

    async def ask(self, name: str, other: str) -> None:
        await self._try(name, "set_friend", other, body={"encrypted": False})

    async def end(self, name: str, other: str) -> None:
        await self._try(name, "delete_friend", other)

    async def _try(self, name: str, operation: str, other: str, **options: Any) -> None:
        with contextlib.suppress(MatrixError, ClosedError):
            if name in self.running:
                await self.call(name, operation, PEOPLE[other], **options)

    async def do(self, step: str, name: str, other: str) -> None:
        """Does a step. Requests go on in the background."""
        if step == "ask":
            self.nursery.start_soon(self.ask, name, other)
        elif step == "end":
            self.nursery.start_soon(self.end, name, other)
        elif step == "restart":
            await self.stop(name)
            await self.start(name)
        elif step == "cut":
            self.network.cut(name, other)
        elif step == "heal":
            self.network.heal()
        else:
            await trio.sleep({"moment": 0.07, "while": 3, "hour": 3600}[step])

    async def view(self, name: str) -> tuple[dict[str, tuple[str, str]], list[str], dict[str, list[str]]]:
        """Returns states and rooms of the friends, the rooms that the user is in, and their direct chats."""
        friends = (await self.call(name, "get_friends"))["friends"]
        joined = (await self.call(name, "get_joined_rooms"))["joined_rooms"]
        direct = await self.call(name, "get_account_data", PEOPLE[name], "m.direct")
        return {each["user_id"]: (each["state"], each["room_id"]) for each in friends}, sorted(joined), direct


async def _live(names: Sequence[str], steps: Sequence[tuple[str, str, str]], loss: float) -> None:
    with tempfile.TemporaryDirectory() as folder:
        network = FakeNetwork(latency_s=0.05, loss=loss, seed=1)
        async with trio.open_nursery() as nursery:
            world = World(Path(folder), network, nursery)
            for name in names:
                await world.start(name)
            for step, name, other in steps:
                await world.do(step, name, other)
            network.heal()
            network.loss = 0
            for _ in range(2):  # what is asked first may have crossed an end
                await trio.sleep(3600)
                for name, other in permutations(names, 2):
                    await world.ask(name, other)
            await trio.sleep(3600)
            views = {name: await world.view(name) for name in names}
            for name in names:
                await world.stop(name)
    conversations = {}
    for name, other in combinations(names, 2):
        state, room_id = views[name][0][PEOPLE[other]]
        assert state == "friend"
        conversations[name, other] = conversations[other, name] = room_id
    for name in names:
        others = [other for other in names if other != name]
        own = {PEOPLE[other]: conversations[name, other] for other in others}
        friends, joined, direct = views[name]
        assert friends == {user_id: ("friend", room_id) for user_id, room_id in own.items()}
        assert joined == sorted(own.values())
        assert direct == {user_id: [room_id] for user_id, room_id in own.items()}


KINDS = ["ask", "ask", "ask", "end", "restart", "cut", "heal", "moment", "while", "hour"]
ASKED_AT_ONCE = [("cut", A, B), ("ask", A, B), ("ask", B, A), ("while", A, B), ("heal", A, B)]
PAIR_STEPS = st.tuples(st.sampled_from(KINDS), st.sampled_from([(A, B), (B, A)])).map(lambda each: (each[0], *each[1]))
ALL_STEPS = st.tuples(st.sampled_from(KINDS), st.sampled_from(list(permutations((A, B, C), 2)))).map(
    lambda each: (each[0], *each[1])
)


@example(steps=[("ask", A, B), ("ask", B, A)], loss=0)
@example(steps=[("ask", A, B), ("moment", A, B), ("ask", B, A), ("moment", A, B), ("ask", A, B)], loss=0)
@example(steps=ASKED_AT_ONCE, loss=0)
@example(steps=[*ASKED_AT_ONCE, ("restart", B, A), ("moment", A, B), ("restart", A, B)], loss=0.2)
@example(
    steps=[
        ("ask", A, B), ("while", A, B), ("cut", A, B), ("end", A, B), ("ask", A, B), ("ask", B, A), ("heal", A, B),
    ],
    loss=0,
)  # fmt: skip
@given(steps=st.lists(PAIR_STEPS, max_size=12), loss=st.sampled_from([0.0, 0.3]))
@settings(max_examples=share_of_examples(0.25))
def test_a_pair_has_one_conversation_whatever_happens(steps: list[tuple[str, str, str]], loss: float) -> None:
    run(lambda: _live((A, B), steps, loss))


@example(
    steps=[
        ("cut", A, C), ("cut", B, C), ("ask", A, C), ("ask", C, A), ("ask", A, B), ("ask", B, C), ("while", A, B),
        ("ask", B, A), ("restart", A, B), ("heal", A, C), ("ask", C, B), ("restart", C, A),
    ],
    loss=0.2,
)  # fmt: skip
@given(steps=st.lists(ALL_STEPS, max_size=16), loss=st.sampled_from([0.0, 0.3]))
@settings(max_examples=share_of_examples(0.15))
def test_three_people_have_one_conversation_each_whatever_happens(
    steps: list[tuple[str, str, str]], loss: float
) -> None:
    run(lambda: _live((A, B, C), steps, loss))
