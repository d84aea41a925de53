"""Channel: one WebSocket as sessions use it, whatever carries it: messages in, messages out, and why it is closed.

Theory of operation. Nobody waits to send: `post` and `close` put into a queue what cannot be sent at once, and a task,
which exists only while the queue is not empty, sends it. So a slow client holds up nobody. What is put into the queue
is limited by those who use the channel: no requests are read while `unsent` is too large, and no news while it is not
zero. A client that receives nothing of the queue for too long is closed with 4008 (`stalled_since`).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from math import inf
from typing import Protocol

import trio

from homeserver.process.budgets import Hold


class Transport(Protocol):
    """What carries a channel's messages."""

    def encode(self, payload: bytes) -> bytes:
        """Returns what is sent for a text message."""

    def encode_close(self, code: int, reason: str) -> bytes:
        """Returns what is sent to close the connection."""

    def try_to_send(self, data: bytes) -> int:
        """Sends as much as possible without waiting. Returns the number of bytes."""

    async def send(self, data: bytes | memoryview, progress: Callable[[], None]) -> None:
        """Sends everything. Calls `progress` whenever the client has received a part."""

    async def end(self) -> None:
        """Ends the connection, after the last message or because it is broken."""


def _nothing() -> None:
    pass


class Channel:
    """The sending half of a WebSocket, and its state.

    on_drained: called when everything has been sent that had to wait. stalled_since: since when the client has received
    nothing of what waits for it; inf while nothing waits. code: why the server closes it; 0 while it is open. hold:
    of the budget for answers, which what waits counts towards; None while nobody knows who the client is.
    """

    __slots__ = (
        "_has_sender", "_nursery", "_queue", "_transport", "_unsent", "code", "hold", "is_lost", "on_drained",
        "stalled_since",
    )  # fmt: skip

    def __init__(self, transport: Transport, nursery: trio.Nursery) -> None:
        """nursery: for the task that sends what has to wait."""
        self._transport = transport
        self._nursery = nursery
        self._queue: deque[bytes | memoryview] | None = None
        self._has_sender = False
        self._unsent = 0
        self.code = 0
        self.hold: Hold | None = None
        self.is_lost = False
        self.on_drained: Callable[[], None] = _nothing
        self.stalled_since = inf

    @property
    def unsent(self) -> int:
        """The number of bytes that wait for the client to receive them."""
        return self._unsent

    def _set_unsent(self, unsent: int) -> None:
        self._unsent = unsent
        if self.hold is not None:
            self.hold.become(unsent)

    @property
    def is_open(self) -> bool:
        """Whether messages can be sent."""
        return not self.code and not self.is_lost

    def post(self, payload: bytes) -> None:
        """Sends a text message, or drops it if the connection is closed."""
        if self.is_open:
            self.put(self._transport.encode(payload))

    def close(self, code: int, reason: str = "") -> None:
        """Sends what waits, and closes the connection."""
        if self.is_open:
            self.put(self._transport.encode_close(code, reason))
            self.code = code

    def give_up(self, code: int, reason: str) -> None:
        """Drops what waits, except a message that has been sent in part, and closes the connection."""
        if self._queue:
            kept = self._queue[0]
            self._queue.clear()
            self._queue.append(kept)
            self._set_unsent(len(kept))
        self.close(code, reason)

    def put(self, data: bytes) -> None:
        """Sends bytes after all others."""
        if self.is_lost:
            return
        rest: bytes | memoryview = data
        if not self._has_sender:
            try:
                sent = self._transport.try_to_send(data)
            except (trio.BrokenResourceError, trio.ClosedResourceError):
                self.lose()
                return
            if sent == len(data):
                return
            if sent:
                rest = memoryview(data)[sent:]
        if self._queue is None:
            self._queue = deque()
        self._queue.append(rest)
        self._set_unsent(self._unsent + len(rest))
        if not self._has_sender:
            self._has_sender = True
            self.stalled_since = trio.current_time()
            self._nursery.start_soon(self._send_queue)

    def lose(self) -> None:
        """Notes that the connection is broken: nothing more can be sent."""
        self.is_lost = True

    def _note_progress(self) -> None:
        self.stalled_since = trio.current_time()

    async def _send_queue(self) -> None:
        queue = self._queue
        assert queue is not None
        try:
            while queue and not self.is_lost:
                data = queue[0]
                await self._transport.send(data, self._note_progress)
                if queue and queue[0] is data:
                    queue.popleft()
                    self._set_unsent(self._unsent - len(data))
        except Exception:  # of whatever carries it: the connection is gone, as its reader will see
            self.lose()
        finally:
            self._has_sender = False
            self._queue = None
            self._set_unsent(0)
            self.stalled_since = inf
        if self.is_lost:
            with trio.CancelScope(shield=True):
                await self._transport.end()
        self.on_drained()
