"""Starts homeservers without waiting for Python's imports: a program that has made them forks one at each request.

What is forked is `homeserver serve --config …` as the command line runs it. Only the time of the imports is saved, and
that makes it affordable to kill a server many times. Run as a program: a line `<configuration> <log>` on its standard
input is answered with the pid. The servers end with it.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(slots=True)
class Forked:
    """A server that a Launcher started; as subprocess.Popen, but for the exit code, which is 0 for any end."""

    pid: int
    returncode: int | None = None

    def poll(self) -> int | None:
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            self.returncode = 0
        return self.returncode

    def send_signal(self, number: int) -> None:
        if self.returncode is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        if self.poll() is None:
            os.kill(self.pid, signal.SIGKILL)

    def wait(self, timeout: float | None = None) -> int:
        deadline = time.monotonic() + (60.0 if timeout is None else timeout)
        while self.poll() is None:
            if time.monotonic() > deadline:
                raise subprocess.TimeoutExpired(f"server {self.pid}", timeout or 60.0)
            time.sleep(0.002)
        return 0


@dataclass(slots=True)
class Launcher:
    """The program that forks."""

    _program: subprocess.Popen[str] = field(
        default_factory=lambda: subprocess.Popen(
            [sys.executable, "-m", "tests.end_to_end.launcher"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).resolve().parents[2],
        )
    )  # fmt: skip

    def launch(self, config: Path, log: Path) -> Forked:
        """A new server. It may not be ready yet."""
        assert self._program.stdin is not None and self._program.stdout is not None
        print(config, log, sep="\t", file=self._program.stdin, flush=True)
        return Forked(int(self._program.stdout.readline()))

    def close(self) -> None:
        """Ends the program, and with it every server."""
        assert self._program.stdin is not None and self._program.stdout is not None
        self._program.stdin.close()
        self._program.wait(30)
        self._program.stdout.close()


def serve_forks() -> None:
    """The program: forks a server for each line."""
    import homeserver.server  # for this it exists
    from homeserver.cli import main

    assert homeserver.server
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody asks how a server ended
    pids = []
    for line in sys.stdin:
        config, log = line.rstrip("\n").split("\t")
        pid = os.fork()
        if pid == 0:
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            nothing = os.open(os.devnull, os.O_RDONLY)
            os.dup2(nothing, 0)
            os.dup2(output, 1)
            os.dup2(output, 2)
            sys.exit(main(["serve", "--config", config]))
        pids.append(pid)
        print(pid, flush=True)
    for pid in pids:
        Forked(pid).kill()


if __name__ == "__main__":
    serve_forks()
