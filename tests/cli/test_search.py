"""`search`: the index is measured and rebuilt, while the server is running and while it is not."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import httpx

from tests.cli.programs import log_in, run, said, serving, write_config
from tests.cli.test_accounts import PASSWORD, add, ran

NOTHING = {"position": 0, "documents": 0, "deleted": 0, "slices": 0, "bytes": 0}


def indexes(folder: Path) -> set[str]:
    return {path.name for path in folder.glob("data/search/index-*")}


class Person:
    """A user of a running server, over HTTP."""

    def __init__(self, url: str) -> None:
        token = log_in(url, "alice", PASSWORD).json()["access_token"]
        self.http = httpx.Client(base_url=f"{url}/_matrix/client/v3", headers={"authorization": f"Bearer {token}"})
        self.room_id = self.http.post("createRoom", json={}).json()["room_id"]

    def say(self, text: str, txn_id: str) -> None:
        path = f"rooms/{self.room_id}/send/m.room.message/{txn_id}"
        assert self.http.put(path, json={"msgtype": "m.text", "body": text}).status_code == 200

    def find(self, term: str) -> list[str]:
        body = {"search_categories": {"room_events": {"search_term": term, "order_by": "recent"}}}
        answer = self.http.post("search", json=body, timeout=30)
        found: dict[str, Any] = answer.json()["search_categories"]["room_events"]
        return [each["result"]["content"]["body"] for each in found["results"]]


def index_process(server: int) -> int:
    """The process of the index, a child of the server."""
    for path in Path("/proc").glob("[0-9]*/stat"):
        pid, _, rest = path.read_text().partition(" (")
        if rest.rpartition(") ")[2].split()[1] == str(server):
            return int(pid)
    raise AssertionError("the index has no process")


def test_an_index_is_rebuilt_and_killed_while_the_server_answers(tmp_path: Path) -> None:
    config = write_config(tmp_path)
    add(config, "alice")
    with serving(config) as (process, url):
        alice = Person(url)
        alice.say("the kettle", "1")
        assert alice.find("kettle") == ["the kettle"]
        before = indexes(tmp_path)
        status = ran(config, "search", "rebuild")
        assert (status["documents"], status["behind"]) == (1, 0)
        alice.say("the other kettle", "2")
        assert alice.find("kettle") == ["the other kettle", "the kettle"]
        after = indexes(tmp_path)
        assert len(after) == 1 and not after & before, "the server has removed the old one"
        os.kill(index_process(process.pid), signal.SIGKILL)
        alice.say("the last kettle", "3")
        assert len(alice.find("kettle")) == 3
        process.send_signal(signal.SIGKILL)
        process.wait()
    with serving(config) as (_, url):
        assert Person(url).find("nothing") == []
    assert ran(config, "search", "rebuild")["documents"] == 3


def test_the_index_is_measured_and_rebuilt_without_a_running_server(tmp_path: Path) -> None:
    config = write_config(tmp_path)
    add(config, "alice")
    status = ran(config, "search", "status")
    assert {name: status[name] for name in NOTHING} == NOTHING
    assert "0 texts in 0 slices" in run("search", "status", "--config", config).stdout
    assert "The index is rebuilt: 0 texts" in run("search", "rebuild", "--config", config).stdout
    (manifest,) = tmp_path.glob("data/search/index-*/manifest.json")
    manifest.write_text("damage")
    assert "is damaged and will be rebuilt" in said(run("search", "status", "--config", config))
    run("search", "rebuild", "--config", config)
    assert ran(config, "search", "status")["documents"] == 0


def test_commands_say_that_search_is_turned_off(tmp_path: Path) -> None:
    config = write_config(tmp_path, "[search]\nenabled = false")
    assert "search is turned off" in said(run("search", "rebuild", "--config", config))
