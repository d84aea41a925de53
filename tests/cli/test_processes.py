"""`serve --processes`: several nodes on one machine, which share their ports."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

import httpx
import pytest

from homeserver.cli.processes import config_of_process
from homeserver.config import load_config
from tests.cli.programs import SECONDS_MAX, run, said, serving
from tests.end_to_end.programs import free_port


def write_config_of(folder: Path, database: str, bind: str, own: str) -> str:
    path = folder / "homeserver.toml"
    path.write_text(
        f'server_name = "test.example"\n[database]\nurl = "{database}"\n[passwords]\nhash_cost = "minimal"\n'
        f'[[listeners]]\nbind = "{bind}"\nserve = ["client", "health"]\n'
        f'[[listeners]]\nbind = "{own}"\nserve = ["metrics", "health"]\n[search]\nenabled = false\n'
    )
    return str(path)


def answers(port: int) -> Any:
    """Returns what a process says about itself on its own port, or None if nobody listens."""
    try:
        return httpx.get(f"http://127.0.0.1:{port}/_homeserver/health/ready").json()
    except httpx.TransportError:
        return None


def wait_for_all(port: int, processes: int) -> None:
    end = time.monotonic() + SECONDS_MAX
    while any(answers(port + number) != {"ready": True} for number in range(processes)):
        assert time.monotonic() < end, "a process does not serve"
        time.sleep(0.05)


def children_of(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


@pytest.mark.postgres
@pytest.mark.sockets
@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="the processes are found in /proc")
def test_a_process_that_is_killed_is_started_again_while_the_others_serve(tmp_path: Path, postgres_url: str) -> None:
    port, own = free_port(), free_port()
    config = write_config_of(tmp_path, postgres_url, f"127.0.0.1:{port}", f"127.0.0.1:{own}")
    with serving(config, "--processes", "2") as (process, url):
        wait_for_all(own, 2)
        second = children_of(process.pid)[1]
        os.kill(second, signal.SIGKILL)
        wait_for_all(own, 1)
        while second in children_of(process.pid):
            time.sleep(0.02)
        assert [httpx.get(f"{url}/_matrix/client/versions").status_code for _ in range(5)] == [200] * 5
        wait_for_all(own, 2)
        process.send_signal(signal.SIGTERM)
        assert process.wait(SECONDS_MAX) == 0
        assert answers(own) is None
        assert answers(own + 1) is None


@pytest.mark.postgres
@pytest.mark.sockets
def test_processes_end_when_the_one_that_watches_them_is_killed(tmp_path: Path, postgres_url: str) -> None:
    own = free_port()
    config = write_config_of(tmp_path, postgres_url, f"127.0.0.1:{free_port()}", f"127.0.0.1:{own}")
    with serving(config, "--processes", "2") as (process, _):
        wait_for_all(own, 2)
        process.kill()
        end = time.monotonic() + SECONDS_MAX
        while answers(own) is not None or answers(own + 1) is not None:
            assert time.monotonic() < end
            time.sleep(0.05)


@pytest.mark.parametrize(
    ("database", "bind", "processes", "sentence"),
    [
        ("sqlite:homeserver.db", "127.0.0.1:8008", "2", "a file of SQLite belongs to one process"),
        ("postgresql://db/name", "127.0.0.1:0", "2", "listener 127.0.0.1:0 cannot be shared"),
        ("postgresql://db/name", "unix:/run/x.sock", "2", "listener unix:/run/x.sock cannot be shared"),
        ("postgresql://db/name", "127.0.0.1:8008", "0", "there has to be at least one"),
    ],
)
def test_settings_that_processes_cannot_share_are_refused(
    tmp_path: Path, database: str, bind: str, processes: str, sentence: str
) -> None:
    config = write_config_of(tmp_path, database, bind, "127.0.0.1:9008")
    assert sentence in said(run("serve", "--config", config, "--processes", processes))


def test_processes_share_keys_and_blobs_and_nothing_else_on_the_disk(tmp_path: Path) -> None:
    path = write_config_of(tmp_path, "postgresql://db/name", "127.0.0.1:8008", "[::1]:9008")
    first = load_config(path)
    third = config_of_process(first, 3)
    assert config_of_process(first, 1) == first
    assert third.data_dir == f"{first.data_dir}/process-3"
    assert third.blobs.url == f"file:{first.data_dir}/blobs"
    assert third.master_key_path == first.master_key_path
    signing_key = first.data_path(first.federation.signing_key_file)
    assert third.data_path(third.federation.signing_key_file) == signing_key
    assert [listener.bind for listener in third.listeners] == ["127.0.0.1:8008", "[::1]:9010"]
