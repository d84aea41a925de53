"""Servers tell each other of changed devices and keys. Spec: server-server-api/#device-management"""

from __future__ import annotations

from itertools import count
from typing import Any
from urllib.parse import quote

import pytest
import trio

from homeserver import limits
from homeserver.database import Transaction
from homeserver.federation.identifiers import ServerName
from tests.support.federation import Federation, create_room, join, sync, until
from tests.support.homeservers import Client, Server
from tests.support.keys import CrossSigning, Device
from tests.support.stranger import Stranger


async def upload(client: Client, secret: str = "") -> Device:
    device = Device(client.user_id, client.device_id, secret)
    await client.ok("POST", "keys/upload", json={"device_keys": device.keys()})
    return device


async def query(client: Client, user_id: str) -> dict[str, Any]:
    """The keys of a user's devices as a client is shown them."""
    answer = await client.ok("POST", "keys/query", json={"device_keys": {user_id: []}, "timeout": 1000})
    devices: dict[str, Any] = answer["device_keys"].get(user_id, {})
    return devices


async def is_followed(server: Server) -> bool:
    """Returns whether every list that was asked for has been fetched and is fresh."""

    def read(tx: Transaction) -> bool:
        lists = tx.values("SELECT is_fresh FROM remote_device_lists")
        return bool(lists) and all(lists) and not tx.all("SELECT user_nid FROM device_list_resyncs")

    return bool(await server.read(read))


async def follow(client: Client, user_id: str) -> None:
    await query(client, user_id)
    await until(lambda: is_followed(client.server), "the list is followed")


async def told(client: Client, since: str, user_id: str) -> None:
    """Waits until the client is told that the user's keys have changed."""

    async def is_told() -> bool:
        return user_id in (await sync(client, since)).get("device_lists", {}).get("changed", [])

    await until(is_told, f"{client.user_id} is told of {user_id}")


async def now(client: Client) -> str:
    return str((await sync(client))["next_batch"])


async def two(federation: Federation) -> tuple[Server, Server, Client, Client, str]:
    """Alice of a.example and Bob of b.example in a room."""
    a, b, alice, bob = await federation.start_two()
    room_id = await create_room(alice, preset="public_chat")
    await join(bob, room_id, a.name)
    return a, b, alice, bob, room_id


async def cut_off(federation: Federation) -> None:
    """From here on a query can only be answered from what is known already."""
    federation.network.cut("a.example", "b.example")


# Two honest servers


async def test_keys_of_a_followed_list_are_known_while_its_server_is_away(federation: Federation) -> None:
    _, _, alice, bob, _ = await two(federation)
    phone, keys = await upload(bob), CrossSigning(bob.user_id)
    await bob.ok("POST", "keys/device_signing/upload", json={**keys.body(), "auth": bob.password_auth()})
    await follow(alice, bob.user_id)
    await cut_off(federation)
    body = {"device_keys": {bob.user_id: []}}
    answer = await alice.ok("POST", "keys/query", json=body)
    assert answer["device_keys"] == {bob.user_id: {bob.device_id: phone.keys()}}
    assert answer["master_keys"] == {bob.user_id: keys.master_key()}
    assert answer["self_signing_keys"] == {bob.user_id: keys.self_signing_key()}
    assert answer["failures"] == {} == answer["user_signing_keys"]
    some = await alice.ok("POST", "keys/query", json={"device_keys": {bob.user_id: ["OTHER"]}})
    assert some["device_keys"] == {bob.user_id: {}}


async def test_a_change_is_told_and_the_new_keys_are_known_at_once(federation: Federation) -> None:
    a, _, alice, bob, _ = await two(federation)
    await upload(bob)
    await follow(alice, bob.user_id)
    since = await now(alice)
    laptop = await bob.server.log_in("bob", device_id="LAPTOP", initial_device_display_name="Bob's laptop")
    device = await upload(laptop)
    await told(alice, since, bob.user_id)

    async def is_known() -> bool:
        return "LAPTOP" in await query(alice, bob.user_id)

    await until(is_known)
    assert await is_followed(a)
    await cut_off(federation)
    shown = (await query(alice, bob.user_id))["LAPTOP"]
    assert shown == {**device.keys(), "unsigned": {"device_display_name": "Bob's laptop"}}


async def test_a_deleted_device_is_forgotten_on_the_other_server(federation: Federation) -> None:
    _, _, alice, bob, _ = await two(federation)
    await upload(bob)
    laptop = await bob.server.log_in("bob", device_id="LAPTOP")
    await upload(laptop)
    await follow(alice, bob.user_id)
    assert (await query(alice, bob.user_id)).keys() == {bob.device_id, "LAPTOP"}
    since = await now(alice)
    await laptop.ok("POST", "logout", json={})
    await told(alice, since, bob.user_id)
    await cut_off(federation)
    assert (await query(alice, bob.user_id)).keys() == {bob.device_id}


async def test_new_cross_signing_keys_are_told_and_known(federation: Federation) -> None:
    a, _, alice, bob, _ = await two(federation)
    await upload(bob)
    await follow(alice, bob.user_id)
    since, keys = await now(alice), CrossSigning(bob.user_id, "new")
    await bob.ok("POST", "keys/device_signing/upload", json={**keys.body(), "auth": bob.password_auth()})
    await told(alice, since, bob.user_id)
    await cut_off(federation)
    answer = await alice.ok("POST", "keys/query", json={"device_keys": {bob.user_id: []}})
    assert answer["master_keys"] == {bob.user_id: keys.master_key()}
    assert answer["self_signing_keys"] == {bob.user_id: keys.self_signing_key()}
    assert await is_followed(a)


async def test_what_changes_while_a_server_is_away_arrives_later(federation: Federation) -> None:
    a, _, alice, bob, _ = await two(federation)
    await upload(bob)
    await follow(alice, bob.user_id)
    since = await now(alice)
    await federation.kill("a.example")
    for number in range(3):
        await upload(await bob.server.log_in("bob", device_id=f"NEW{number}"))
    alice.server = await federation.start("a.example")
    await told(alice, since, bob.user_id)

    async def all_are_known() -> bool:
        return len(await query(alice, bob.user_id)) == 4 and await is_followed(alice.server)

    await until(all_are_known)


async def test_more_changes_than_are_kept_are_fetched_as_a_whole(federation: Federation) -> None:
    _, _, alice, bob, _ = await two(federation)
    await upload(bob)
    await follow(alice, bob.user_id)
    await federation.kill("a.example")
    await upload(await bob.server.log_in("bob", device_id="LAPTOP"))
    for number in range(60):
        await bob.ok("PUT", f"devices/{bob.device_id}", json={"display_name": f"name {number}"})
    alice.server = await federation.start("a.example")

    async def is_known() -> bool:
        shown = await query(alice, bob.user_id)
        name = shown.get(bob.device_id, {}).get("unsigned", {}).get("device_display_name")
        return "LAPTOP" in shown and name == "name 59" and await is_followed(alice.server)

    await until(is_known)


async def test_what_changed_while_no_room_was_shared_is_asked_for_anew(federation: Federation) -> None:
    _, _, alice, bob, room_id = await two(federation)
    await upload(bob)
    await follow(alice, bob.user_id)
    since = await now(alice)
    await bob.ok("POST", f"rooms/{quote(room_id)}/leave", json={})

    async def is_left() -> bool:
        return bob.user_id in (await sync(alice, since)).get("device_lists", {}).get("left", [])

    await until(is_left)
    await upload(await bob.server.log_in("bob", device_id="LAPTOP"))
    since = await now(alice)
    await join(bob, room_id, "a.example")
    await told(alice, since, bob.user_id)
    assert "LAPTOP" in await query(alice, bob.user_id)
    await until(lambda: is_followed(alice.server))
    await cut_off(federation)
    assert "LAPTOP" in await query(alice, bob.user_id)


async def test_lists_of_users_who_are_gone_are_forgotten(federation: Federation) -> None:
    a, _, alice, bob, room_id = await two(federation)
    await upload(bob)
    await follow(alice, bob.user_id)
    await alice.ok("POST", f"rooms/{quote(room_id)}/leave", json={})
    await trio.sleep(limits.encryption.LIST_SWEEP_INTERVAL_S + 1)
    for table in ("remote_device_lists", "remote_devices", "device_list_resyncs"):
        assert not await a.read(lambda tx, table=table: tx.all(f"SELECT user_nid FROM {table}"))


async def test_keys_of_strangers_are_not_kept(federation: Federation) -> None:
    a, _, alice, bob = await federation.start_two()
    phone = await upload(bob)
    assert await query(alice, bob.user_id) == {bob.device_id: phone.keys()}
    assert not await a.read(lambda tx: tx.all("SELECT user_nid FROM remote_device_lists"))
    assert not await a.read(lambda tx: tx.all("SELECT user_nid FROM device_list_resyncs"))


# A server that lies


class Mallory:
    """A stranger with a user in a room of alice, whose list is followed."""

    def __init__(self, federation: Federation) -> None:
        self.stranger = Stranger(federation.network, ServerName("mallory.example"))
        self.user_id = self.stranger.user("mallory")
        self.phone = Device(self.user_id, "PHONE")
        self.devices = {"PHONE": self.phone.keys()}
        self.stream_id = 10
        self.path = f"/_matrix/federation/v1/user/devices/{quote(self.user_id, safe='')}"
        self.stranger.answers["GET", self.path] = lambda uri, content: self.list()
        self.stranger.answers["POST", "/_matrix/federation/v1/user/keys/query"] = lambda uri, content: {
            "device_keys": {self.user_id: self.devices}
        }
        self._numbers = count()

    def list(self) -> dict[str, Any]:
        devices = [{"device_id": device_id, "keys": keys} for device_id, keys in self.devices.items()]
        return {"user_id": self.user_id, "stream_id": self.stream_id, "devices": devices}

    def update(self, device: Device, stream_id: int, *prev_id: int, **more: Any) -> dict[str, Any]:
        content = {"user_id": self.user_id, "device_id": device.device_id, "stream_id": stream_id, "prev_id": prev_id}
        return {"edu_type": "m.device_list_update", "content": {**content, "keys": device.keys(), **more}}

    async def send(self, *edus: dict[str, Any]) -> None:
        await self.stranger.send("a.example", f"{next(self._numbers)}", edus=edus)

    @property
    def times_asked(self) -> int:
        return self.stranger.asked.count(("GET", self.path))


async def with_mallory(federation: Federation) -> tuple[Mallory, Client]:
    a = await federation.start("a.example")
    alice, mallory = await a.register("alice"), Mallory(federation)
    room_id = await create_room(alice, preset="public_chat")
    await mallory.stranger.join("a.example", room_id, "mallory")
    await follow(alice, mallory.user_id)
    assert mallory.times_asked == 1
    return mallory, alice


async def known(alice: Client, mallory: Mallory) -> set[str]:
    """The devices that are known without asking."""
    return set(
        await alice.server.read(
            lambda tx: tx.values("SELECT device_id FROM remote_devices WHERE user_nid = ?", tx.find(mallory.user_id))
        )
    )


async def test_an_update_that_follows_is_applied_without_asking(federation: Federation) -> None:
    mallory, alice = await with_mallory(federation)
    await mallory.send(mallory.update(Device(mallory.user_id, "NEW"), 11, 10))
    assert await known(alice, mallory) == {"PHONE", "NEW"}
    await mallory.send(mallory.update(Device(mallory.user_id, "NEW"), 12, 11, deleted=True))
    assert await known(alice, mallory) == {"PHONE"}
    assert mallory.times_asked == 1


@pytest.mark.parametrize(
    ("stream_id", "prev_id"), [(12, [11]), (2**53 - 1, [2**53 - 2]), (11, []), (11, [10, 9]), (9, [8]), (0, [])]
)
async def test_after_a_gap_the_whole_list_is_asked_for(
    federation: Federation, stream_id: int, prev_id: list[int]
) -> None:
    mallory, alice = await with_mallory(federation)
    since = await now(alice)
    new = Device(mallory.user_id, "NEW")
    mallory.devices, mallory.stream_id = {"NEW": new.keys()}, 12
    await mallory.send(mallory.update(Device(mallory.user_id, "LIE"), stream_id, *prev_id))
    await told(alice, since, mallory.user_id)
    assert (await query(alice, mallory.user_id)).keys() == {"NEW"}
    await until(lambda: is_followed(alice.server))
    assert await known(alice, mallory) == {"NEW"}
    await mallory.send(mallory.update(Device(mallory.user_id, "NEXT"), 13, 12))
    assert await known(alice, mallory) == {"NEW", "NEXT"}
    assert mallory.times_asked == 2


async def test_many_gaps_of_a_user_are_one_question_and_one_piece_of_news(federation: Federation) -> None:
    mallory, alice = await with_mallory(federation)
    gate = trio.Event()

    async def wait(uri: str, content: Any) -> Any:
        await gate.wait()
        return mallory.list()

    mallory.stranger.answers["GET", mallory.path] = wait
    positions = []
    for number in range(30):
        await mallory.send(mallory.update(mallory.phone, 100 + 2 * number, 99 + 2 * number))
        positions += await alice.server.read(lambda tx: tx.values("SELECT position FROM device_lists"))
    assert len(set(positions)) == 1
    mallory.stream_id = 200
    gate.set()
    await until(lambda: is_followed(alice.server))
    assert mallory.times_asked <= 3


async def test_a_list_is_asked_for_until_its_server_answers(federation: Federation) -> None:
    mallory, alice = await with_mallory(federation)
    good = mallory.stranger.answers["GET", mallory.path]
    mallory.stranger.answers["GET", mallory.path] = (500, {"errcode": "M_UNKNOWN"})
    await mallory.send(mallory.update(mallory.phone, 20, 19))
    await trio.sleep(3600)
    assert 2 <= mallory.times_asked <= 30
    mallory.stranger.answers["GET", mallory.path] = good
    since = await now(alice)
    await until(lambda: is_followed(alice.server))
    await told(alice, since, mallory.user_id)


async def test_what_is_to_be_asked_for_survives_a_restart(federation: Federation) -> None:
    mallory, alice = await with_mallory(federation)
    good = mallory.stranger.answers["GET", mallory.path]
    mallory.stranger.answers["GET", mallory.path] = (502, {"errcode": "M_UNKNOWN"})
    mallory.devices["NEW"] = Device(mallory.user_id, "NEW").keys()
    await mallory.send(mallory.update(mallory.phone, 20, 19))
    await until(lambda: _is_asked(mallory, 2))
    await federation.kill("a.example")
    mallory.stranger.answers["GET", mallory.path] = good
    alice.server = await federation.start("a.example")
    await until(lambda: is_followed(alice.server))
    assert await known(alice, mallory) == {"PHONE", "NEW"}


async def test_a_silent_server_delays_no_other(federation: Federation) -> None:
    mallory, alice = await with_mallory(federation)

    async def never(uri: str, content: Any) -> Any:
        await trio.sleep_forever()

    mallory.stranger.answers["GET", mallory.path] = never
    await mallory.send(mallory.update(mallory.phone, 20, 19))
    b = await federation.start("b.example")
    bob = await b.register("bob")
    await upload(bob)
    room_id = await create_room(alice, preset="public_chat")
    await join(bob, room_id, "a.example")
    await query(alice, bob.user_id)

    async def is_fetched() -> bool:
        return bool(
            await alice.server.read(
                lambda tx: tx.all("SELECT user_nid FROM remote_devices WHERE user_nid = ?", tx.find(bob.user_id))
            )
        )

    await until(is_fetched, seconds=5)


async def test_nobody_speaks_for_users_of_another_server(federation: Federation) -> None:
    mallory, alice = await with_mallory(federation)
    b = await federation.start("b.example")
    bob = await b.register("bob")
    await upload(bob)
    room_id = await create_room(alice, preset="public_chat")
    await join(bob, room_id, "a.example")
    await follow(alice, bob.user_id)
    since = await now(alice)
    for user_id in (bob.user_id, alice.user_id):
        device = Device(user_id, "EVIL")
        content = {"user_id": user_id, "device_id": "EVIL", "stream_id": 1 << 40, "prev_id": [1], "keys": device.keys()}
        keys = {"user_id": user_id, "master_key": CrossSigning(user_id).master_key()}
        await mallory.send(
            {"edu_type": "m.device_list_update", "content": content},
            {"edu_type": "m.signing_key_update", "content": keys},
        )
    assert await is_followed(alice.server)
    assert "device_lists" not in await sync(alice, since)
    assert "EVIL" not in await query(alice, bob.user_id)


async def test_keys_that_are_not_signed_by_their_device_are_left_out(federation: Federation) -> None:
    mallory, alice = await with_mallory(federation)
    wrong = Device(mallory.user_id, "WRONG").keys()
    wrong["keys"]["curve25519:WRONG"] = mallory.phone.keys()["keys"]["curve25519:PHONE"]
    of_another = Device(mallory.user_id, "OTHER").keys()
    update = mallory.update(Device(mallory.user_id, "WRONG"), 11, 10)
    update["content"]["keys"] = wrong
    await mallory.send(update)
    update = mallory.update(Device(mallory.user_id, "WRONG"), 12, 11)
    update["content"]["keys"] = of_another
    await mallory.send(update)
    assert await known(alice, mallory) == {"PHONE"}
    mallory.devices = {"WRONG": wrong, "PHONE": mallory.phone.keys(), "MIXED": of_another}
    await mallory.send(mallory.update(mallory.phone, 50, 49))
    await until(lambda: is_followed(alice.server))
    assert await known(alice, mallory) == {"PHONE"}


@pytest.mark.parametrize(
    "answer",
    [
        {},
        {"user_id": "@bob:b.example", "stream_id": 1, "devices": []},
        {"stream_id": -1},
        {"stream_id": 2**60},
        {"stream_id": "x"},
        {"stream_id": True},
        {"devices": {}},
    ],
)
async def test_a_malformed_list_is_not_believed(federation: Federation, answer: dict[str, Any]) -> None:
    mallory, alice = await with_mallory(federation)
    honest = {"user_id": mallory.user_id, "stream_id": 20, "devices": []}
    mallory.stranger.answers["GET", mallory.path] = {**honest, **answer} if answer else {}
    await mallory.send(mallory.update(mallory.phone, 20, 19))
    await until(lambda: _is_asked(mallory, 2))
    await trio.sleep(1)
    assert not await is_followed(alice.server)
    assert (await query(alice, mallory.user_id)).keys() == {"PHONE"}


async def _is_asked(mallory: Mallory, times: int) -> bool:
    return mallory.times_asked >= times


async def test_invented_devices_fill_no_disk(federation: Federation) -> None:
    mallory, alice = await with_mallory(federation)
    most = limits.encryption.CACHED_DEVICES_MAX
    for start in range(0, most + 50, 50):
        await mallory.send(
            *(
                mallory.update(Device(mallory.user_id, f"D{number}"), 11 + number, 10 + number)
                for number in range(start, start + 50)
            )
        )
        assert len(await known(alice, mallory)) <= most
    mallory.devices = {f"D{number}": Device(mallory.user_id, f"D{number}").keys() for number in range(most + 1)}
    assert len(await query(alice, mallory.user_id)) == most + 1
    await trio.sleep(60)
    assert await known(alice, mallory) == set()
    assert len(await query(alice, mallory.user_id)) == most + 1


async def test_updates_of_users_whom_nobody_here_knows_leave_nothing(federation: Federation) -> None:
    mallory, alice = await with_mallory(federation)
    before = await alice.server.read(lambda tx: tx.all("SELECT nid FROM strings"))
    for number in range(20):
        user_id = f"@m{number}:mallory.example"
        content = {"user_id": user_id, "device_id": "D", "stream_id": 1, "keys": Device(user_id, "D").keys()}
        await mallory.send({"edu_type": "m.device_list_update", "content": content})
    assert await alice.server.read(lambda tx: tx.all("SELECT nid FROM strings")) == before


@pytest.mark.parametrize(
    "change",
    [{"stream_id": "1"}, {"stream_id": -1}, {"stream_id": 2**60}, {"prev_id": 10}, {"device_id": 7}, {"keys": "x"},
     {"deleted": "yes"}, {"device_id": ""}, {"device_id": "x" * 300}, {"prev_id": [None]}],
)  # fmt: skip
async def test_malformed_updates_change_nothing(federation: Federation, change: dict[str, Any]) -> None:
    mallory, alice = await with_mallory(federation)
    update = mallory.update(Device(mallory.user_id, "NEW"), 11, 10)
    await mallory.send({**update, "content": {**update["content"], **change}})
    assert await known(alice, mallory) == {"PHONE"}
    assert await is_followed(alice.server)


async def test_a_wrong_self_signing_key_is_not_passed_on(federation: Federation) -> None:
    mallory, alice = await with_mallory(federation)
    mine, other = CrossSigning(mallory.user_id), CrossSigning(mallory.user_id, "other")
    content = {
        "user_id": mallory.user_id,
        "master_key": mine.master_key(),
        "self_signing_key": other.self_signing_key(),
    }
    await mallory.send({"edu_type": "m.signing_key_update", "content": content})
    answer = await alice.ok("POST", "keys/query", json={"device_keys": {mallory.user_id: []}})
    assert answer["master_keys"] == {mallory.user_id: mine.master_key()}
    assert answer["self_signing_keys"] == {}
