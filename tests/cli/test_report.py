"""`report`: reports of users are read while the server is running."""

from __future__ import annotations

from pathlib import Path

import httpx

from tests.cli.programs import log_in, run, said, serving, write_config
from tests.cli.test_accounts import PASSWORD, add, ran


def test_reports_are_listed_and_deleted(tmp_path: Path) -> None:
    config = write_config(tmp_path)
    add(config, "alice")
    assert ran(config, "report", "list") == {"reports": []}
    with serving(config) as (_, url):
        headers = {"authorization": f"Bearer {log_in(url, 'alice', PASSWORD).json()['access_token']}"}
        for path in ("users/@spam:evil.example", "rooms/!spam:evil.example"):
            body = {"reason": "sells\nthings"}
            report = httpx.post(f"{url}/_matrix/client/v3/{path}/report", json=body, headers=headers)
            assert report.status_code == 200
        room, user = ran(config, "report", "list")["reports"]
        assert (room["kind"], room["about"], room["room_id"]) == ("room", "!spam:evil.example", "!spam:evil.example")
        assert (user["kind"], user["about"], user["reason"]) == ("user", "@spam:evil.example", "sells\nthings")
        table = run("report", "list", "--limit", "1", "--config", config).stdout.splitlines()
        assert table[0].split() == ["id", "when", "who", "kind", "about", "why"]
        assert table[1].endswith("@alice:test.example  room  !spam:evil.example  sells things") and len(table) == 2
        assert ran(config, "report", "show", str(user["id"]))["target_user_id"] == "@spam:evil.example"
        shown = run("report", "show", str(room["id"]), "--config", config).stdout.splitlines()
        assert shown[0].endswith("by @alice:test.example, about !spam:evil.example")
        assert shown[-1] == r"  reason: 'sells\nthings'"
        assert ran(config, "report", "delete", str(room["id"])) == {"id": room["id"], "deleted": True}
        assert ran(config, "report", "list")["reports"] == [user]
        again = run("report", "delete", str(room["id"]), "--config", config)
        assert "there is no report" in said(again)
        assert "there is no report" in said(run("report", "show", str(room["id"]), "--config", config))
