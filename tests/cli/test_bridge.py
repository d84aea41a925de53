"""`bridge`: how application services stand, and having them tried again."""

from __future__ import annotations

import json
import sqlite3
from contextlib import closing
from pathlib import Path

from tests.cli.test_accounts import add, ran
from tests.cli.test_commands import run, said, write_config
from tests.cli.test_parked import park
from tests.support.application_services import registration


def bridged_config(folder: Path) -> str:
    """A configuration with a bridge that has failed since 2023, and one that is sent nothing."""
    for name, fields in (("irc", {}), ("bot", {"id": "bot", "url": None, "as_token": "2"})):
        (folder / f"{name}.yaml").write_text(json.dumps(registration(**fields)))
    config = write_config(folder, '[application_services]\nfiles = ["irc.yaml", "bot.yaml"]')
    add(config, "alice")
    with closing(sqlite3.connect(next(folder.rglob("homeserver.db")))) as connection, connection:
        connection.execute(
            "INSERT INTO application_services (id, acked, sending, number, failures, since_ms, retry_after_ms, reason)"
            " VALUES ('irc', -3, 0, 7, 3, 1700000000000, 4000000000000, 'HTTP 500')"
        )
    park(folder, "bridge irc", "12", "the bridge refuses $event")
    return config


def test_bridges_are_listed_with_what_they_lack(tmp_path: Path) -> None:
    config = bridged_config(tmp_path)
    irc, bot = ran(config, "bridge", "list")["bridges"]
    assert irc["lag"] >= 3
    assert {**irc, "lag": 0} == {
        "id": "irc", "url": "http://bridge.example", "user_id": "@ircbot:test.example", "lag": 0, "transactions": 7,
        "failures": 3, "failing_since_ts": 1_700_000_000_000, "retry_ts": 4_000_000_000_000, "reason": "HTTP 500",
        "parked": [
            {"item": "12", "reason": "the bridge refuses $event", "parked_ts": 1_700_000_000_000, "retry": False}
        ],
    }  # fmt: skip
    assert (bot["id"], bot["url"], bot["lag"], bot["parked"]) == ("bot", None, 0, [])
    table = run("bridge", "list", "--config", config).stdout.splitlines()
    assert table[0].split() == ["id", "lag", "sent", "parked", "state"]
    assert "fails since 2023-11-14 22:13Z (3 times): HTTP 500" in table[1]
    assert table[2].endswith("has no url")
    shown = run("bridge", "show", "irc", "--config", config).stdout
    assert "http://bridge.example" in shown
    assert "12    2023-11-14 22:13Z  the bridge refuses $event" in shown


def test_bridges_are_tried_again_on_demand(tmp_path: Path) -> None:
    config = bridged_config(tmp_path)
    assert "`homeserver bridge show irc` shows all" in said(run("bridge", "retry", "irc", "13", "--config", config))
    assert "has the id 'fax'" in said(run("bridge", "retry", "fax", "--config", config))
    assert ran(config, "bridge", "retry", "irc") == {"id": "irc", "items": 1}
    irc, _ = ran(config, "bridge", "list")["bridges"]
    assert "failures" not in irc
    assert irc["parked"][0]["retry"] is True
