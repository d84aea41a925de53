"""The two servers as programs: their configuration, starting and stopping them, and the wire between them."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from abc import abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import httpx
import trustme

from tests.interop.relay import Relay
from tests.interop.setup import synapse_venv

SHARED_SECRET = "interop secret"
START_TIMEOUT_S = 90.0
STOP_TIMEOUT_S = 30.0
LOG_TAIL_BYTES = 6000


class ServerFailed(AssertionError):
    """A server did not start, or ended by itself; the message has the end of its log."""


@dataclass(frozen=True, slots=True)
class Ports:
    """Where one server is reached, and a bridge by it; `federation` is the relay's port and part of the server name."""

    client: int
    federation: int
    behind_relay: int
    bridge: int


class Program(Protocol):
    """What is particular about one kind of server."""

    kind: str

    @abstractmethod
    def prepare(self, folder: Path, server_name: str, ports: Ports) -> None:
        """Writes the configuration. `folder` has ca.pem, tls.crt and tls.key."""

    @abstractmethod
    def command(self, folder: Path) -> list[str]:
        """Returns the command line."""

    @abstractmethod
    def ready_path(self) -> str:
        """A path on the client port that answers 200 as soon as the server serves."""


def free_port() -> int:
    """Returns a port that nobody listens on at the moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Server:
    """A server that can be started, stopped, started again, and cut off."""

    def __init__(self, program: Program, folder: Path, host: str, ca: trustme.CA) -> None:
        self.program = program
        self.kind = program.kind
        self.folder = folder
        behind_relay = free_port()
        self.relay = Relay(behind_relay)
        self.ports = Ports(free_port(), self.relay.port, behind_relay, free_port())
        self.server_name = f"{host}:{self.ports.federation}"
        self.url = f"http://127.0.0.1:{self.ports.client}"
        self._process: subprocess.Popen[bytes] | None = None
        folder.mkdir(parents=True)
        ca.cert_pem.write_to_path(str(folder / "ca.pem"))
        certificate = ca.issue_cert(host)
        certificate.private_key_pem.write_to_path(str(folder / "tls.key"))
        certificate.cert_chain_pems[0].write_to_path(str(folder / "tls.crt"))
        program.prepare(folder, self.server_name, self.ports)

    @property
    def log_path(self) -> Path:
        return self.folder / "output.log"

    def start(self) -> None:
        """Returns once the server answers. Raises ServerFailed."""
        began = time.monotonic()
        with self.log_path.open("ab") as log:
            self._process = subprocess.Popen(
                self.program.command(self.folder), cwd=self.folder, stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )
        while not self._answers():
            if self._process.poll() is not None:
                raise ServerFailed(f"{self.kind} ended with status {self._process.returncode}\n{self.log_tail()}")
            if time.monotonic() - began > START_TIMEOUT_S:
                raise ServerFailed(f"{self.kind} does not answer after {START_TIMEOUT_S} s\n{self.log_tail()}")
            time.sleep(0.1)
        print(f"{self.kind} {self.server_name} answers after {time.monotonic() - began:.1f} s", flush=True)

    def ensure_running(self) -> None:
        """Starts the server if it does not run. Raises ServerFailed."""
        if self._process is None or self._process.poll() is not None:
            self.start()

    def _answers(self) -> bool:
        try:
            return httpx.get(self.url + self.program.ready_path(), timeout=5).status_code == 200
        except httpx.TransportError:
            return False

    def stop(self) -> None:
        """SIGTERM, and what the server does on it. Raises ServerFailed if it has to be killed."""
        process, self._process = self._process, None
        if process is None:
            return
        if process.poll() is not None:
            raise ServerFailed(f"{self.kind} had ended with status {process.returncode}\n{self.log_tail()}")
        process.terminate()
        try:
            process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            raise ServerFailed(f"{self.kind} did not stop within {STOP_TIMEOUT_S} s\n{self.log_tail()}") from None
        print(f"{self.kind} stopped", flush=True)

    def kill(self) -> None:
        """SIGKILL: the server has no time to do anything."""
        process, self._process = self._process, None
        assert process is not None
        process.kill()
        process.wait()
        print(f"{self.kind} killed", flush=True)

    def log_tail(self) -> str:
        """The last of what the server said."""
        logs = [path for path in (self.log_path, self.folder / "homeserver.log") if path.exists()]
        return "\n".join(f"== {path}\n{path.read_text(errors='replace')[-LOG_TAIL_BYTES:]}" for path in logs)


class OurProgram:
    """`homeserver serve`."""

    kind = "ours"

    def prepare(self, folder: Path, server_name: str, ports: Ports) -> None:
        (folder / "secret").write_text(SHARED_SECRET)
        (folder / "bridge.yaml").write_text(json.dumps(bridge_registration(ports)))  # JSON is YAML
        (folder / "homeserver.toml").write_text(f"""
server_name = "{server_name}"
data_dir = "data"

[[listeners]]
bind = "127.0.0.1:{ports.client}"
serve = ["client", "media", "admin", "metrics", "health"]

[[listeners]]
bind = "127.0.0.1:{ports.behind_relay}"
serve = ["federation", "media"]
tls_cert = "tls.crt"
tls_key = "tls.key"

[public]
base_url = "http://127.0.0.1:{ports.client}"

[registration]
shared_secret_file = "secret"

[passwords]
hash_cost = "minimal"

[rate_limits]
enabled = false

[federation]
ca_file = "ca.pem"
allow_private_addresses = true

[outbound_http]
allow_private_addresses = true

[directory]
require_login = false

[application_services]
files = ["bridge.yaml"]

[log]
level = "{os.environ.get("INTEROP_LOG_LEVEL", "info")}"
""")

    def command(self, folder: Path) -> list[str]:
        homeserver = Path(sys.executable).with_name("homeserver")
        return [str(homeserver), "serve", "--config", str(folder / "homeserver.toml")]

    def ready_path(self) -> str:
        return "/_homeserver/health/ready"


def bridge_registration(ports: Ports) -> dict[str, object]:
    """A bridge whose users are @bridged_…"""
    return {
        "id": "bridge",
        "url": f"http://127.0.0.1:{ports.bridge}",
        "as_token": "the token of the bridge",
        "hs_token": "the token of the homeserver",
        "sender_localpart": "bridge",
        "rate_limited": False,
        "receive_ephemeral": True,
        "org.matrix.msc3202": True,
        "protocols": ["fax"],
        "namespaces": {
            "users": [{"regex": "@bridged_.*", "exclusive": True}],
            "aliases": [{"regex": "#bridged_.*", "exclusive": True}],
            "rooms": [],
        },
    }


class SynapseProgram:
    """A real Synapse, one process with SQLite, as its documentation configures it, but without limits of rate."""

    kind = "Synapse"

    def __init__(self) -> None:
        self.bin = synapse_venv() / "bin"

    def prepare(self, folder: Path, server_name: str, ports: Ports) -> None:
        subprocess.run([self.bin / "generate_signing_key", "-o", folder / "signing.key"], check=True)
        (folder / "media").mkdir()
        (folder / "log.yaml").write_text(json.dumps(synapse_logging(folder)))
        config = synapse_config(folder, server_name, ports)
        (folder / "homeserver.yaml").write_text(json.dumps(config, indent=1))  # JSON is YAML

    def command(self, folder: Path) -> list[str]:
        config = str(folder / "homeserver.yaml")
        return [str(self.bin / "python"), "-I", "-m", "synapse.app.homeserver", "-c", config]

    def ready_path(self) -> str:
        return "/health"


def synapse_logging(folder: Path) -> dict[str, object]:
    handler = {"class": "logging.FileHandler", "formatter": "line", "filename": str(folder / "homeserver.log")}
    return {
        "version": 1,
        "formatters": {"line": {"format": "%(asctime)s %(levelname)s %(name)s %(message)s"}},
        "handlers": {"file": handler},
        "root": {"level": os.environ.get("INTEROP_SYNAPSE_LOG_LEVEL", "WARNING"), "handlers": ["file"]},
        "disable_existing_loggers": False,
    }


def synapse_config(folder: Path, server_name: str, ports: Ports) -> dict[str, object]:
    """Synapse's configuration: certificates are checked, against a CA of our own; loopback is allowed."""
    often = {"per_second": 10000, "burst_count": 10000}
    client = {"port": ports.client, "bind_addresses": ["127.0.0.1"], "type": "http", "tls": False}
    federation = {"port": ports.behind_relay, "bind_addresses": ["127.0.0.1"], "type": "http", "tls": True}
    return {
        "server_name": server_name,
        "public_baseurl": f"http://127.0.0.1:{ports.client}/",
        "pid_file": str(folder / "homeserver.pid"),
        "listeners": [
            {**client, "resources": [{"names": ["client"], "compress": False}]},
            {**federation, "resources": [{"names": ["federation"], "compress": False}]},
        ],
        "tls_certificate_path": str(folder / "tls.crt"),
        "tls_private_key_path": str(folder / "tls.key"),
        "federation_custom_ca_list": [str(folder / "ca.pem")],
        "database": {"name": "sqlite3", "args": {"database": str(folder / "homeserver.db")}},
        "log_config": str(folder / "log.yaml"),
        "media_store_path": str(folder / "media"),
        "signing_key_path": str(folder / "signing.key"),
        "registration_shared_secret": SHARED_SECRET,
        "macaroon_secret_key": "macaroon",
        "form_secret": "form",
        "bcrypt_rounds": 4,
        "trusted_key_servers": [],
        "suppress_key_server_warning": True,
        "ip_range_blacklist": [],
        "federation_ip_range_blacklist": [],
        "allow_public_rooms_over_federation": True,
        "allow_public_rooms_without_auth": True,
        "room_list_publication_rules": [{"action": "allow"}],
        "presence": {"enabled": True},
        "report_stats": False,
        "url_preview_enabled": False,
        # Synapse gives up on a server that is away for ten minutes at first; a test cannot wait so long.
        "federation": {"destination_min_retry_interval": "1s", "destination_max_retry_interval": "3s"},
        "rc_message": often,
        "rc_login": {"address": often, "account": often, "failed_attempts": often},
        "rc_joins": {"local": often, "remote": often},
        "rc_joins_per_room": often,
        "rc_invites": {"per_room": often, "per_user": often, "per_issuer": often},
        "rc_room_creation": often,
        "rc_presence": {"per_user": often},
        "rc_federation": {"window_size": 1000, "sleep_limit": 10000, "sleep_delay": 1, "reject_limit": 10000},
        "federation_rr_transactions_per_room_per_second": 1000,
    }


@dataclass(frozen=True, slots=True)
class World:
    """Both servers, and what a third one needs."""

    ours: Server
    synapse: Server
    folder: Path
    ca: trustme.CA

    def cut(self) -> None:
        """Nothing gets through between them, in either direction."""
        self.ours.relay.cut()
        self.synapse.relay.cut()

    def mend(self) -> None:
        """All gets through again."""
        self.ours.relay.mend()
        self.synapse.relay.mend()


def make_world(folder: Path) -> World:
    """Both servers, not yet started. One is named by a name, the other by an address."""
    ca = trustme.CA()
    return World(
        Server(our_program(), folder / "ours", "localhost", ca),
        Server(SynapseProgram(), folder / "synapse", "127.0.0.1", ca),
        folder,
        ca,
    )


def make_third(world: World) -> Server:
    """Another Synapse in the same world, not yet started."""
    return Server(SynapseProgram(), world.folder / "third", "localhost", world.ca)


def our_program() -> Program:
    """Ours; or a second Synapse (INTEROP_BOTH=synapse), which tells mistakes of the scenarios from ours."""
    return SynapseProgram() if os.environ.get("INTEROP_BOTH") == "synapse" else OurProgram()
