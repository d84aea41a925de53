"""Servers that lie about the devices of their users, or leave things out. Spec: server-server-api/#device-management"""

from __future__ import annotations

from itertools import count
from typing import Any
from urllib.parse import quote

import pytest
import trio

from homeserver import limits
from homeserver.federation.identifiers import ServerName
from tests.support.device_lists import follow, is_followed, now, query, told, upload
from tests.support.federation import Federation, create_room, join, sync, until
from tests.support.homeservers import Client
from tests.support.keys import CrossSigning, Device
from tests.support.stranger import Stranger


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


async def test_a_consecutive_update_is_applied_without_a_request(federation: Federation) -> None:
    mallory, alice = await with_mallory(federation)
    await mallory.send(mallory.update(Device(mallory.user_id, "NEW"), 11, 10))
    assert await known(alice, mallory) == {"PHONE", "NEW"}
    await mallory.send(mallory.update(Device(mallory.user_id, "NEW"), 12, 11, deleted=True))
    assert await known(alice, mallory) == {"PHONE"}
    assert mallory.times_asked == 1


@pytest.mark.parametrize(
    ("stream_id", "prev_id"), [(12, [11]), (2**53 - 1, [2**53 - 2]), (11, []), (11, [10, 9]), (9, [8]), (0, [])]
)
async def test_after_a_gap_the_whole_list_is_requested(
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


async def test_many_gaps_of_a_user_cause_one_request_and_one_change(federation: Federation) -> None:
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


async def test_a_list_is_requested_until_its_server_answers(federation: Federation) -> None:
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


async def test_a_server_that_refuses_lists_is_asked_once_for_each_query(federation: Federation) -> None:
    a = await federation.start("a.example")
    alice, mallory = await a.register("alice"), Mallory(federation)
    room_id = await create_room(alice, preset="public_chat")
    await mallory.stranger.join("a.example", room_id, "mallory")
    mallory.stranger.answers["GET", mallory.path] = (404, {"errcode": "M_UNRECOGNIZED"})
    for times in (1, 2):
        since = await now(alice)
        assert (await query(alice, mallory.user_id)).keys() == {"PHONE"}
        await trio.sleep(3600)
        assert mallory.times_asked == times
        assert "device_lists" not in await sync(alice, since)


async def test_pending_requests_for_lists_survive_a_restart(federation: Federation) -> None:
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


async def test_a_silent_server_does_not_delay_others(federation: Federation) -> None:
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


async def test_servers_cannot_update_devices_of_users_of_other_servers(federation: Federation) -> None:
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
async def test_a_malformed_list_is_ignored(federation: Federation, answer: dict[str, Any]) -> None:
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


async def test_invented_devices_do_not_fill_the_disk(federation: Federation) -> None:
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


async def test_updates_of_unknown_users_are_not_stored(federation: Federation) -> None:
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
