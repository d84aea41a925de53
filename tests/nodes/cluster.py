"""Several nodes of one homeserver, each a program with a data folder of its own, and ways to harm them.

They share a PostgreSQL, the blobs, the signing key and the master key. Each reaches PostgreSQL over a wire of its own.
"""

from __future__ import annotations

import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from tests.end_to_end.programs import Homeserver, Place, free_port, make_place, write_config
from tests.support.postgres import Cluster, running_cluster

NODES = 3


class Wire:
    """A port that leads to PostgreSQL's socket. What is harmed is the traffic of one node."""

    def __init__(self, target: Path) -> None:
        self._target = target
        self._is_held = threading.Event()
        self._delay_s = self._hint_delay_s = 0.0
        self._ends: list[socket.socket] = []
        self._server = socket.create_server(("127.0.0.1", 0), backlog=64)
        self.port: int = self._server.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def hold(self) -> None:
        """Stops all traffic, in both directions, and closes nothing: a cable was pulled."""
        self._is_held.set()

    def slow_down(self, delay_s: float) -> None:
        """Delays whatever passes, in each direction."""
        self._delay_s = delay_s

    def delay_hints(self, delay_s: float) -> None:
        """Delays what PostgreSQL notifies the node of, and nothing else."""
        self._hint_delay_s = delay_s

    def lead_to(self, target: Path) -> None:
        """Leads new connections to another server, and breaks those that there are."""
        self._target = target
        self.cut()

    def cut(self) -> None:
        """Breaks all connections. New ones are possible."""
        for end in self._ends[:]:
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def heal(self) -> None:
        """Lets everything pass again. Connections that were held break, as if a firewall had forgotten them."""
        self._delay_s = self._hint_delay_s = 0.0
        if self._is_held.is_set():
            self.cut()
            self._is_held.clear()

    def close(self) -> None:
        self.cut()
        self._server.close()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._server.accept()
                threading.Thread(target=self._connect, args=(client,), daemon=True).start()

    def _connect(self, client: socket.socket) -> None:
        self._wait()
        target = socket.socket(socket.AF_UNIX)
        try:
            target.connect(str(self._target))
        except OSError:
            client.close()
            return
        self._ends += [client, target]
        listens = threading.Event()

        def wait(data: bytes, is_asked: bool) -> None:
            self._wait()
            if is_asked and b"LISTEN " in data.upper():
                listens.set()
            if listens.is_set() and not is_asked:
                time.sleep(self._hint_delay_s)

        _join(client, target, wait)
        for end in (client, target):
            self._ends.remove(end)
            end.close()

    def _wait(self) -> None:
        if self._delay_s:
            time.sleep(self._delay_s)
        while self._is_held.is_set():
            time.sleep(0.01)


@dataclass(slots=True)
class Node:
    """One of the nodes."""

    server: Homeserver
    wire: Wire

    def pause(self) -> None:
        """It stands still, as in a virtual machine that is moved."""
        assert self.server.process is not None
        self.server.process.send_signal(signal.SIGSTOP)

    def go_on(self) -> None:
        assert self.server.process is not None
        self.server.process.send_signal(signal.SIGCONT)

    def kill(self) -> None:
        assert self.server.process is not None
        self.server.process.send_signal(signal.SIGCONT)
        self.server.kill()


@dataclass(slots=True)
class Nodes:
    """All nodes of a homeserver, and another homeserver with which it federates."""

    nodes: list[Node]
    peer: Homeserver
    postgres: Cluster
    folder: Path

    @property
    def servers(self) -> list[Homeserver]:
        return [node.server for node in self.nodes]

    def start(self, node: Node) -> None:
        node.server.start()

    def said(self) -> str:
        """Returns what all programs have said."""
        return "".join(server.said() for server in (*self.servers, self.peer))


@contextmanager
def running_nodes(folder: Path) -> Iterator[Nodes]:
    """All nodes and the peer, ready."""
    with running_cluster(durable=True) as postgres:
        url = urlsplit(postgres.make_database())
        wires = [Wire(postgres.socket_file) for _ in range(NODES)]
        place = make_place(folder)
        nodes = [Node(server, wire) for server, wire in zip(_organise(place, wires, url.path), wires, strict=True)]
        peer = place.organisation("peer")
        everyone = Nodes(nodes, peer, postgres, folder)
        try:
            for node in nodes:
                everyone.start(node)
            peer.start()
            yield everyone
        finally:
            for node in nodes:
                node.kill()
            peer.kill()
            for wire in wires:
                wire.close()


def _organise(place: Place, wires: list[Wire], database: str) -> Iterator[Homeserver]:
    """The nodes' configurations. Their common name leads to an entry that forwards to each of them."""
    shared = place.folder / "shared"
    shared.mkdir()
    entry: Entry | None = None
    for number, wire in enumerate(wires):
        server = place.organisation(f"node{number}")
        entry = entry or Entry()
        entry.ports.append(server.federation_port)
        server.server_name = f"localhost:{entry.port}"
        sections = {
            "database": {"url": f"postgresql://tester@127.0.0.1:{wire.port}{database}?sslmode=disable"},
            "blobs": {"url": f"file:{shared}/blobs"},
            "federation": {"signing_key_file": f"{shared}/signing.key"},
        }
        write_config(server, sections)
        yield server


class Entry:
    """The port of the server's name. Each connection goes to the next node that takes it, as with a load balancer."""

    def __init__(self) -> None:
        self.ports: list[int] = []
        self._turn = 0
        self.port = free_port()
        self._server = socket.create_server(("127.0.0.1", self.port), backlog=64)
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            client, _ = self._server.accept()
            threading.Thread(target=self._connect, args=(client,), daemon=True).start()

    def _connect(self, client: socket.socket) -> None:
        for _ in self.ports:
            self._turn += 1
            port = self.ports[self._turn % len(self.ports)]
            try:
                target = socket.create_connection(("127.0.0.1", port), timeout=2)
            except OSError:
                continue
            target.settimeout(None)
            _join(client, target)
            return
        client.close()


def _join(one: socket.socket, other: socket.socket, wait: Callable[[bytes, bool], None] | None = None) -> None:
    """Forwards in both directions until either end is closed.

    wait: called with each piece, and whether the first end sends it, before it passes.
    """

    def forward(source: socket.socket, sink: socket.socket) -> None:
        with suppress(OSError):
            while data := source.recv(65536):
                if wait is not None:
                    wait(data, source is one)
                sink.sendall(data)
        for end in (source, sink):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    threading.Thread(target=forward, args=(one, other), daemon=True).start()
    forward(other, one)
