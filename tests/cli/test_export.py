"""`export` and `import` at the terminal."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from tests.cli.programs import environment, log_in, run, serving, write_config
from tests.cli.test_accounts import PASSWORD, add, ran


def make_room(url: str, messages: int) -> str:
    token = log_in(url, "alice", PASSWORD).json()["access_token"]
    with httpx.Client(base_url=f"{url}/_matrix/client/v3", headers={"authorization": f"Bearer {token}"}) as alice:
        room_id = str(alice.post("createRoom", json={"room_alias_name": "tea"}).json()["room_id"])
        for number in range(messages):
            content = {"msgtype": "m.text", "body": f"message {number}"}
            alice.put(f"rooms/{room_id}/send/m.room.message/{number}", json=content).raise_for_status()
    return room_id


def test_a_room_leaves_and_comes_back_while_the_server_is_running(tmp_path: Path) -> None:
    config = write_config(tmp_path, "[rate_limits]\nenabled = false\n")
    add(config, "alice")
    with serving(config) as (_, url):
        room_id = make_room(url, 5)
        done = ran(config, "export", "room", "#tea:test.example", "--out", str(tmp_path / "tea"))
        assert (done["room_id"], (tmp_path / "tea" / "index.html").is_file()) == (room_id, True)
        back = ran(config, "import", str(tmp_path / "tea"))
        assert (back["own_senders"], back["room_id"] != room_id) == (True, True)
        assert ran(config, "import", str(tmp_path / "tea")) == back
        person = ran(config, "export", "user", "alice", "--out", str(tmp_path / "alice"))
        assert person["events"] > 10


def test_a_killed_export_or_import_does_no_harm(tmp_path: Path) -> None:
    config = write_config(tmp_path, "[rate_limits]\nenabled = false\n")
    add(config, "alice")
    with serving(config) as (_, url):
        room_id = make_room(url, 120)
    command = [sys.executable, "-m", "homeserver", "export", "room", room_id, "--config", config]
    ran(config, "export", "room", room_id, "--out", str(tmp_path / "whole"))
    for number in range(2):
        process = subprocess.Popen([*command, "--out", str(tmp_path / "tea")], env=environment())
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(0.4 + 0.3 * number)
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert not (tmp_path / "tea").exists()
    ran(config, "export", "room", room_id, "--out", str(tmp_path / "tea"))
    assert os.listdir(tmp_path).count(".tea.unfinished") == 0
    for name in ("events.jsonl", "state.jsonl"):
        assert (tmp_path / "tea" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (
            ["export", "room", "#nowhere:test.example", "--out", "x"],
            "there is no room #nowhere:test.example on this server",
        ),
        (["export", "room", "!x:test.example", "--out", "x"], "this server does not know the room !x:test.example"),
        (["export", "user", "nobody", "--out", "x"], "this server knows nothing of @nobody:test.example"),
        (["import", "/nowhere"], "/nowhere: manifest.json cannot be read: No such file or directory"),
    ],
)
def test_an_impossible_command_is_refused_with_a_sentence(tmp_path: Path, arguments: list[str], sentence: str) -> None:
    config = write_config(tmp_path)
    ended = run(*arguments, "--config", config, "--json")
    assert (ended.returncode, json.loads(ended.stdout)) == (1, {"error": sentence})
