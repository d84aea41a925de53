"""`keys status`, `keys rotate` and `room forget-key`: the keys of what is sealed, while the server is running."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from tests.cli.programs import SECONDS_MAX, run, serving, write_config
from tests.cli.test_accounts import add, ran
from tests.cli.test_search import Person


def contents_of(alice: Person) -> list[dict[str, Any]]:
    answer = alice.http.get(f"rooms/{alice.room_id}/messages", params={"dir": "b", "limit": 50})
    return [event["content"] for event in answer.json()["chunk"] if event["type"] == "m.room.message"]


def test_a_running_server_forgets_a_room_and_uses_a_new_master_key(tmp_path: Path) -> None:
    config = write_config(tmp_path)
    add(config, "alice")
    with serving(config) as (_, url):
        alice = Person(url)
        alice.say("the kettle", "1")
        assert alice.find("kettle") == ["the kettle"]
        before = ran(config, "keys", "status")
        assert (before["rooms"], before["forgotten"], before["replaced"]) == (1, 0, {})
        assert before["waiting"] == {"events": 0, "files": 0, "blocks": 0}
        new = ran(config, "keys", "rotate")
        assert new["master_key"] != before["master_key"] and not new["has_old_key"]
        alice.say("the other kettle", "2")

        refused = run("room", "forget-key", "--config", str(config), alice.room_id)
        assert refused.returncode == 1 and "--yes" in refused.stderr
        assert ran(config, "room", "forget-key", alice.room_id, "--yes") == {"room_id": alice.room_id}
        deadline = time.monotonic() + SECONDS_MAX
        while contents_of(alice) != [{}, {}] and time.monotonic() < deadline:  # until it hears of it
            time.sleep(0.05)
        assert contents_of(alice) == [{}, {}]
        assert alice.find("kettle") == []
        alice.say("a new kettle", "3")
        assert alice.find("kettle") == ["a new kettle"]
        after = ran(config, "keys", "status")
        assert (after["master_key"], after["rooms"], after["forgotten"]) == (new["master_key"], 1, 1)


def test_a_room_that_is_not_known_is_not_forgotten(tmp_path: Path) -> None:
    config = write_config(tmp_path)
    for name, said in (("!nothing:localhost", "knows no room"), ("#nothing:localhost", "there is no room")):
        done = run("room", "forget-key", "--config", str(config), name, "--yes")
        assert done.returncode == 1 and said in done.stderr
