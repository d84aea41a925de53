"""The command line, as a person or a service manager uses it: exit codes, results, one sentence for an error."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from homeserver import __version__
from homeserver.cli.serve import without_password
from tests.cli.programs import (
    SECONDS_MAX,
    environment,
    log_in,
    run,
    run_apart,
    run_program,
    said,
    serving,
    write_config,
)


def test_a_reload_during_the_start_does_not_stop_the_server(tmp_path: Path) -> None:
    """`systemctl reload` right after `systemctl restart`, before the server listens for signals."""
    program = """
import os, signal, sys
from homeserver.cli import main
code = main(["serve", "--config", sys.argv[1]])
os.kill(os.getpid(), signal.SIGHUP)
print("alive", code)
"""
    result = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path / "missing.toml")],
        capture_output=True, text=True, timeout=SECONDS_MAX, env=environment(), check=False,
    )  # fmt: skip
    assert (result.returncode, result.stdout) == (0, "alive 1\n")


def test_help_lists_every_command() -> None:
    result = run_program("--help")
    assert result.returncode == 0
    for command in ("serve", "config", "user", "demo"):
        assert command in result.stdout
    assert run_apart().returncode == 2
    assert run_apart("serve", "--nonsense").returncode == 2


def test_config_check_confirms_a_valid_configuration(tmp_path: Path) -> None:
    good = write_config(tmp_path)
    assert "served as test.example" in run("config", "check", "--config", good).stdout
    as_json = json.loads(run("config", "check", "--config", good, "--json").stdout)
    assert (as_json["ok"], as_json["server_name"]) == (True, "test.example")
    assert {each["level"] for each in as_json["findings"]} == {"warning"}


@pytest.mark.parametrize(
    ("more", "sentence"),
    [
        ("data_dri = 'x'", "unknown key 'data_dri' at the top; did you mean 'data_dir'?"),
        ("[application_services]\nfiles = ['none.yaml']", "application_services.files: cannot read"),
        ("[registration]\nshared_secret_file = 'none'", "registration.shared_secret_file: cannot read"),
        ("= 1", "is not valid TOML"),
    ],
)
def test_config_check_explains_mistakes(tmp_path: Path, more: str, sentence: str) -> None:
    bad = write_config(tmp_path, more)
    assert sentence in said(run("config", "check", "--config", bad))
    result = run("config", "check", "--config", bad, "--json")
    assert result.returncode == 1
    assert sentence in json.loads(result.stdout)["error"]


def test_serve_explains_refusals_in_a_sentence(tmp_path: Path) -> None:
    assert "cannot read" in said(run_apart("serve", "--config", str(tmp_path / "none.toml")))
    with socket.create_server(("127.0.0.1", 0)) as taken:
        bind = f"127.0.0.1:{taken.getsockname()[1]}"
        config = write_config(tmp_path, bind=bind)
        sentence = said(run_apart("serve", "--config", config))
        assert f"cannot listen on {bind}: another program is listening there" in sentence


def test_a_signal_stops_the_server_with_exit_code_0(tmp_path: Path) -> None:
    config = write_config(tmp_path)
    for number in (signal.SIGTERM, signal.SIGINT):
        with serving(config) as (process, url):
            assert httpx.get(f"{url}/_homeserver/health/ready").json() == {"ready": True}
            process.send_signal(number)
            assert process.wait(SECONDS_MAX) == 0


def test_a_lame_duck_goes_on_serving_while_load_balancers_leave_it(tmp_path: Path) -> None:
    with serving(write_config(tmp_path), "--lame-duck", "2") as (process, url):
        process.send_signal(signal.SIGTERM)
        while (answer := httpx.get(f"{url}/_homeserver/health/ready")).status_code == 200:
            pass
        assert answer.json() == {"ready": False, "reason": "The server has been told to stop."}
        assert httpx.get(f"{url}/_matrix/client/versions").status_code == 200
        assert process.wait(SECONDS_MAX) == 0


def test_a_hangup_reloads_the_log_level_and_stops_nothing(tmp_path: Path) -> None:
    config = write_config(tmp_path)
    with serving(config) as (process, url):
        assert process.stderr is not None
        started = ""
        while "server started" not in started:
            started = process.stderr.readline()
        assert f"version={__version__} server_name=test.example database=sqlite:{tmp_path}" in started
        assert f"data={tmp_path / 'data'} listeners={url}" in started
        while "passwords.hash_cost" not in process.stderr.readline():
            pass
        for text, words in (("[log", "was not reloaded"), ('[log]\nlevel = "debug"\n', "level=debug")):
            Path(config).write_text(f'server_name = "test.example"\n{text}\n')
            process.send_signal(signal.SIGHUP)
            assert words in process.stderr.readline()
        assert httpx.get(f"{url}/_homeserver/health/ready").status_code == 200
        process.send_signal(signal.SIGTERM)
        assert process.wait(SECONDS_MAX) == 0


def test_the_password_of_a_database_is_not_logged() -> None:
    assert without_password("postgresql://user:secret@db:5432/name?password=x") == "postgresql://db:5432/name"
    assert without_password("sqlite:/data/homeserver.db") == "sqlite:/data/homeserver.db"


def test_a_database_can_be_served_by_one_server_only(tmp_path: Path) -> None:
    config = write_config(tmp_path)
    with serving(config):
        assert said(run_apart("serve", "--config", config))


def test_user_add_creates_an_account(tmp_path: Path) -> None:
    config = write_config(tmp_path)
    arguments = ("user", "add", "--config", config, "alice", "--password-stdin", "--admin", "--json")
    result = run_apart(*arguments, stdin="a pass word\n")
    assert json.loads(result.stdout) == {"user_id": "@alice:test.example", "admin": True}
    added = run("user", "add", "--config", config, "@bob:test.example", "--password-stdin", stdin="now of bob")
    assert added.stdout == "@bob:test.example can log in now.\n"
    with serving(config) as (_, url):
        assert log_in(url, "alice", "a pass word").json()["user_id"] == "@alice:test.example"
        assert log_in(url, "bob", "now of bob").status_code == 200
        assert log_in(url, "bob", "other").status_code == 403
        added = run("user", "add", "--config", config, "carol", "--password-stdin", stdin="while it runs")
        assert added.returncode == 0, added.stderr
        assert log_in(url, "carol", "while it runs").status_code == 200


@pytest.mark.parametrize(
    ("name", "stdin", "sentence"),
    [
        ("alice", "\n", "the password is empty"),
        ("alice", "7 chars\n", "The password must have at least 8 characters."),
        ("@alice:other.example", "x\n", "is not a user of test.example"),
        ("al ice", "x\n", "username"),
    ],
)
def test_user_add_explains_mistakes(tmp_path: Path, name: str, stdin: str, sentence: str) -> None:
    config = write_config(tmp_path)
    assert sentence in said(run("user", "add", "--config", config, name, "--password-stdin", stdin=stdin))
    assert "there is no terminal" in said(run("user", "add", "--config", config, "alice"))
