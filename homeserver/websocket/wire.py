"""A WebSocket on our own listeners: wsproto reads frames, in the connection's own task. Spec: RFC 6455, section 5

trio-websocket reads with a task, a nursery and memory channels of its own for each connection, which is most of what an
idle connection costs (docs/performance.md has the figures). So the product uses it where it is the client
(`homeserver.socket_client`), and wsproto, which is below it, where it is the server. Frames from the server are not
masked, so they are written here: a header and the payload as it is.
"""

from __future__ import annotations

import struct
from collections.abc import Awaitable, Callable

import trio
from wsproto.connection import Connection as Frames
from wsproto.connection import ConnectionState, ConnectionType
from wsproto.events import BytesMessage, CloseConnection, Ping, Pong, TextMessage

from homeserver import limits
from homeserver.http.connection import Connection
from homeserver.http.sockets import RECEIVE_BYTES, SocketStream
from homeserver.websocket.channel import Channel
from homeserver.websocket.deflate import Deflate
from homeserver.websocket.messages import Close, Closing

_TEXT = 0x81
_COMPRESSED_TEXT = 0xC1
_CLOSE = 0x88
_PING = 0x89
_PONG = 0x8A
_CONTROL_BYTES_MAX = 125


def frame(first: int, payload: bytes) -> bytes:
    """Returns a whole frame. first: its first byte."""
    size = len(payload)
    if size < 126:
        return bytes((first, size)) + payload
    if size < 65_536:
        return struct.pack("!BBH", first, 126, size) + payload
    return struct.pack("!BBQ", first, 127, size) + payload


class Wire:
    """Reads and writes the frames of one connection.

    heard_at: when something last arrived. is_asked: a ping has been sent since then.
    """

    __slots__ = (
        "_connection", "_deflate", "_frames", "_parts", "_size", "channel", "count_frame", "heard_at", "is_asked",
        "peer_code", "wait_for_room",
    )  # fmt: skip

    def __init__(self, connection: Connection, received: bytes, deflate: Deflate | None, nursery: trio.Nursery) -> None:
        """received: bytes that followed the handshake."""
        self._connection = connection
        self._deflate = deflate
        self._frames = Frames(ConnectionType.SERVER, [] if deflate is None else [deflate], received)
        self._parts: list[bytes] = []  # of the message that is arriving
        self._size = 0
        self.channel = Channel(self, nursery)
        self.count_frame: Callable[[], None] = lambda: None  # raises Closing if there were too many
        self.wait_for_room: Callable[[], Awaitable[object]] = trio.lowlevel.checkpoint
        self.heard_at = trio.current_time()
        self.is_asked = False
        self.peer_code = 0  # what the client has closed the connection with

    async def receive(self) -> bytes | None:
        """Returns the next message, None once the client has closed the connection or lost it. Raises Closing."""
        while True:
            for event in self._frames.events():
                self.count_frame()
                if isinstance(event, TextMessage):
                    message = self._add(event)
                    if message is not None:
                        return message
                elif isinstance(event, Ping):
                    self.channel.put(frame(_PONG, bytes(event.payload)))
                    await self.wait_for_room()  # otherwise pongs pile up for a client that does not receive them
                elif isinstance(event, BytesMessage):
                    raise Closing(Close.NOT_AN_OBJECT, "Messages must be text, not binary.")
                elif isinstance(event, CloseConnection):
                    if self._frames.state is ConnectionState.OPEN:
                        raise Closing(event.code, _protocol_error(event.code))
                    self.peer_code = event.code
                    return None
                else:
                    assert isinstance(event, Pong)
            try:
                data = await self._connection.stream.receive_some(RECEIVE_BYTES)
            except (trio.BrokenResourceError, trio.ClosedResourceError):
                data = b""
            if not data:
                self.channel.lose()
                return None
            self.heard_at = trio.current_time()
            self.is_asked = False
            self._frames.receive_data(bytes(data))

    def _add(self, event: TextMessage) -> bytes | None:
        """Returns a message, if this part completes it."""
        part = event.data.encode()
        self._size += len(part)
        if self._size > limits.websocket.MESSAGE_BYTES_MAX:
            most = limits.websocket.MESSAGE_BYTES_MAX
            raise Closing(Close.TOO_LARGE, f"A message may have at most {most} bytes.")
        if event.message_finished and not self._parts:
            self._size = 0
            return part
        self._parts.append(part)
        if not event.message_finished:
            return None
        message, self._parts, self._size = b"".join(self._parts), [], 0
        return message

    def ask(self) -> None:
        """Sends a ping, to learn whether the client is still there."""
        self.is_asked = True
        self.channel.put(frame(_PING, b""))

    async def finish(self) -> None:
        """Completes the closing handshake and ends the connection."""
        channel = self.channel
        if not channel.is_lost:
            if not channel.code:
                channel.close(self.peer_code if 3000 <= self.peer_code < 5000 else Close.NORMAL)
            with trio.move_on_after(limits.websocket.CLOSE_SECONDS_MAX):
                await self._wait_sent()
                await self._connection.end()
                if not self.peer_code:
                    await self._connection.linger()
        channel.lose()

    async def _wait_sent(self) -> None:
        while self.channel.unsent and not self.channel.is_lost:
            event = trio.Event()
            self.channel.on_drained = event.set
            await event.wait()

    # What the channel sends with

    def encode(self, payload: bytes) -> bytes:
        """Returns the frame of a text message."""
        most = limits.websocket.DEFLATE_BYTES_MAX
        if self._deflate is not None and limits.websocket.DEFLATE_BYTES_MIN <= len(payload) <= most:
            return frame(_COMPRESSED_TEXT, self._deflate.deflate(payload))
        return frame(_TEXT, payload)

    def encode_close(self, code: int, reason: str) -> bytes:
        """Returns the frame that closes the connection."""
        text = reason.encode()[: _CONTROL_BYTES_MAX - 2].decode(errors="ignore").encode()
        return frame(_CLOSE, struct.pack("!H", code) + text)

    def try_to_send(self, data: bytes) -> int:
        """Sends as much as fits into the socket's buffer. With TLS there is no telling."""
        stream = self._connection.stream
        return stream.send_some(data) if isinstance(stream, SocketStream) else 0

    async def send(self, data: bytes | memoryview, progress: Callable[[], None]) -> None:
        """Sends everything, in parts."""
        view = memoryview(data)
        for start in range(0, len(view), limits.http.SEND_BYTES):
            await self._connection.stream.send_all(view[start : start + limits.http.SEND_BYTES])
            progress()

    async def end(self) -> None:
        """Ends the connection at once."""
        await trio.aclose_forcefully(self._connection.stream)

    def is_silent(self, now: float) -> bool:
        """Returns whether the client should be asked whether it is there."""
        return not self.is_asked and now - self.heard_at > limits.websocket.PING_AFTER_SECONDS

    def is_gone(self, now: float) -> bool:
        """Returns whether the client has not answered."""
        return self.is_asked and now - self.heard_at > limits.websocket.GONE_AFTER_SECONDS


def _protocol_error(code: int) -> str:
    if code == Close.TOO_LARGE:
        return f"A message may have at most {limits.websocket.MESSAGE_BYTES_MAX} bytes."
    return "A text message must be UTF-8." if code == Close.NOT_AN_OBJECT else "The frames do not follow RFC 6455."
