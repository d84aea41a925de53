"""Commands of `homeserver`, in the process of the test or as separate ones, and servers to run them against.

A program takes a second to import the server, so `run` calls the command's function here, and `run_apart` and `serving`
fork a process that has imported it, for what only a process has: signals, sockets that outlive a command. `run_program`
starts the program, for tests of its start.
"""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import httpx

from homeserver.cli import main
from tests.support.forks import PIPE, Forked, forks

ROOT = Path(__file__).resolve().parents[2]
SECONDS_MAX = 60


def environment() -> dict[str, str]:
    """The variables of a program that is to import this checkout."""
    return {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}


def run(*arguments: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
    """Exit code and output of a command, run in this process."""
    stdout, stderr = io.StringIO(), io.StringIO()
    mask = os.umask(0o022)  # a command narrows it
    real_stdin, sys.stdin = sys.stdin, io.StringIO(stdin)
    try:
        with redirect_stdout(stdout), redirect_stderr(stderr):
            code = main(arguments)
    except SystemExit as ended:  # argparse has answered
        code = ended.code if isinstance(ended.code, int) else 1
    finally:
        sys.stdin = real_stdin
        os.umask(mask)
    return subprocess.CompletedProcess(arguments, code, stdout.getvalue(), stderr.getvalue())


def run_program(*arguments: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
    """Exit code and output of a command, run as a program of its own."""
    return subprocess.run(
        [sys.executable, "-m", "homeserver", *arguments],
        input=stdin, capture_output=True, text=True, timeout=SECONDS_MAX, env=environment(), check=False,
    )  # fmt: skip


def run_apart(*arguments: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
    """Exit code and output of a command, run in a process of its own."""
    return forks().run(*arguments, stdin=stdin, timeout=SECONDS_MAX)


def write_config(folder: Path, more: str = "", bind: str = "127.0.0.1:0") -> str:
    path = folder / "homeserver.toml"
    path.write_text(
        f'server_name = "test.example"\n{more}\n[[listeners]]\nbind = "{bind}"\n[passwords]\nhash_cost = "minimal"\n'
    )
    return str(path)


@contextmanager
def serving(config: str, *options: str) -> Iterator[tuple[Forked, str]]:
    """A running server, and its URL. If it ends by itself, the failure is that, with its log."""
    process = forks().start("serve", "--config", config, "--json", *options, stdout=PIPE, stderr=PIPE)
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        if not line:
            raise AssertionError(_epitaph(process))
        try:
            yield process, json.loads(line)["url"]
        except httpx.TransportError:
            if process.poll() is not None:
                raise AssertionError(_epitaph(process)) from None
            raise
    finally:
        process.kill()
        process.communicate()


def _epitaph(process: Forked) -> str:
    _, log = process.communicate(timeout=SECONDS_MAX)
    return f"the server ended with {process.returncode}:\n{log[-4000:]}"


def said(result: subprocess.CompletedProcess[str]) -> str:
    """The one sentence on standard error of a command that failed."""
    assert result.returncode == 1, (result.returncode, result.stdout, result.stderr)
    lines = result.stderr.splitlines()
    assert len(lines) == 1, result.stderr
    assert result.stdout == ""
    return lines[0]


def log_in(url: str, user: str, password: str) -> Any:
    body = {"type": "m.login.password", "identifier": {"type": "m.id.user", "user": user}, "password": password}
    return httpx.post(f"{url}/_matrix/client/v3/login", json=body)
