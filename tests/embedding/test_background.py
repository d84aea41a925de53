"""Work in the background of a server: it fails alone, and goes on when it can."""

from __future__ import annotations

from pathlib import Path

import pytest
import trio
import trio.testing

from homeserver import Homeserver, limits
from homeserver.background import keep_running, start_aside
from homeserver.config import DatabaseSection
from homeserver.database import DatabaseUnavailable
from homeserver.resources import Resources
from tests.embedding.conftest import Open
from tests.support.homeservers import NoWire, config_for_tests, now_ms
from tests.support.postgres import Cluster


async def test_what_fails_begins_again_after_a_pause(homeservers: Open, caplog: pytest.LogCaptureFixture) -> None:
    began: list[float] = []

    async def work(hs: Resources) -> None:
        began.append(trio.current_time())
        if len(began) < 3:
            raise OSError("out of reach")

    async with homeservers("a.example") as server:
        start = trio.current_time()
        await keep_running(server.resources, work)
    assert began == [start + pause * limits.BACKGROUND_PAUSE_S for pause in range(3)]
    assert [record.message for record in caplog.records] == ["work in the background failed"] * 2


@pytest.mark.parametrize("error", [DatabaseUnavailable("gone"), OSError("out of reach")])
async def test_what_fails_while_the_server_closes_ends_quietly(
    homeservers: Open, caplog: pytest.LogCaptureFixture, error: Exception
) -> None:
    async def fail_when_cancelled() -> None:
        try:
            await trio.sleep_forever()
        finally:
            raise error

    async def work(hs: Resources) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(fail_when_cancelled)
            nursery.start_soon(trio.sleep_forever)

    async with homeservers("a.example") as server, trio.open_nursery() as nursery:
        nursery.start_soon(keep_running, server.resources, work)
        await trio.testing.wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
    assert [record.message for record in caplog.records] == (
        ["work in the background failed"] if isinstance(error, OSError) else []
    )


async def test_what_nobody_waits_for_fails_alone(homeservers: Open) -> None:
    async def work(what: str) -> None:
        raise OSError(what)

    async with homeservers("a.example") as server:
        start_aside(server.resources, work, "out of reach")
        await trio.sleep(1)
        await server.register("alice")


@pytest.mark.postgres
async def test_a_server_outlives_its_database(own_cluster: Cluster, tmp_path: Path) -> None:
    url = own_cluster.make_database()
    config = config_for_tests("a.example", tmp_path, database=DatabaseSection(url=url))
    async with Homeserver(config, wire=NoWire(), now_ms=now_ms, inline_database=True) as server:
        alice = await server.register("alice")
        room_id = await alice.create_room()
        await alice.call("set_typing", room_id, alice.user_id, body={"typing": True, "timeout": 1000})
        own_cluster.stop()
        await trio.sleep(2)
        own_cluster.start()

        async def somebody_types() -> bool:
            try:
                answer = await alice.sync()
            except DatabaseUnavailable:  # the database has not been found again
                return True
            ephemeral = answer["rooms"]["join"][room_id].get("ephemeral", {"events": []})
            return any(event["content"].get("user_ids") for event in ephemeral["events"])

        with trio.fail_after(30):
            while await somebody_types():  # noqa: ASYNC110
                await trio.sleep(0.1)
        await alice.send(room_id, "still here")
