"""`parked`: items that the server has left out are listed, retried and forgotten while it is running."""

from __future__ import annotations

import json
import sqlite3
import time
from contextlib import closing
from pathlib import Path
from typing import Any

from tests.cli.test_accounts import add, ran
from tests.cli.test_commands import run, said, serving, write_config

ADVICE = "`homeserver parked list` shows"


def park(folder: Path, lane: str, item: str, reason: str = "ValueError: no") -> None:
    (path,) = folder.rglob("homeserver.db")
    with closing(sqlite3.connect(path)) as connection, connection:
        sql = "INSERT INTO parked_items (lane, item, reason, parked_ms) VALUES (?, ?, ?, 1700000000000)"
        connection.execute(sql, (lane, item, reason))


def park_event(folder: Path, event_id: str) -> None:
    (path,) = folder.rglob("homeserver.db")
    with closing(sqlite3.connect(path)) as connection, connection:
        nids = []
        for name in ("!room:other.example", "other.example"):
            connection.execute("INSERT INTO strings (value) VALUES (?) ON CONFLICT DO NOTHING", (name,))
            nids += connection.execute("SELECT nid FROM strings WHERE value = ?", (name,)).fetchone()
        connection.execute(
            "INSERT INTO parked_events (room_nid, event_id, origin_nid, depth, received_ms, attempts, retry_ms, pdu)"
            " VALUES (?, ?, ?, 1, 1700000000000, 3, 1800000000000, '{}')",
            (nids[0], event_id, nids[1]),
        )


def listed(config: str) -> list[tuple[str, str, bool]]:
    items: list[dict[str, Any]] = ran(config, "parked", "list")["items"]
    return [(each["lane"], each["item"], each["retry"]) for each in items]


def test_parked_items_are_listed_with_their_reasons(tmp_path: Path) -> None:
    config = write_config(tmp_path)
    add(config, "alice")
    assert ran(config, "parked", "list") == {"items": []}
    park(tmp_path, "typing", "(1, 2, True)", "DatabaseDamaged: The interned\nstring 7 is missing.")
    park_event(tmp_path, "$late")
    first, second = ran(config, "parked", "list")["items"]
    assert first == {
        "lane": "typing", "item": "(1, 2, True)", "reason": "DatabaseDamaged: The interned\nstring 7 is missing.",
        "parked_ts": 1_700_000_000_000, "retry": False,
    }  # fmt: skip
    assert (second["lane"], second["item"], second["room_id"]) == ("gaps", "$late", "!room:other.example")
    table = run("parked", "list", "--config", config).stdout.splitlines()
    assert table[0].split() == ["lane", "item", "since", "why"]
    assert "2023-11-14 22:13Z  DatabaseDamaged: The interned string 7 is missing." in table[1]
    assert "$late" in table[2] and "tried 3 times" in table[2]


def test_items_to_retry_are_chosen_by_lane_and_item(tmp_path: Path) -> None:
    config = write_config(tmp_path)
    add(config, "alice")
    for item in ("1", "2"):
        park(tmp_path, "presence", item)
    park(tmp_path, "typing", "1")
    park_event(tmp_path, "$late")
    assert ran(config, "parked", "retry", "presence", "2") == {"items": 1}
    assert listed(config)[:3] == [("presence", "1", False), ("presence", "2", True), ("typing", "1", False)]
    assert "1 item will be tried again" in run("parked", "retry", "gaps", "$late", "--config", config).stdout
    assert ran(config, "parked", "retry") == {"items": 4}
    assert "to be tried again; ValueError: no" in run("parked", "list", "--config", config).stdout
    assert ADVICE in said(run("parked", "retry", "presence", "3", "--config", config))


def test_cleared_items_are_forgotten(tmp_path: Path) -> None:
    config = write_config(tmp_path)
    add(config, "alice")
    park(tmp_path, "presence", "1")
    park(tmp_path, "typing", "1")
    park_event(tmp_path, "$late")
    assert "--all" in said(run("parked", "clear", "--config", config))
    assert ran(config, "parked", "clear", "presence") == {"items": 1}
    assert [lane for lane, _, _ in listed(config)] == ["typing", "gaps"]
    assert json.loads(run("parked", "clear", "--all", "--config", config, "--json").stdout) == {"items": 2}
    assert listed(config) == []
    assert ADVICE in said(run("parked", "clear", "--all", "--config", config))


def test_a_running_server_retries_the_chosen_items(tmp_path: Path) -> None:
    config = write_config(tmp_path)
    add(config, "alice")
    park(tmp_path, "profiles", "@alice:test.example")  # by an earlier process
    with serving(config):
        ran(config, "parked", "retry", "profiles")
        deadline = time.monotonic() + 30
        while listed(config):
            assert time.monotonic() < deadline, "it was not tried again"
