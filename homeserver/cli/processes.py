"""Several processes of one server on one machine: each is a node, and they share the ports of the listeners.

Theory of operation. The process that was started only watches. It forks the others, while it has no thread yet, and
passes signals on to them. The first of them has to listen before the others start, so a mistake is told once, and ends
the command. One that ends later is started again, after a second at first and then less often; the others go on
meanwhile. If the watching process is killed, nothing would stop them: so each reads from a pipe that ends with it.
"""

from __future__ import annotations

import argparse
import logging
import os
import select
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NoReturn

from homeserver.cli.output import CommandError, fail

_log = logging.getLogger(__name__)

# A process that cannot start, because PostgreSQL is away for example, must not use up a core with attempts.
_DELAY_SECONDS, _DELAY_SECONDS_MAX = 1.0, 30.0
_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGCHLD)


@dataclass(frozen=True, slots=True)
class Ties:
    """What ties a process to the one that watches it: ends of pipes. `watched` ends with it; `ready` awaits a byte."""

    watched: int
    ready: int

    def tell_ready(self) -> None:
        """Says that the process listens."""
        os.write(self.ready, b"1")
        os.close(self.ready)


def check_processes(config: Any, processes: int) -> None:
    """Raises CommandError if that many processes cannot serve with this configuration."""
    from homeserver.config import ConfigError, parse_bind
    from homeserver.http.listener import try_listener

    if processes < 1:
        raise CommandError(f"--processes {processes}: there has to be at least one")
    if not config.database.url.startswith("postgres"):
        raise CommandError("--processes: a file of SQLite belongs to one process; set database.url to a PostgreSQL")
    if not hasattr(socket, "SO_REUSEPORT"):
        raise CommandError("--processes: on this system processes cannot share a port")
    for listener in config.listeners:
        if not parse_bind(listener.bind).port:
            raise CommandError(f"--processes: listener {listener.bind} cannot be shared; give it a host and a port")
        try:
            try_listener(listener)  # later the ports could be shared with a server that somebody forgot to stop
        except ConfigError as error:
            raise CommandError(str(error)) from error


def config_of_process(config: Any, number: int) -> Any:
    """Returns the configuration of a process; the first one, number 1, has that of a server with one process.

    The others have the same files of keys and blobs, and a data folder of their own. Listeners that only
    administrators and monitoring use are not shared, so that each process can be asked: they take the following ports.
    """
    from msgspec.structs import replace

    from homeserver.server import blobs_url

    if number == 1:
        return config
    return replace(
        config,
        data_dir=str(config.data_path(f"process-{number}")),
        blobs=replace(config.blobs, url=blobs_url(config)),
        federation=replace(
            config.federation, signing_key_file=str(config.data_path(config.federation.signing_key_file))
        ),
        at_rest=replace(config.at_rest, master_key_file=str(config.master_key_path)),
        listeners=tuple(_listener_of_process(listener, number) for listener in config.listeners),
    )


def _listener_of_process(listener: Any, number: int) -> Any:
    from msgspec.structs import replace

    if not {"client", "federation", "media"}.isdisjoint(listener.serve):
        return listener
    host, _, port = listener.bind.rpartition(":")
    return replace(listener, bind=f"{host}:{int(port) + number - 1}")


@dataclass(slots=True)
class _Child:
    number: int
    pid: int = 0  # 0 while it does not run
    start_at: float = 0.0
    started_at: float = 0.0
    delay_s: float = _DELAY_SECONDS


class Watch:
    """The processes of a server, from the start of the first to the end of the last."""

    def __init__(self, args: argparse.Namespace, processes: int, serve: Callable[[int, Ties], int]) -> None:
        self._args = args
        self._serve = serve
        self._children = [_Child(number) for number in range(1, processes + 1)]
        self._watched, self._watching = os.pipe()
        self._ready, self._telling = os.pipe()
        self._signals, self._signalling = os.pipe()
        self._is_ready = False
        self._is_stopping = False

    def run(self) -> int:
        """Runs the processes until a signal stops them. Returns the exit code: that of the first if it cannot start."""
        os.set_blocking(self._signals, False)
        os.set_blocking(self._signalling, False)
        signal.set_wakeup_fd(self._signalling, warn_on_full_buffer=False)
        for number in _SIGNALS:
            signal.signal(number, lambda number, frame: None)  # the number arrives through the pipe
        first = self._children[0]
        self._start(first)
        while True:
            self._wait()
            for ended, code in self._reap():
                if self._is_stopping:
                    continue
                if ended is first and not self._is_ready:
                    return code or 1
                self._start_later(ended, code)
            if self._is_stopping:
                if not any(child.pid for child in self._children):
                    return 0
            elif self._is_ready:
                for child in self._children:
                    if not child.pid and child.start_at <= time.monotonic():
                        self._start(child)

    def _wait(self) -> None:
        """Waits for a signal, for the first process to be ready, or until a process is to be started."""
        due = [child.start_at for child in self._children if not child.pid] if self._is_ready else []
        timeout = None if self._is_stopping or not due else max(0.0, min(due) - time.monotonic())
        waited_for = [self._signals] if self._is_ready else [self._signals, self._ready]
        found, _, _ = select.select(waited_for, [], [], timeout)
        if self._ready in found:
            self._is_ready = True
        for number in os.read(self._signals, 4096) if self._signals in found else b"":
            if number == signal.SIGHUP:
                self._pass_on(signal.SIGHUP)
            elif number in (signal.SIGTERM, signal.SIGINT):
                self._is_stopping = True
                self._pass_on(signal.SIGTERM)

    def _pass_on(self, number: int) -> None:
        for child in self._children:
            if child.pid:
                os.kill(child.pid, number)

    def _reap(self) -> list[tuple[_Child, int]]:
        ended = []
        for child in self._children:
            if child.pid:
                pid, status = os.waitpid(child.pid, os.WNOHANG)
                if pid:
                    child.pid = 0
                    ended.append((child, os.waitstatus_to_exitcode(status)))
        return ended

    def _start_later(self, child: _Child, code: int) -> None:
        now = time.monotonic()
        child.delay_s = _DELAY_SECONDS if now - child.started_at > _DELAY_SECONDS_MAX else child.delay_s
        child.start_at = now + child.delay_s
        about = {"number": child.number, "code": code, "again_in_s": child.delay_s}
        _log.error("a process has ended and is started again", extra=about)
        child.delay_s = min(2 * child.delay_s, _DELAY_SECONDS_MAX)

    def _start(self, child: _Child) -> None:
        sys.stdout.flush()
        sys.stderr.flush()
        child.started_at = time.monotonic()
        child.pid = os.fork()
        if not child.pid:
            self._become(child.number)

    def _become(self, number: int) -> NoReturn:
        """Serves as one of the processes, and ends it."""
        code = 1
        try:
            signal.set_wakeup_fd(-1)
            for each in _SIGNALS:
                signal.signal(each, signal.SIG_IGN if each == signal.SIGHUP else signal.SIG_DFL)
            for end in (self._watching, self._ready, self._signals, self._signalling):
                os.close(end)
            code = self._serve(number, Ties(self._watched, self._telling))
        except CommandError as error:
            fail(self._args, str(error))
        except BaseException:  # whatever it is: a fork must not go on as the process that watches
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
