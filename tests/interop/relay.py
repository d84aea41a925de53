"""A relay in front of each federation port, so that the connection between two real servers can be cut and restored."""

from __future__ import annotations

import selectors
import socket
import threading
from contextlib import suppress

CHUNK_BYTES = 65536


class Relay:
    """Forwards a TCP port of loopback to another one, in threads. While it is cut, it neither accepts nor forwards."""

    def __init__(self, target_port: int) -> None:
        self._target_port = target_port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._lock = threading.Lock()
        self._pairs: set[tuple[socket.socket, socket.socket]] = set()
        self._cut = False
        threading.Thread(target=self._accept, daemon=True).start()

    def cut(self) -> None:
        """Breaks all connections, and refuses new ones as soon as they are made."""
        with self._lock:
            self._cut = True
            pairs, self._pairs = self._pairs, set()
        for pair in pairs:
            _close(pair)

    def mend(self) -> None:
        """Lets connections through again."""
        with self._lock:
            self._cut = False

    def close(self) -> None:
        """Ends the relay."""
        self.cut()
        self._listener.close()

    def _accept(self) -> None:
        while True:
            try:
                here, _ = self._listener.accept()
            except OSError:  # closed
                return
            with self._lock:
                cut = self._cut
            if cut:
                here.close()
                continue
            try:
                there = socket.create_connection(("127.0.0.1", self._target_port), timeout=5)
            except OSError:  # the server is down
                here.close()
                continue
            there.settimeout(None)
            pair = (here, there)
            with self._lock:
                self._pairs.add(pair)
            threading.Thread(target=self._forward, args=(pair,), daemon=True).start()

    def _forward(self, pair: tuple[socket.socket, socket.socket]) -> None:
        with selectors.DefaultSelector() as selector, suppress(OSError, ValueError):
            selector.register(pair[0], selectors.EVENT_READ, pair[1])
            selector.register(pair[1], selectors.EVENT_READ, pair[0])
            while selector.get_map():
                for key, _ in selector.select():
                    source, sink = key.fileobj, key.data
                    data = source.recv(CHUNK_BYTES)  # type: ignore[union-attr]
                    if data:
                        sink.sendall(data)
                        continue
                    selector.unregister(source)
                    with suppress(OSError):
                        sink.shutdown(socket.SHUT_WR)
        with self._lock:
            self._pairs.discard(pair)
        _close(pair)


def _close(pair: tuple[socket.socket, socket.socket]) -> None:
    for end in pair:
        with suppress(OSError):
            end.shutdown(socket.SHUT_RDWR)
        end.close()
