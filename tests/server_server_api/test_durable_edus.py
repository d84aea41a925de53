"""Durable EDUs reach their destination however long it was away, and before the events. Spec: server-server-api/#edus

`org.example.key` is a made-up type, whose content says nothing but a number.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec
import pytest
import trio

from homeserver import limits
from homeserver.database import Transaction
from homeserver.feature import Edu, EduQueue, Feature, OutgoingEdu
from homeserver.features import FEATURES
from homeserver.federation.build import Draft
from homeserver.federation.identifiers import RoomID, ServerName, UserID
from homeserver.resources import Resources
from homeserver.rooms.append import append_local
from tests.support.clock import let_days_pass
from tests.support.federation import Federation, create_room, send_text, until
from tests.support.homeservers import Client, Server
from tests.support.stranger import Stranger

MALLORY = ServerName("mallory.example")
KEY = "org.example.key"


class Key(msgspec.Struct, frozen=True):
    number: int


@dataclass
class Keys:
    """A feature whose keys are sent to Mallory's server. They are kept outside of the database, as if it were one."""

    rows: dict[int, int] = field(default_factory=dict)
    acknowledged: int = 0

    def send(self, tx: Transaction, number: int) -> None:
        self.rows[tx.next_position("keys")] = number

    def source(self, tx: Transaction, since: int, upto: int) -> Iterable[OutgoingEdu]:
        for position, number in self.rows.items():
            if since < position <= upto:
                yield OutgoingEdu({"number": number}, destinations=(MALLORY,), position=position)

    def list_first(self, tx: Transaction, server: ServerName, since: int, upto: int, limit: int) -> list[OutgoingEdu]:
        return list(self.source(tx, since, upto))[:limit]

    def acknowledge(self, tx: Transaction, server: ServerName, upto: int) -> None:
        assert server == MALLORY
        self.acknowledged = max(self.acknowledged, upto)
        self.rows = {position: number for position, number in self.rows.items() if position > upto}

    def feature(self, *, has_queue: bool) -> Feature:
        async def hear(hs: Resources, origin: ServerName, parts: Sequence[Key]) -> None:
            return

        queue = EduQueue(self.list_first, self.acknowledge) if has_queue else None
        edu: Edu[Key] = Edu(Key, hear, user=None, room=None, source=self.source, durable=True, queue=queue)
        return Feature(name="keys", spec="server-server-api/#edus", edus={KEY: edu})


@dataclass
class World:
    keys: Keys
    server: Server
    alice: Client
    mallory: Stranger
    room_id: str
    features: Sequence[Feature]
    got: list[str] = field(default_factory=list)
    refuses: str = "nothing"

    def take(self, body: Any) -> Any:
        if self.refuses in json.dumps(body):
            return 500, {"errcode": "M_UNKNOWN", "error": "I do not like it."}
        self.got += [event["content"]["body"] for event in body["pdus"] if event["type"] == "m.room.message"]
        self.got += [f"key {edu['content']['number']}" for edu in body.get("edus", ()) if edu["edu_type"] == KEY]
        return None

    async def send_key(self, number: int) -> None:
        await self.server.write(self.keys.send, number)

    async def wait_for(self, what: str, seconds: float = 24 * 3600) -> None:
        async def is_there() -> bool:
            return what in self.got

        await until(is_there, what, seconds=seconds)

    async def restart(self, federation: Federation) -> None:
        await federation.kill(self.server.name)
        self.server = await federation.start(self.server.name, features=self.features)
        self.alice = self.server.with_token(self.alice.token)


@pytest.fixture(params=[True, False], ids=["with a queue", "without a queue"])
async def world(federation: Federation, request: pytest.FixtureRequest) -> World:
    keys = Keys()
    features = (*FEATURES, keys.feature(has_queue=request.param))
    server = await federation.start("a.example", features=features)
    alice = await server.register("alice")
    mallory = Stranger(federation.network, MALLORY)
    room_id = await create_room(alice, preset="public_chat")
    await mallory.join("a.example", room_id, "mallory")
    world = World(keys, server, alice, mallory, room_id, features)
    mallory.take = world.take
    return world


def _say(tx: Transaction, user_id: UserID, room_id: RoomID, texts: Iterable[str]) -> None:
    for text in texts:
        append_local(tx, Draft(room_id, user_id, "m.room.message", {"msgtype": "m.text", "body": text}))


async def test_durable_edus_survive_a_long_outage_and_arrive_before_events(
    world: World, federation: Federation
) -> None:
    federation.network.cut("a.example", MALLORY)
    for number in range(0, 1200, 10):
        await world.send_key(number)
        await world.server.write(
            _say, world.alice.user_id, RoomID(world.room_id), [f"event {number + n}" for n in range(10)]
        )
    await let_days_pass(2)
    federation.network.heal()
    await world.wait_for("event 1199")
    found = [each for each in world.got if each.startswith("key")]
    assert found == [f"key {number}" for number in range(0, 1200, 10)]
    assert world.got[: len(found)] == found


async def test_keys_survive_restarts_in_the_middle_of_an_outage(world: World, federation: Federation) -> None:
    await world.send_key(0)
    await world.wait_for("key 0")
    await trio.sleep(5)  # until that is stored
    federation.network.cut("a.example", MALLORY)
    for number in range(1, 6):
        await world.send_key(number)
        await send_text(world.alice, world.room_id, f"event {number}")
        await world.restart(federation)
        await trio.sleep(100)
    federation.network.heal()
    await world.wait_for("event 5")
    assert world.got == [*(f"key {n}" for n in range(6)), *(f"event {n}" for n in range(1, 6))]


async def test_waiting_events_do_not_delay_a_key(world: World) -> None:
    slow = world.take

    async def take_slowly(body: Any) -> Any:
        await trio.sleep(5)
        return slow(body) or {}

    world.mallory.take = take_slowly
    say = [f"event {number}" for number in range(1000)]
    await world.server.write(_say, world.alice.user_id, RoomID(world.room_id), say)
    await trio.sleep(1)
    start = trio.current_time()
    await world.send_key(1)
    await world.wait_for("key 1")
    assert trio.current_time() - start < 15
    await world.wait_for("event 999")


@pytest.mark.parametrize("poison", ["event 1", '"number": 1'])
async def test_poison_in_one_lane_does_not_stop_the_other(world: World, poison: str) -> None:
    world.refuses = poison
    is_key = "number" in poison
    for number in (1, 2):
        await world.send_key(number)
        await send_text(world.alice, world.room_id, f"event {number}")
    await world.wait_for("event 2" if is_key else "key 2", seconds=10)
    await world.wait_for("key 2")
    await send_text(world.alice, world.room_id, "event 3")
    await world.send_key(3)
    await world.wait_for("event 3")
    await world.wait_for("key 3")


async def test_an_unreachable_server_is_retried_once_for_both_lanes(world: World, federation: Federation) -> None:
    await world.send_key(0)
    await world.wait_for("key 0")
    federation.network.cut("a.example", MALLORY)
    before = len(federation.network.exchanges)
    await world.send_key(1)
    await send_text(world.alice, world.room_id, "event 1")
    await trio.sleep(3600)
    with_both = len(federation.network.exchanges) - before
    assert with_both < 15
    assert "homeserver_federation_destinations_lagging 1" in world.server.hs.metrics.text()
    federation.network.heal()
    await world.wait_for("event 1")


async def test_delivered_edus_are_acknowledged_to_their_queue(world: World, federation: Federation) -> None:
    has_queue = world.features[-1].edus[KEY].queue is not None
    await world.send_key(1)
    await world.wait_for("key 1")
    federation.network.cut("a.example", MALLORY)
    await world.send_key(2)
    await trio.sleep(60)
    assert list(world.keys.rows.values()) == ([2] if has_queue else [1, 2])
    federation.network.heal()
    await world.wait_for("key 2")
    await trio.sleep(10)
    assert list(world.keys.rows.values()) == ([] if has_queue else [1, 2])


async def test_durable_edus_neither_expire_nor_replace_one_another() -> None:
    async def hear(hs: Resources, origin: ServerName, parts: Sequence[Key]) -> None:
        return

    for wrong in ({"short_lived": True}, {"coalesce_by": lambda key: key.number}):
        with pytest.raises(ValueError, match="durable EDU must arrive"):
            Edu(Key, hear, user=None, room=None, durable=True, **wrong)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="Only a durable EDU has a queue"):
        Edu(Key, hear, user=None, room=None, queue=EduQueue(Keys().list_first, Keys().acknowledge))


async def test_more_keys_than_a_step_reads_are_all_sent(world: World, federation: Federation) -> None:
    federation.network.cut("a.example", MALLORY)
    count = 2 * limits.peers.CATCH_UP_DURABLE_EDUS + 3
    for number in range(count):
        await world.send_key(number)
    await trio.sleep(600)
    federation.network.heal()
    await world.wait_for(f"key {count - 1}")
    assert world.got == [f"key {number}" for number in range(count)]
