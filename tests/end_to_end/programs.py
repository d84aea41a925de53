"""Homeservers as programs: `homeserver serve` in a process of its own, on free ports of this machine, with TLS.

They are started, asked to stop and killed as a service manager would, and never reached into. A process that has
imported the server forks them, and commands (`tests.support.forks`). Tests of the start itself run `COMMAND`.
"""

from __future__ import annotations

import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import httpx
import trustme

from homeserver.errors import MatrixError
from tests.support.engine import file_url
from tests.support.forks import Forked, forks

T = TypeVar("T")

COMMAND = str(Path(sys.executable).with_name("homeserver"))
PATIENCE_S = 60.0
"""How long anything may take. Only a machine with much else to do comes near it."""


class Failed(AssertionError):
    """A program did not do what it had to; the message has the end of its output."""

    is_reported = False
    """Whether a report has the message already: pytest raises the error of a fixture in every test that uses it."""


def make_client(patience_s: float) -> httpx.Client:
    """A client for servers without TLS. To read the certificates that it would trust takes longer than to start it."""
    return httpx.Client(timeout=patience_s, verify=False)


def free_port() -> int:
    """Returns a free port of the loopback interface, below the range for outgoing connections."""
    candidates = random.SystemRandom()
    while True:
        port = candidates.randrange(12_000, 32_000)
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
        return port


def wait_until(what: str, probe: Callable[[], T | None], patience_s: float = PATIENCE_S) -> T:
    """The first value of `probe` that is true. Failed, with `what`, where none comes in time."""
    deadline = time.monotonic() + patience_s
    while True:
        value = probe()
        if value:
            return value
        if time.monotonic() > deadline:
            raise Failed(f"after {patience_s:g} s still not: {what}")
        time.sleep(0.02)


def toml(value: Any) -> str:
    """A value as TOML writes it."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(toml(each) for each in value)}]"
    return str(value) if isinstance(value, int) else f'"{value}"'


def run(*arguments: str | Path, stdin: str = "", cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Runs `homeserver …` and returns its output and exit code."""
    return forks().run(*arguments, stdin=stdin, timeout=PATIENCE_S * 2, cwd=cwd)


def run_program(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """Starts the program `homeserver` itself, and returns its output and exit code."""
    command = [COMMAND, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S * 2, check=False)


@dataclass(slots=True)
class Homeserver:
    """One organisation's server. `folder` has its configuration, its data and what it says."""

    folder: Path
    server_name: str
    client_port: int
    federation_port: int
    process: subprocess.Popen[bytes] | Forked | None = None
    _was_told_to_end: bool = False
    _http: httpx.Client = field(default_factory=lambda: make_client(PATIENCE_S))

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.client_port}"

    @property
    def config(self) -> Path:
        return self.folder / "homeserver.toml"

    @property
    def log(self) -> Path:
        return self.folder / "output.log"

    def said(self) -> str:
        """All that it has said so far."""
        return self.log.read_text(errors="replace") if self.log.exists() else ""

    def start(self, *, program: bool = False) -> None:
        """Returns once it is ready. Failed if it ends instead. `program`: starts Python for it."""
        arguments = ["serve", "--config", str(self.config)]
        with self.log.open("ab") as log:
            if program:
                command = [COMMAND, *arguments]
                self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
            else:
                self.process = forks().start(*arguments, stdout=log.fileno(), stderr=log.fileno())
        self._was_told_to_end = False  # only now: other threads look for servers that died
        self.wait_ready()

    def epitaph(self) -> str:
        """Returns how a server ended unexpectedly, with the end of its log, or ""."""
        if self.process is None or self._was_told_to_end or self.process.poll() is None:
            return ""
        return f"{self.server_name} ended by itself with {self.process.returncode}:\n{self.said()[-4000:]}"

    def wait_ready(self) -> None:
        """Returns once it answers that it serves."""

        def ready() -> bool:
            if self.process is not None and self.process.poll() is not None:
                raise Failed(f"it ended with {self.process.returncode}:\n{self.said()[-4000:]}")
            try:
                return self._http.get(f"{self.url}/_homeserver/health/ready").status_code == 200
            except httpx.TransportError:
                return False

        wait_until(f"{self.server_name} is ready", ready)

    def stop(self, number: signal.Signals = signal.SIGTERM) -> int:
        """The exit code after a signal to stop. Failed if it does not end, or has ended before."""
        self.begin_stop(number)
        return self.wait_ended()

    def begin_stop(self, number: signal.Signals = signal.SIGTERM) -> None:
        """Sends a signal to stop. Failed if the server has ended before."""
        assert self.process is not None
        if epitaph := self.epitaph():
            raise Failed(epitaph)
        self._was_told_to_end = True
        self.process.send_signal(number)

    def wait_ended(self) -> int:
        """The exit code. Failed if it does not end."""
        assert self.process is not None
        try:
            return self.process.wait(PATIENCE_S)
        except subprocess.TimeoutExpired as error:
            self.kill()
            raise Failed(f"it did not end:\n{self.said()[-4000:]}") from error

    def kill(self) -> None:
        """SIGKILL, as the power failing is for a program."""
        self._was_told_to_end = True
        if self.process is not None:
            self.process.kill()
            self.process.wait()

    def call(self, method: str, path: str, token: str = "", body: Any = None, **query: Any) -> Any:
        """The JSON of a 200. Raises MatrixError for any other answer, Failed if the server has died.

        Paths without a slash follow /_matrix/client/v3/.
        """
        if not path.startswith("/"):
            path = f"/_matrix/client/v3/{path}"
        headers = {"authorization": f"Bearer {token}"} if token else {}
        try:
            answer = self._http.request(method, self.url + path, headers=headers, json=body, params=query or None)
        except httpx.TransportError:
            if epitaph := self.epitaph():
                raise Failed(epitaph) from None
            raise
        if answer.status_code != 200:
            problem = answer.json()
            raise MatrixError(answer.status_code, problem["errcode"], problem["error"])
        return answer.json()

    def register(self, localpart: str, password: str = "a password") -> str:
        """The access token of a new user."""
        auth = {"type": "m.login.dummy"}
        answer = self.call("POST", "register", body={"username": localpart, "password": password, "auth": auth})
        token: str = answer["access_token"]
        return token

    def user_id(self, localpart: str) -> str:
        return f"@{localpart}:{self.server_name}"


@dataclass(frozen=True, slots=True)
class Place:
    """A folder in which organisations have their servers, all under one certificate authority."""

    folder: Path
    authority: trustme.CA

    def organisation(self, name: str, sections: Mapping[str, Mapping[str, Any]] | None = None) -> Homeserver:
        """A server that is not yet started. `sections` replace values of its configuration."""
        folder = self.folder / name
        folder.mkdir()
        client_port, federation_port = free_port(), free_port()
        server = Homeserver(folder, f"localhost:{federation_port}", client_port, federation_port)
        self.authority.cert_pem.write_to_path(str(folder / "ca.pem"))
        certificate = self.authority.issue_cert("localhost", "127.0.0.1")
        certificate.private_key_pem.write_to_path(str(folder / "tls.key"))
        certificate.cert_chain_pems[0].write_to_path(str(folder / "tls.crt"))
        write_config(server, sections or {})
        return server


def make_place(folder: Path) -> Place:
    """A folder with a new certificate authority."""
    return Place(folder, trustme.CA())


def write_config(server: Homeserver, sections: Mapping[str, Mapping[str, Any]]) -> None:
    """The server's homeserver.toml."""
    chosen: dict[str, dict[str, Any]] = {
        "public": {"base_url": server.url},
        "database": {"url": file_url(server.folder)},
        "registration": {"enabled": True},
        "passwords": {"hash_cost": "minimal"},
        "rate_limits": {"enabled": False},
        "federation": {"ca_file": "ca.pem", "allow_private_addresses": True},
        "log": {"level": "warning"},
    }
    for name, values in sections.items():
        chosen.setdefault(name, {}).update(values)
    lines = [
        f'server_name = "{server.server_name}"',
        "[[listeners]]",
        f'bind = "127.0.0.1:{server.client_port}"',
        'serve = ["client", "media", "admin", "metrics", "health"]',
        "[[listeners]]",
        f'bind = "127.0.0.1:{server.federation_port}"',
        'serve = ["federation", "media"]',
        'tls_cert = "tls.crt"',
        'tls_key = "tls.key"',
    ]
    for name, values in chosen.items():
        lines += [f"[{name}]", *(f"{key} = {toml(value)}" for key, value in values.items())]
    server.config.write_text("\n".join(lines) + "\n")
