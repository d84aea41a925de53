"""`archive`: old messages are moved into blocks, listed and verified, with the server running or not."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

from tests.cli.programs import SECONDS_MAX, environment, run, serving, write_config
from tests.cli.test_accounts import add, ran
from tests.cli.test_search import Person


def _say(person: Person, number: int) -> None:
    for each in range(number):
        person.say(f"tea number {each}", f"t{each}")


def _bodies(person: Person) -> list[str]:
    page = person.http.get(f"rooms/{person.room_id}/messages?dir=b&limit=100").json()
    return [each["content"]["body"] for each in page["chunk"] if each["type"] == "m.room.message"]


def test_messages_are_archived_while_the_server_answers(tmp_path: Path) -> None:
    config = write_config(tmp_path)
    add(config, "alice")
    with serving(config) as (_, url):
        alice = Person(url)
        _say(alice, 40)
        before = _bodies(alice)
        planned = ran(config, "archive", "run", "--older-than", "0d", "--dry-run")
        assert planned["dry_run"] is True
        assert planned["events"] >= 39
        assert planned["freed_bytes"] > 39 * 200
        assert ran(config, "archive", "list", alice.room_id) == {"blocks": []}
        done = ran(config, "archive", "run", "--room", alice.room_id, "--older-than", "0d")
        assert (done["rooms"], done["events"], done["blocks"]) == (1, 39, 1)
        assert _bodies(alice) == before
        (block,) = ran(config, "archive", "list", alice.room_id)["blocks"]
        assert block["events"] == 39
        assert Path(block["url"].removeprefix("file:")).stat().st_size == block["bytes"]
        assert ran(config, "archive", "verify") == {"blocks": 1, "damaged": []}
        assert "39" in run("archive", "list", alice.room_id, "--config", config).stdout
    Path(block["url"].removeprefix("file:")).unlink()
    verified = run("archive", "verify", "--config", config, "--json")
    assert verified.returncode == 1
    assert block["url"].rpartition("/archive/")[2] in verified.stdout


def test_old_messages_are_purged_while_the_server_answers(tmp_path: Path) -> None:
    config = write_config(tmp_path)
    add(config, "alice")
    with serving(config) as (_, url):
        alice = Person(url)
        _say(alice, 30)
        ran(config, "archive", "run", "--older-than", "0d")
        for each in range(3):
            alice.say(f"more tea {each}", f"u{each}")
        kept = _bodies(alice)
        nothing = ran(config, "archive", "purge", "--dry-run")  # the rooms keep their messages for ever
        assert (nothing["events"], nothing["files"]) == (0, 0)
        planned = ran(config, "archive", "purge", "--room", alice.room_id, "--older-than", "0d", "--dry-run")
        assert (planned["dry_run"], planned["rooms"], planned["events"]) == (True, 1, 33)
        assert planned["text_bytes"] > 33 * 20
        refused = run("archive", "purge", "--older-than", "0d", "--config", config)
        assert refused.returncode == 1 and "--yes" in refused.stderr
        assert _bodies(alice) == kept
        done = ran(config, "archive", "purge", "--older-than", "0d", "--yes")
        assert done == {**planned, "dry_run": False}
        assert _bodies(alice) == []
        assert alice.find("tea") == []


def test_archiving_that_is_really_killed_goes_on(tmp_path: Path) -> None:
    """The process dies by `kill -9` as soon as it has stored a block, with most of its work before it."""
    config = write_config(tmp_path)
    add(config, "alice")
    with serving(config) as (_, url):
        alice = Person(url)
        _say(alice, 60)
        before = _bodies(alice)
        blobs = tmp_path / "data" / "blobs" / "archive"
        command = [sys.executable, "-m", "homeserver", "archive", "run", "--older-than", "0d", "--config", config]
        with subprocess.Popen(command, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE) as program:
            deadline = time.monotonic() + SECONDS_MAX
            while not blobs.exists() and program.poll() is None and time.monotonic() < deadline:
                time.sleep(0.001)
            program.kill()
        assert blobs.exists()
        assert _bodies(alice) == before
        ran(config, "archive", "run", "--older-than", "0d")
        (block,) = ran(config, "archive", "list", alice.room_id)["blocks"]
        assert block["events"] == 59
        assert ran(config, "archive", "verify") == {"blocks": 1, "damaged": []}
        assert _bodies(alice) == before


def test_wrong_arguments_are_refused(tmp_path: Path) -> None:
    config = write_config(tmp_path, "[archive]\nafter_days = 0")
    for arguments, words in (
        (("run",), "after_days is 0"),
        (("run", "--older-than", "soon"), "90d"),
        (("run", "--older-than", "1d", "--room", "!nowhere"), "does not know the room"),
        (("list", "!nowhere"), "does not know the room"),
    ):
        answer = run("archive", *arguments, "--config", config)
        assert answer.returncode == 1
        assert words in answer.stderr
