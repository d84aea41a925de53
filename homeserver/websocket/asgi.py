"""A WebSocket that an ASGI server carries, for programs that embed the server.

The ASGI server does the handshake, the frames, compression and pings; sessions are the same as on our own listeners.
"""

from __future__ import annotations

from collections.abc import Callable

import trio

from homeserver import limits
from homeserver.http.asgi import Message, Receive, Send
from homeserver.websocket.channel import Channel
from homeserver.websocket.messages import Close, Closing

_CLOSE_MARK = b"\x00"  # no message begins with it: messages are JSON


class AsgiWire:
    """Receives and sends the messages of one connection. The same for sessions as `wire.Wire`."""

    __slots__ = ("_receive", "_send", "channel", "count_frame")

    def __init__(self, receive: Receive, send: Send, nursery: trio.Nursery) -> None:
        self._receive = receive
        self._send = send
        self.channel = Channel(self, nursery)
        self.count_frame: Callable[[], None] = lambda: None

    async def receive(self) -> bytes | None:
        """Returns the next message, None once the client has closed the connection or lost it. Raises Closing."""
        message = await self._receive()
        if message["type"] == "websocket.disconnect":
            self.channel.lose()
            return None
        self.count_frame()
        text = message.get("text")
        if text is None:
            raise Closing(Close.NOT_AN_OBJECT, "Messages must be text, not binary.")
        data = str(text).encode("utf-8", "surrogatepass")
        if len(data) > limits.websocket.MESSAGE_BYTES_MAX:
            most = limits.websocket.MESSAGE_BYTES_MAX
            raise Closing(Close.TOO_LARGE, f"A message may have at most {most} bytes.")
        return data

    async def finish(self) -> None:
        """Closes the connection, once everything has been sent."""
        channel = self.channel
        channel.close(Close.NORMAL)
        with trio.move_on_after(limits.websocket.CLOSE_SECONDS_MAX):
            while channel.unsent and not channel.is_lost:
                event = trio.Event()
                channel.on_drained = event.set
                await event.wait()
        channel.lose()

    # What the channel sends with

    def encode(self, payload: bytes) -> bytes:
        """Returns the message itself."""
        return payload

    def encode_close(self, code: int, reason: str) -> bytes:
        """Returns what `send` takes for a close."""
        return _CLOSE_MARK + b"%d " % code + reason.encode()

    def try_to_send(self, data: bytes) -> int:
        """Sends nothing: an ASGI server is always waited for."""
        return 0

    async def send(self, data: bytes | memoryview, progress: Callable[[], None]) -> None:
        """Sends a message, or closes the connection."""
        text = bytes(data)
        message: Message = {"type": "websocket.send"}
        if text.startswith(_CLOSE_MARK):
            code, _, reason = text[1:].decode().partition(" ")
            message = {"type": "websocket.close", "code": int(code), "reason": reason}
        else:
            message["text"] = text.decode()
        await self._send(message)
        progress()

    async def end(self) -> None:
        """Does nothing: the ASGI server ends the connection."""
