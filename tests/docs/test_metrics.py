"""docs/administration.md names every metric there is, and no other."""

from __future__ import annotations

import ast
import re
from functools import partial
from pathlib import Path

import trio
import trio.testing

from homeserver import Homeserver
from homeserver.testing import FakeNetwork
from tests.support.homeservers import config_for_tests, now_ms
from tests.tidy.source import walk

ROOT = Path(__file__).parents[2]
NAME = re.compile(r"(?:homeserver|process)_[a-z_]+")
# Strings of that form that mean something else: the channel on which nodes hear of one another, and a cookie.
NO_METRICS = {"homeserver_stream", "homeserver_sso"}


def test_exactly_the_existing_metrics_are_described() -> None:
    in_code = {
        node.value
        for path in (ROOT / "homeserver").rglob("*.py")
        for node in walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and NAME.fullmatch(node.value)
    }
    page = (ROOT / "docs" / "administration.md").read_text().partition("## Metrics")[2]
    assert set(re.findall(r"`((?:homeserver|process)_[a-z_]+)`", page)) == in_code - NO_METRICS


async def test_exported_metrics_are_described_and_numeric(tmp_path: Path) -> None:
    config = config_for_tests("a.example", tmp_path)
    wire = FakeNetwork().wire_for("a.example")
    async with Homeserver(config, wire=wire, now_ms=now_ms, inline_database=True) as hs:
        await hs.register("alice", "a good password")
        lines = hs.resources.metrics.text().splitlines()
    described = {line.split()[2] for line in lines if line.startswith("# HELP")}
    values = {line.split("{")[0].split()[0]: float(line.split()[-1]) for line in lines if not line.startswith("#")}
    assert set(values) <= described
    assert values["process_resident_memory_bytes"] > 1 << 20
    assert values["process_open_fds"] > 2
    assert values["homeserver_database_writes_total"] >= values["homeserver_database_batches_total"] > 0


async def test_a_sync_without_news_is_counted_while_it_waits(tmp_path: Path) -> None:
    config = config_for_tests("a.example", tmp_path)
    wire = FakeNetwork().wire_for("a.example")

    async def waiting(hs: Homeserver) -> int:
        await trio.testing.wait_all_tasks_blocked(0.05)
        return hs.resources.stream.waiting

    async with Homeserver(config, wire=wire, now_ms=now_ms, inline_database=True) as hs, trio.open_nursery() as nursery:
        alice = await hs.register("alice", "a good password")
        since = (await alice.call("sync_events"))["next_batch"]
        before = await waiting(hs)
        nursery.start_soon(partial(alice.call, "sync_events", query={"since": since, "timeout": 30_000}))
        assert await waiting(hs) == before + 1
        nursery.cancel_scope.cancel()
