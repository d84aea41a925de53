"""The worked example of docs/architecture.md is a file and a line in FEATURES, and every part of it works."""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import trio

from homeserver.config import RateLimitsSection, Registration
from homeserver.feature import Feature
from homeserver.features import FEATURES
from homeserver.federation.identifiers import UserID
from tests.support.federation import Federation, join, until
from tests.support.homeservers import Client, Server
from tests.support.people import ephemeral, path_of, public_room, set_state, sync

PAGE = Path(__file__).parents[2] / "docs" / "architecture.md"
NAME = "homeserver.features.waves"
GUESTS = Registration(enabled=True, guests=True)


@pytest.fixture
def waves(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The module that the page shows."""
    (code,) = re.findall(r"```python\n(.*?)```", PAGE.read_text("utf-8"), re.DOTALL)
    module = ModuleType(NAME)
    monkeypatch.setitem(sys.modules, NAME, module)
    exec(compile(code, f"{PAGE.name}, the worked example", "exec", dont_inherit=True), module.__dict__)
    return module


@dataclass
class World:
    """Servers that have the feature."""

    federation: Federation
    features: Sequence[Feature]

    async def start(self, name: str, **sections: Any) -> Server:
        return await self.federation.start(name, features=self.features, **sections)

    async def people(self, **sections: Any) -> tuple[Client, Client, str]:
        """Alice of a.example and Bob of b.example, and a room that they share."""
        a, b = await self.start("a.example", **sections), await self.start("b.example", **sections)
        alice, bob = await a.register("alice"), await b.register("bob")
        room_id = await public_room(alice)
        await join(bob, room_id, "a.example")
        return alice, bob, room_id


@pytest.fixture
def world(federation: Federation, waves: ModuleType) -> World:
    return World(federation, (*FEATURES, waves.FEATURE))


async def wave(client: Client, room_id: str) -> None:
    await client.ok("POST", f"/_matrix/client/unstable/org.example.waves/{room_id}")


def received(answer: dict[str, Any]) -> int:
    """How often the user was waved at, as a sync tells."""
    count: int = answer["org.example.waves"]["received"]
    return count


async def has_received(client: Client, count: int) -> None:
    async def told() -> bool:
        return received(await sync(client)) == count

    await until(told, f"{client.user_id} was waved at {count} times")


async def test_a_wave_reaches_waiting_members_on_another_server(world: World) -> None:
    alice, bob, room_id = await world.people()
    since = (await sync(bob))["next_batch"]
    began = trio.current_time()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(wave, alice, room_id)
        answer = await sync(bob, since, timeout=30_000)
    assert trio.current_time() - began < 30
    assert ephemeral(answer, room_id, "org.example.wave") == {"user_id": alice.user_id}


async def test_a_wave_is_sent_once_and_not_in_an_initial_sync(world: World) -> None:
    alice, bob, room_id = await world.people()
    since = (await sync(alice))["next_batch"]
    await wave(alice, room_id)
    first = await sync(alice, since)
    assert ephemeral(first, room_id, "org.example.wave") is not None
    assert ephemeral(await sync(alice, first["next_batch"]), room_id, "org.example.wave") is None
    assert ephemeral(await sync(alice), room_id, "org.example.wave") is None


async def test_the_tail_counts_waves_for_the_members_on_each_server(world: World) -> None:
    alice, bob, room_id = await world.people()
    carol = await alice.server.register("carol")
    await join(carol, room_id)
    await wave(alice, room_id)
    await has_received(bob, 1)
    await has_received(carol, 1)
    await wave(bob, room_id)
    await has_received(alice, 1)
    assert received(await sync(bob)) == 1


async def test_a_wave_is_counted_once_despite_a_restart(world: World) -> None:
    alice, bob, room_id = await world.people()
    await wave(alice, room_id)
    await has_received(bob, 1)
    await world.federation.kill("b.example")
    b = await world.start("b.example")
    again = Client(b, bob.token, bob.user_id, bob.device_id)
    await wave(alice, room_id)
    await has_received(again, 2)


async def test_every_answer_has_the_count_but_it_ends_no_wait(world: World) -> None:
    alice, bob, room_id = await world.people()
    await wave(alice, room_id)
    await has_received(bob, 1)
    since = (await sync(bob))["next_batch"]
    began = trio.current_time()
    answer = await sync(bob, since, timeout=10_000)
    assert trio.current_time() - began == pytest.approx(10, abs=0.5)
    assert "rooms" not in answer and received(answer) == 1


async def test_guests_may_wave(world: World) -> None:
    alice, bob, room_id = await world.people(registration=GUESTS)
    await set_state(alice, room_id, "m.room.guest_access", {"guest_access": "can_join"})
    a = alice.server
    answer = await a.anonymous.ok("POST", "register?kind=guest", json={})
    guest = Client(a, answer["access_token"], UserID(answer["user_id"]), answer["device_id"])
    await guest.ok("POST", path_of(room_id, "join"), json={})
    await wave(guest, room_id)
    await has_received(bob, 1)


async def test_waves_are_limited(world: World, waves: ModuleType) -> None:
    a = await world.start("a.example", rate_limits=RateLimitsSection(enabled=True))
    alice = await a.register("alice")
    room_id = await public_room(alice)
    for _ in range(int(waves.FEATURE.limits["wave"].burst)):
        await wave(alice, room_id)
    path = f"/_matrix/client/unstable/org.example.waves/{room_id}"
    assert await alice.refused("POST", path) == (429, "M_LIMIT_EXCEEDED")


async def test_waves_are_among_the_capabilities(world: World) -> None:
    alice = await (await world.start("a.example")).register("alice")
    assert (await alice.ok("GET", "capabilities"))["capabilities"]["org.example.waves"] == {"enabled": True}
    assert (await alice.ok("GET", "/_matrix/client/versions"))["unstable_features"]["org.example.waves"] is True


async def rows_of(a: Server, waves: ModuleType, user_id: UserID) -> tuple[int, int]:
    """Returns the number of rows about a user's waves, and how often the user was waved at."""
    rows = await a.read(lambda tx: tx.all("SELECT 1 FROM waves WHERE user_nid = ?", tx.find(user_id)))
    return len(rows), await a.read(waves.get_count, user_id)


async def test_deactivating_an_account_deletes_its_waves(world: World, waves: ModuleType) -> None:
    alice, bob, room_id = await world.people()
    await wave(alice, room_id)
    await wave(bob, room_id)
    await has_received(alice, 1)
    assert await rows_of(alice.server, waves, alice.user_id) == (1, 1)
    await alice.ok("POST", "account/deactivate", json={"auth": alice.password_auth()})
    assert await rows_of(alice.server, waves, alice.user_id) == (0, 0)
