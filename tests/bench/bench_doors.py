"""What strangers cost: CPU, memory and stalls of a server that gets the worst bodies of nobody. Prints a table.

python -m tests.bench.bench_doors [part of an endpoint's name …]

Every endpoint that takes a body from somebody without credentials gets what it may be sent at most, made of what is
dear to decode: one request, then 100 at once. `stall` is how long a small request of somebody else took at the most
meanwhile; those of a process beside the attack, so that only the server and the machine hold them up.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import httpx

from tests.end_to_end.programs import Homeserver, make_place

MIB = 1 << 20
VALUES = (b"{}", b'{"a":1}', b"[[[[[[[[[[[[]]]]]]]]]]]]", b"1")


@dataclass(frozen=True, slots=True)
class Attack:
    """One request of nobody, `size` bytes long."""

    name: str
    method: str
    path: str
    size: int
    headers: str = ""


KNOWN = 'authorization: X-Matrix origin={peer},destination={server},key="{key}",sig="{signature}"\r\n'
ATTACKS = (
    Attack("login", "POST", "/_matrix/client/v3/login", 64 * 1024),
    Attack("login, too long", "POST", "/_matrix/client/v3/login", MIB),
    Attack("register", "POST", "/_matrix/client/v3/register", 64 * 1024),
    Attack("refresh", "POST", "/_matrix/client/v3/refresh", 64 * 1024),
    Attack("shared-secret register", "POST", "/_synapse/admin/v1/register", 64 * 1024),
    Attack("an event without a token", "PUT", "/_matrix/client/v3/rooms/!a:b/send/m/1", MIB),
    Attack("an upload without a token", "POST", "/_matrix/media/v3/upload", 12 * MIB),
    Attack("a sync with a body", "GET", "/_matrix/client/v3/sync", 12 * MIB),
    Attack("key query", "POST", "/_matrix/key/v2/query", 64 * 1024),
    Attack("key query, too long", "POST", "/_matrix/key/v2/query", MIB),
    Attack("transaction, unsigned", "PUT", "/_matrix/federation/v1/send/1", 10 * MIB),
    Attack("transaction, wrongly signed", "PUT", "/_matrix/federation/v1/send/1", 10 * MIB, KNOWN),
    Attack("join, wrongly signed", "PUT", "/_matrix/federation/v2/send_join/!a:b/$c", 128 * 1024, KNOWN),
    Attack("invite, wrongly signed", "PUT", "/_matrix/federation/v2/invite/!a:b/$c", 2 * MIB, KNOWN),
)


def body(value: bytes, size: int) -> bytes:
    """About so many bytes of JSON, of one value again and again."""
    return b'{"pdus":[' + b",".join([value] * ((size - 20) // (len(value) + 1))) + b"]}"


PROBE = """
import socket, sys, time
worst, end = 0.0, time.monotonic() + 300
print("ready", flush=True)
while time.monotonic() < end:
    began = time.perf_counter()
    with socket.create_connection(("127.0.0.1", int(sys.argv[1])), timeout=60) as sock:
        sock.sendall(b"GET /_matrix/client/versions HTTP/1.1\\r\\nhost: x\\r\\nconnection: close\\r\\n\\r\\n")
        while sock.recv(65_536):
            pass
    worst = max(worst, time.perf_counter() - began)
    print(worst * 1000, flush=True)
    time.sleep(0.005)
"""


class Watch:
    """What a process costs while something is done to it."""

    def __init__(self, server: Homeserver, pid: int) -> None:
        self._server, self._pid = server, pid
        self._over = threading.Event()
        self.cpu_s = self.growth_mb = self.peak_mb = self.stall_ms = 0.0

    def __enter__(self) -> Watch:
        command = [sys.executable, "-c", PROBE, str(self._server.client_port)]
        self._probe = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert self._probe.stdout is not None
        self._probe.stdout.readline()
        self._cpu, self._rss = self._cpu_seconds(), self._rss_mb()
        self._thread = threading.Thread(target=self._watch_memory)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.cpu_s = self._cpu_seconds() - self._cpu
        self._over.set()
        self._thread.join()
        self._probe.kill()
        *_, last = self._probe.communicate()[0].split() or ["0"]
        self.stall_ms = float(last)

    def _watch_memory(self) -> None:
        while not self._over.is_set():
            self.peak_mb = max(self.peak_mb, self._rss_mb())
            self.growth_mb = self.peak_mb - self._rss
            time.sleep(0.002)

    def _rss_mb(self) -> float:
        pages = int(Path(f"/proc/{self._pid}/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE") / MIB

    def _cpu_seconds(self) -> float:
        fields = Path(f"/proc/{self._pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def send(server: Homeserver, attack: Attack, data: bytes, credentials: dict[str, str]) -> int:
    """The status of the answer, 0 if there was none."""
    headers = attack.headers.format(**credentials) if attack.headers else ""
    head = f"{attack.method} {attack.path} HTTP/1.1\r\nhost: x\r\ncontent-length: {len(data)}\r\n{headers}\r\n"
    answer = b""
    try:
        with socket.create_connection(("127.0.0.1", server.client_port), timeout=120) as sock:
            sock.sendall(head.encode())
            sender = threading.Thread(target=_send_all, args=(sock, data))
            sender.start()
            while not answer.partition(b"\r\n")[1] and (part := sock.recv(65_536)):
                answer += part
            sender.join()
    except OSError:
        pass
    return int(answer[9:12] or 0)


def _send_all(sock: socket.socket, data: bytes) -> None:
    try:
        sock.sendall(data)
    except OSError:
        pass  # it was refused before all of it was sent


def at_once(count: int, function: Callable[[], object]) -> None:
    threads = [threading.Thread(target=function) for _ in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def start(folder: Path) -> tuple[Homeserver, Homeserver, dict[str, str]]:
    """The server under attack, which answers everything without TLS, a peer, and what a liar may claim to be it."""
    place = make_place(folder)
    peer = place.organisation("peer")
    server = place.organisation("server", {"registration": {"shared_secret_file": "secret"}})
    (server.folder / "secret").write_text("secret")
    groups = '["client", "media"', '["client", "federation", "media"'
    server.config.write_text(server.config.read_text().replace(*groups))
    peer.start()
    server.start()
    url = f"https://localhost:{peer.federation_port}/_matrix/key/v2/server"
    (key,) = httpx.get(url, verify=str(peer.folder / "ca.pem")).json()["verify_keys"]
    return server, peer, {"peer": peer.server_name, "server": server.server_name, "key": key, "signature": "A" * 86}


def measure(server: Homeserver, credentials: dict[str, str], attack: Attack, value: bytes) -> str:
    """One line of the table."""
    assert server.process is not None
    data = body(value, attack.size)
    statuses = {send(server, attack, data, credentials)}
    with Watch(server, server.process.pid) as one:
        statuses.add(send(server, attack, data, credentials))
    time.sleep(0.5)
    with Watch(server, server.process.pid) as many:
        at_once(100, lambda: statuses.add(send(server, attack, data, credentials)))
    what = f"{attack.name}, {attack.size // 1024} KiB of {value.decode()[:12]}"
    return (
        f"{what:<60} {'/'.join(map(str, sorted(statuses))):<12} {one.cpu_s * 1000:6.0f} {one.growth_mb:6.1f}"
        f" {one.stall_ms:6.0f} {many.cpu_s * 10:8.1f} {many.peak_mb:6.0f} {many.stall_ms:7.0f}"
    )


def main(wanted: Sequence[str]) -> None:
    """Prints a line for each endpoint and each kind of value."""
    print(f"{'':<60} {'status':<12} {'one: CPU ms, +MB, stall ms':<22}  100 at once: CPU ms each, RSS MB, stall ms")
    with tempfile.TemporaryDirectory(prefix="homeserver-doors-") as folder:
        server, peer, credentials = start(Path(folder))
        try:
            for attack in ATTACKS:
                if not wanted or any(part in attack.name for part in wanted):
                    for value in VALUES:
                        print(measure(server, credentials, attack, value), flush=True)
        finally:
            server.kill()
            peer.kill()


if __name__ == "__main__":
    main(sys.argv[1:])
