"""WebSockets: what a delivery, an idle connection and a reconnect cost. Prints one JSON object.

python -m tests.bench.bench_sockets [delivery|acknowledged|idle|reconnect …]

The server is a process of its own, whose CPU and memory are read from /proc; the clients are bare sockets in this one.
`delivery` sends 100 messages per second to a room of 50 people, each with a socket, and with nobody connected: the
difference is what the deliveries cost. Latency is from before the message is sent to its arrival at each client.
`acknowledged` does the same with clients that acknowledge each answer, so that there are delivered receipts too.
"""

from __future__ import annotations

import json
import os
import resource
import selectors
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import trio

from homeserver import Homeserver
from homeserver.authenticate import create_tokens
from homeserver.config import Config, FederationSection, Listener, RateLimitsSection, WebsocketSection
from homeserver.database import Transaction
from homeserver.federation.build import Draft
from homeserver.federation.identifiers import RoomID, UserID
from homeserver.process.garbage import exempt_what_exists
from homeserver.rooms.append import append_local
from homeserver.users.accounts import create_account

PATH = "/_homeserver/client/v1/ws"
PEOPLE = 50
PER_SECOND = 100


# --- the server's process ---


def _join(tx: Transaction, room_id: RoomID, user_id: UserID) -> None:
    append_local(tx, Draft(room_id, user_id, "m.room.member", {"membership": "join"}, state_key=user_id))


async def serve(folder: str, people: int, sockets: int) -> None:
    """Serves a room of so many people; then sends messages as standard input says: seconds, one number a line."""
    config = Config(
        server_name="bench.example", data_dir=folder, listeners=(Listener(bind="0.0.0.0:0"),),
        federation=FederationSection(enabled=False), rate_limits=RateLimitsSection(enabled=False),
        websocket=WebsocketSection(connections_max=sockets + 100),
    )  # fmt: skip
    async with Homeserver(config) as homeserver, trio.open_nursery() as nursery:
        hs = homeserver.resources
        bound = await nursery.start(homeserver.serve)
        sender = await homeserver.register("sender")
        room_id = await sender.create_room(preset="public_chat")
        tokens = []
        for number in range(people):
            user_id = await create_account(hs, f"user{number}", None)
            issued = await hs.database.write(create_tokens, user_id, "BENCH")
            tokens.append(issued.access_token)
            await hs.database.write(_join, room_id, user_id)
        exempt_what_exists()  # as `homeserver serve` does
        port = int(bound[0].address.rpartition(":")[2])
        print(json.dumps({"port": port, "tokens": tokens}), flush=True)
        while line := await trio.to_thread.run_sync(sys.stdin.readline):
            began = trio.current_time()
            count = int(float(line) * PER_SECOND)
            for number in range(count):
                await trio.sleep_until(began + number / PER_SECOND)
                await sender.send(room_id, {"msgtype": "m.text", "body": f"{number}", "at": time.monotonic_ns()})
            print(json.dumps({"sent": count}), flush=True)
        nursery.cancel_scope.cancel()


class Server:
    """The server's process."""

    def __init__(self, folder: str, people: int, sockets: int) -> None:
        command = [sys.executable, "-m", "tests.bench.bench_sockets", "--serve", folder, str(people), str(sockets)]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert self.process.stdout is not None and self.process.stdin is not None
        self._out, self._in = self.process.stdout, self.process.stdin
        about = json.loads(self._out.readline())
        self.port: int = about["port"]
        self.tokens: list[str] = about["tokens"]

    @property
    def cpu_s(self) -> float:
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    @property
    def rss_bytes(self) -> int:
        return int(Path(f"/proc/{self.process.pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    def send(self, seconds: float) -> None:
        print(seconds, file=self._in, flush=True)

    def wait_sent(self) -> int:
        sent: int = json.loads(self._out.readline())["sent"]
        return sent

    def is_quiet(self) -> None:
        """Waits until the server does nothing."""
        for _ in range(120):
            before = self.cpu_s
            time.sleep(0.5)
            if self.cpu_s - before < 0.02:
                return


@contextmanager
def server(people: int, sockets: int) -> Iterator[Server]:
    with tempfile.TemporaryDirectory(prefix=".bench-", dir=Path.cwd(), ignore_cleanup_errors=True) as folder:
        running = Server(folder, people, sockets)
        try:
            running.is_quiet()
            yield running
        finally:
            running.process.terminate()
            running.process.wait(30)


# --- the clients ---


def frame(message: Any) -> bytes:
    """A masked frame, with the mask that changes nothing."""
    data = json.dumps(message).encode()
    size = bytes((0x80 | len(data),)) if len(data) < 126 else b"\xfe" + len(data).to_bytes(2, "big")
    return b"\x81" + size + bytes(4) + data


class Reader:
    """One client: a socket, and what has arrived of a message."""

    def __init__(self, port: int, token: str, number: int, since: str | None = None) -> None:
        self.sock = socket.socket()
        # addresses of their own: one address may have only a part of all connections
        self.sock.bind((f"127.0.{1 + number // 200}.{1 + number % 200}", 0))
        self.sock.connect(("127.0.0.1", port))
        sync: dict[str, Any] = {"op": "sync", "set_presence": "offline", **({} if since is None else {"since": since})}
        sync["filter"] = {"room": {"timeline": {"limit": 100}}}  # none is left out when the machine is busy
        head = f"GET {PATH} HTTP/1.1\r\nhost: x\r\nconnection: upgrade\r\nupgrade: websocket\r\n"
        head += "sec-websocket-version: 13\r\nsec-websocket-key: AAAAAAAAAAAAAAAAAAAAAA==\r\n"
        self.sock.sendall(f"{head}authorization: Bearer {token}\r\n\r\n".encode() + frame(sync))
        self.data = b""
        self.is_open = False
        self.since = since or ""

    def read(self) -> list[bytes]:
        """The messages that have arrived."""
        self.data += self.sock.recv(1 << 20)
        if not self.is_open:
            head, end, rest = self.data.partition(b"\r\n\r\n")
            if not end:
                return []
            assert head.startswith(b"HTTP/1.1 101"), head
            self.data, self.is_open = rest, True
        found = []
        while len(self.data) >= 2:
            size, start = self.data[1], 2
            if size >= 126:
                start = 4 if size == 126 else 10
                size = int.from_bytes(self.data[2:start], "big")
            if len(self.data) < start + size:
                break
            if self.data[0] == 0x81:
                found.append(self.data[start : start + size])
            self.data = self.data[start + size :]
        return found

    def acknowledge(self, message: bytes) -> None:
        """Says that an answer has arrived."""
        _, _, rest = message.partition(b'"next_batch":"')
        self.sock.sendall(frame({"ack": rest.partition(b'"')[0].decode()}))


def connect(
    running: Server, count: int, since: dict[int, str] | None = None
) -> tuple[list[Reader], selectors.BaseSelector]:
    """So many clients, each after its first answer; with tokens, after the upgrade."""
    readers: list[Reader] = []
    selector = selectors.DefaultSelector()
    waiting = 0
    for number in range(count):
        token = running.tokens[number % len(running.tokens)]
        reader = Reader(running.port, token, number, None if since is None else since[number])
        readers.append(reader)
        selector.register(reader.sock, selectors.EVENT_READ, reader)
        waiting += 1
        while waiting >= 100 or (number == count - 1 and waiting):
            for key, _ in selector.select(10):
                was_open = key.data.is_open
                messages = key.data.read()
                if messages:
                    key.data.since = json.loads(messages[-1])["sync"]["next_batch"]
                waiting -= bool(messages) if since is None else (key.data.is_open and not was_open)
    return readers, selector


def bench_acknowledged() -> dict[str, Any]:
    return bench_delivery(acknowledge=True)


def bench_delivery(seconds: float = 15, *, acknowledge: bool = False) -> dict[str, Any]:
    with server(PEOPLE, PEOPLE) as running:
        running.send(3)  # so that everything is imported and cached
        running.wait_sent()
        running.is_quiet()
        before = running.cpu_s
        running.send(seconds)
        sent = running.wait_sent()
        running.is_quiet()
        alone_s = running.cpu_s - before
        readers, selector = connect(running, PEOPLE)
        running.send(1)
        late: list[int] = []
        for part in (1, seconds):
            if part == seconds:
                running.is_quiet()
                before = running.cpu_s
                running.send(seconds)
            late, arrived = [], 0
            while arrived < int(part * PER_SECOND) * PEOPLE:
                ready = selector.select(20)
                assert ready, f"{arrived} messages arrived"
                now = time.monotonic_ns()
                for key, _ in ready:
                    for message in key.data.read():
                        if acknowledge:
                            key.data.acknowledge(message)
                        times = [int(each.split(b",")[0].split(b"}")[0]) for each in message.split(b'"at":')[1:]]
                        late += [now - each for each in times]
                        arrived += len(times)
            running.wait_sent()
        running.is_quiet()
        together_s = running.cpu_s - before
        late.sort()
        return {
            "p50_ms": round(late[len(late) // 2] / 1e6, 2),
            "p99_ms": round(late[len(late) * 99 // 100] / 1e6, 2),
            "send_cpu_ms": round(alone_s / sent * 1000, 3),
            "cpu_per_delivery_ms": round((together_s - alone_s) / (sent * PEOPLE) * 1000, 4),
            "readers": len(readers),
        }


def _open_files() -> int:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return hard


def bench_idle(count: int = 10_000) -> dict[str, Any]:
    count = min(count, _open_files() - 1_500)
    with server(200, count) as running:
        warm, _ = connect(running, 200)
        running.is_quiet()
        before = running.rss_bytes
        readers, _ = connect(running, count - 200)
        running.is_quiet()
        used = running.rss_bytes - before
        began = running.cpu_s
        time.sleep(20)
        return {
            "sockets": len(warm) + len(readers),
            "kib_per_idle_socket": round(used / len(readers) / 1024, 1),
            "idle_cpu_share": round((running.cpu_s - began) / 20, 4),
        }


def bench_reconnect(count: int = 5_000) -> dict[str, Any]:
    count = min(count, _open_files() - 1_500)
    with server(200, 2 * count) as running:
        readers, _ = connect(running, count)
        since = {number: reader.since for number, reader in enumerate(readers)}
        for reader in readers:
            reader.sock.close()
        running.is_quiet()
        before = running.cpu_s
        connect(running, count, since)
        running.is_quiet()
        return {"sockets": count, "cpu_s": round(running.cpu_s - before, 2)}


BENCHES = {
    "delivery": bench_delivery,
    "acknowledged": bench_acknowledged,
    "idle": bench_idle,
    "reconnect": bench_reconnect,
}

if __name__ == "__main__":
    if sys.argv[1:2] == ["--serve"]:
        _open_files()
        trio.run(serve, sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
    else:
        print(json.dumps({name: BENCHES[name]() for name in sys.argv[1:] or BENCHES}, indent=1))
