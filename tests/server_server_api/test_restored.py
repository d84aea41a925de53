"""A server whose operator has put back a backup, while the other servers have gone on.

Spec: server-server-api/#transactions, #backfilling-and-retrieving-missing-events
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from homeserver.config import DatabaseSection
from tests.support.device_lists import follow, now, query, told, upload
from tests.support.federation import (
    Federation,
    create_room,
    join,
    send_state,
    send_text,
    state_of,
    sync,
    texts,
    until,
    wait_text,
)
from tests.support.homeservers import Client, Server
from tests.support.stranger import Stranger

NAME = "a.example"


async def started(federation: Federation) -> Server:
    return await federation.start(NAME, database=DatabaseSection(url="sqlite:homeserver.db"))


def again(server: Server, client: Client) -> Client:
    return Client(server, client.token, client.user_id, client.device_id)


@pytest.mark.parametrize("version", ["1", "10", "12"])
async def test_a_restored_server_fetches_lost_events_and_resumes(
    federation: Federation, tmp_path: Path, version: str
) -> None:
    a, b = await started(federation), await federation.start("b.example")
    alice, bob = await a.register("alice"), await b.register("bob")
    room_id = await create_room(alice, preset="public_chat", room_version=version)
    await join(bob, room_id, NAME)
    await send_text(alice, room_id, "before the backup")
    await wait_text(bob, room_id, "before the backup")
    await federation.kill(NAME)
    shutil.copytree(tmp_path / NAME, tmp_path / "backup")

    alice = again(await started(federation), alice)
    for number in range(5):
        await send_text(alice, room_id, f"lost {number}")
    await send_state(alice, room_id, "m.room.topic", {"topic": "lost"})
    await wait_text(bob, room_id, "lost 4")
    await send_text(bob, room_id, "from b after the backup")
    await wait_text(alice, room_id, "from b after the backup")
    await federation.kill(NAME)
    shutil.rmtree(tmp_path / NAME)
    shutil.copytree(tmp_path / "backup", tmp_path / NAME)

    alice = again(await started(federation), alice)
    since = (await sync(alice))["next_batch"]
    await send_text(alice, room_id, "first after the restore")

    async def arrived(client: Client, text: str) -> bool:
        return text in await texts(client, room_id)

    await until(lambda: arrived(bob, "first after the restore"), seconds=30)
    await send_text(bob, room_id, "welcome back")
    await until(lambda: arrived(alice, "welcome back"), seconds=30)
    assert {f"lost {number}" for number in range(5)} <= set(await texts(alice, room_id))  # from b, who kept them
    assert "lost 4" in str(await sync(alice, since))

    await send_text(alice, room_id, "all is well")
    await wait_text(bob, room_id, "all is well")
    assert await state_of(alice, room_id) == await state_of(bob, room_id)


async def test_new_transactions_after_a_restore_are_not_taken_for_repetitions(
    federation: Federation, tmp_path: Path
) -> None:
    a = await started(federation)
    stranger = Stranger(federation.network, "s.example")  # type: ignore[arg-type]
    taken: list[str] = []
    alice = await a.register("alice")
    room_id = await create_room(alice, preset="public_chat")
    await stranger.join(NAME, room_id, "sam")

    async def typing(client: Client) -> None:
        body: dict[str, Any] = {"typing": True, "timeout": 10_000}
        await client.ok("PUT", f"rooms/{room_id}/typing/{client.user_id}", json=body)

    def transactions() -> list[str]:
        return [path for method, path in stranger.asked if "/send/" in path and method == "PUT"]

    await federation.kill(NAME)
    shutil.copytree(tmp_path / NAME, tmp_path / "backup")
    for _ in range(2):  # what happens after the restore is the same, at the same positions of the stream
        alice = again(await started(federation), alice)
        before = len(transactions())
        await typing(alice)

        async def sent(before: int = before) -> bool:
            return len(transactions()) > before

        await until(sent)
        taken += transactions()[before:]
        await federation.kill(NAME)
        shutil.rmtree(tmp_path / NAME)
        shutil.copytree(tmp_path / "backup", tmp_path / NAME)
    assert len(taken) == len(set(taken)) >= 2


async def test_device_lists_from_a_backup_are_fetched_again(federation: Federation, tmp_path: Path) -> None:
    a, b = await started(federation), await federation.start("b.example")
    alice, carol, bob = await a.register("alice"), await a.register("carol"), await b.register("bob")
    room_id = await create_room(alice, preset="public_chat")
    await join(carol, room_id)
    await join(bob, room_id, NAME)
    await upload(bob)
    await follow(alice, bob.user_id)
    carols = await now(carol)
    await federation.kill(NAME)
    shutil.copytree(tmp_path / NAME, tmp_path / "backup")

    alice = again(await started(federation), alice)
    await upload(await b.log_in("bob", device_id="TABLET"))
    await until(lambda: has_devices(alice, bob.user_id, 2))
    lost = await now(alice)
    await federation.kill(NAME)
    shutil.rmtree(tmp_path / NAME)
    shutil.copytree(tmp_path / "backup", tmp_path / NAME)

    a = await started(federation)
    alice, carol = again(a, alice), again(a, carol)
    assert await has_devices(alice, bob.user_id, 1)  # nothing shows yet that this is a backup
    await sync(alice, lost)
    await told(carol, carols, bob.user_id)  # she has not noticed the restore
    federation.network.cut(NAME, "b.example")
    assert await has_devices(alice, bob.user_id, 2)


async def has_devices(client: Client, user_id: str, number: int) -> bool:
    return len(await query(client, user_id)) == number
