"""Background tasks of a server: a failure affects only its own task, which is restarted."""

from __future__ import annotations

from pathlib import Path

import pytest
import trio
import trio.testing

from homeserver import Homeserver, limits
from homeserver.background import keep_running, start_aside, start_background
from homeserver.config import DatabaseSection
from homeserver.database import DatabaseDamaged, DatabaseUnavailable, Transaction
from homeserver.feature import Feature, Follower, Worklist
from homeserver.resources import Resources
from tests.embedding.conftest import Open
from tests.support.homeservers import NoWire, config_for_tests, now_ms
from tests.support.postgres import Cluster


async def test_a_failing_task_is_restarted_after_a_pause(homeservers: Open, caplog: pytest.LogCaptureFixture) -> None:
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


async def test_damaged_data_met_by_a_task_is_logged_once(homeservers: Open, caplog: pytest.LogCaptureFixture) -> None:
    damages = ["page 3", "page 3", "page 3", "page 5"]

    async def work(hs: Resources) -> None:
        if damages:
            raise DatabaseDamaged(damages.pop(0))

    async with homeservers("a.example") as server:
        await keep_running(server.resources, work, "departures")
    logged = [(record.message, record.__dict__["damage"], record.exc_info) for record in caplog.records]
    assert logged == [
        ("work in the background is held up by damaged data", damage, None) for damage in ("page 3", "page 5")
    ]


@pytest.mark.parametrize("error", [DatabaseUnavailable("gone"), OSError("out of reach")])
async def test_a_task_that_fails_while_the_server_closes_ends_quietly(
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


async def test_a_failing_background_job_affects_nothing_else(homeservers: Open) -> None:
    async def work(what: str) -> None:
        raise OSError(what)

    async with homeservers("a.example") as server:
        start_aside(server.resources, work, "out of reach")
        await trio.sleep(1)
        await server.register("alice")


@pytest.mark.postgres
async def test_a_server_survives_an_outage_of_its_database(own_cluster: Cluster, tmp_path: Path) -> None:
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


def _notify(tx: Transaction, key: str) -> None:
    tx.next_position(key)


async def test_a_worklist_is_processed_whenever_its_key_is_notified(homeservers: Open) -> None:
    due, done = ["left by a crash", "poison"], []

    async def finish(hs: Resources, item: str) -> None:
        if item == "poison":
            raise ValueError("nobody can do that")
        due.remove(item)
        done.append(item)

    feature = Feature("example", "", worklists=(Worklist("example", lambda tx: list(due), finish, "example"),))
    async with homeservers("a.example") as server:
        start_background(server.resources, [feature])
        await trio.sleep(60)
        assert done == ["left by a crash"], "before a poisoned item is parked, and in spite of it"
        due.append("new")
        await server.resources.database.write(_notify, "somebody else's")
        await trio.sleep(60)
        assert "new" not in done
        await server.resources.database.write(_notify, "example")
        await trio.sleep(1)
        assert (due, done) == (["poison"], ["left by a crash", "new"])


async def test_a_worklist_without_a_key_is_processed_at_the_start(homeservers: Open) -> None:
    lists = 0

    def list_due(tx: Transaction) -> list[str]:
        nonlocal lists
        lists += 1
        return []

    async def finish(hs: Resources, item: str) -> None:
        raise AssertionError(item)

    async with homeservers("a.example") as server:
        start_background(server.resources, [Feature("example", "", worklists=(Worklist("example", list_due, finish),))])
        await trio.sleep(1)
        await server.resources.database.write(_notify, "example")
        await trio.sleep(1)
    assert lists == 1


async def test_an_enabled_tail_gets_committed_changes(homeservers: Open) -> None:
    told: list[tuple[int, int]] = []

    async def follow(hs: Resources, since: int, upto: int) -> None:
        told.append((since, upto))

    async def never(hs: Resources, since: int, upto: int) -> None:
        raise AssertionError((since, upto))

    on = Follower("on", follow, from_now=True)
    off = Follower("off", never, is_on=lambda config: not config.federation.enabled)
    async with homeservers("a.example") as server:
        hs = server.resources
        await hs.database.write(_notify, "before")
        start_background(hs, [Feature("example", "", tails=(on, off))])
        await trio.sleep(1)
        assert told == []
        before = hs.stream.position
        await hs.database.write(_notify, "example")
        await trio.sleep(1)
        assert told == [(before, before + 1)]
        with pytest.raises(ValueError, match="two tails or worklists called 'on'"):
            start_background(hs, [Feature("a", "", tails=(on,)), Feature("b", "", tails=(on,))])
