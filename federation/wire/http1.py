"""HTTP/1.1 on one connection: sends a request and reads a response, over any trio stream. Spec: RFC 9112, by h11"""

from __future__ import annotations

from collections.abc import Mapping

import h11
import msgspec
import trio

from homeserver.federation.wire import WireError, WireRequest

HEAD_BYTES_MAX = 64 * 1024
"""The limit for the status line and headers of a response."""

INFORMATIONAL_MAX = 10
"""The limit for responses such as 102 Processing before the final one."""

OVERHEAD_BYTES_MAX = 256 * 1024
"""The limit for everything but the body: heads, chunk sizes and chunk extensions. A larger body raises it."""

_RECEIVE_BYTES = 16 * 1024  # one TLS record
_CHUNKS_AT_ONCE = 64  # chunks read before other tasks get their turn, however small they are


class ConnectionEnded(Exception):
    """The connection ended before the first byte of the response. The request may or may not have arrived."""


class Head(msgspec.Struct, frozen=True):
    """Status and headers of a response. Header names are lower case; repeated headers are joined by ", "."""

    status: int
    headers: Mapping[str, str]


class Connection:
    """A connection to one server, used for one exchange after another: `start`, then `read_chunk` until b""."""

    __slots__ = (
        "_answered", "_h11", "_host_header", "_overhead_bytes", "_pending", "_stream",
        "exchanges", "idle_since_s", "opened_s",
    )  # fmt: skip

    def __init__(self, stream: trio.abc.Stream, host_header: str, opened_s: float) -> None:
        self._stream = stream
        self._host_header = host_header
        self._h11 = h11.Connection(h11.CLIENT, max_incomplete_event_size=HEAD_BYTES_MAX)
        self._answered = False
        self._overhead_bytes = 0
        self._pending: h11.Event | type[h11.PAUSED] | None = None
        self.opened_s = opened_s
        self.idle_since_s = opened_s
        self.exchanges = 0

    async def start(self, request: WireRequest) -> Head:
        """Sends the request and reads the head of the response. Raises WireError or ConnectionEnded."""
        if self.exchanges:
            self._h11.start_next_cycle()
        self.exchanges += 1
        self._answered = False
        self._pending = None
        self._overhead_bytes = -OVERHEAD_BYTES_MAX
        data = self._encode(request)
        try:
            await self._stream.send_all(data)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            # A server may answer (413, say) and close before it has read everything; read its answer anyway.
            self._h11.send_failed()
        for _ in range(INFORMATIONAL_MAX + 1):
            event = await self._next_event()
            if isinstance(event, h11.Response):
                return Head(event.status_code, _join_headers(event))
            if not isinstance(event, h11.InformationalResponse):
                raise WireError("the response has no head", "protocol")
        raise WireError("the response does not begin", "protocol")

    async def read_chunk(self) -> bytes:
        """Returns the next piece of the body, b"" after its end. Raises WireError if the body ends early."""
        event = await self._next_event()
        chunk = bytearray()
        for _ in range(_CHUNKS_AT_ONCE):
            if not isinstance(event, h11.Data):
                self._pending = event
                break
            chunk += event.data
            following = self._buffered_event()
            if following is None:
                break
            event = following
        else:
            self._pending = event
            await trio.lowlevel.checkpoint()
        self._overhead_bytes -= 2 * len(chunk)
        return bytes(chunk)

    async def read_body(self, head: Head, max_bytes: int) -> bytes:
        """Returns the whole body. Raises WireError if it ends early or is longer than `max_bytes`."""
        check_announced_length(head, max_bytes)
        body = bytearray()  # a list of one-byte chunks would take forty times as much memory
        while chunk := await self.read_chunk():
            body += chunk
            if len(body) > max_bytes:
                raise too_large(max_bytes)
        return bytes(body)

    @property
    def is_reusable(self) -> bool:
        """Returns whether another exchange may follow the last one."""
        # Trailing data would be a response without a request, or the end of the connection.
        done = self._h11.our_state is h11.DONE and self._h11.their_state is h11.DONE
        return done and self._h11.trailing_data == (b"", False)

    @property
    def is_quiet(self) -> bool:
        """Returns whether nothing has arrived while idle. Only the end of the connection is expected to."""
        transport = self._stream.transport_stream if isinstance(self._stream, trio.SSLStream) else self._stream
        return not (isinstance(transport, trio.SocketStream) and transport.socket.is_readable())

    async def aclose(self) -> None:
        """Closes the connection at once, without a TLS close notification."""
        await trio.aclose_forcefully(self._stream)

    def _encode(self, request: WireRequest) -> bytes:
        headers = [("Host", self._host_header), *request.headers.items()]
        if request.body is not None:
            headers.append(("Content-Length", str(len(request.body))))
        try:
            head = self._h11.send(h11.Request(method=request.method, target=request.path, headers=headers))
            body = self._h11.send(h11.Data(data=request.body)) if request.body else b""
            end = self._h11.send(h11.EndOfMessage())
        except (h11.LocalProtocolError, UnicodeEncodeError) as error:
            raise WireError(f"the request cannot be sent: {error}", "protocol") from error
        return (head or b"") + (body or b"") + (end or b"")

    async def _next_event(self) -> h11.Event | type[h11.PAUSED]:
        try:
            while True:
                event = self._buffered_event()
                if event is not None:
                    return event
                data = await self._stream.receive_some(_RECEIVE_BYTES)
                self._answered = self._answered or bool(data)
                if not self._answered:
                    raise ConnectionEnded
                self._overhead_bytes += len(data)
                if self._overhead_bytes > 0:
                    raise WireError("the response has too much besides its body", "protocol")
                self._h11.receive_data(bytes(data))
        except (trio.BrokenResourceError, trio.ClosedResourceError) as error:
            if not self._answered:
                raise ConnectionEnded from error
            raise WireError("the response ended early", "protocol") from error

    def _buffered_event(self) -> h11.Event | type[h11.PAUSED] | None:
        """Returns the next event from the bytes that have arrived, None if they hold no complete one."""
        if self._pending is not None:
            event, self._pending = self._pending, None
            return event
        try:
            found = self._h11.next_event()
        except h11.RemoteProtocolError as error:
            raise WireError(f"the response is not HTTP/1.1: {error}", "protocol") from error
        return None if found is h11.NEED_DATA else found  # type: ignore[return-value]


def check_announced_length(head: Head, max_bytes: int) -> None:
    """Raises WireError if the server announces a body longer than `max_bytes`."""
    length = head.headers.get("content-length", "")
    if length.isdecimal() and int(length) > max_bytes:
        raise too_large(max_bytes)


def too_large(max_bytes: int) -> WireError:
    """Returns the error for a body longer than `max_bytes`."""
    return WireError(f"the response is larger than {max_bytes} bytes", "too_large")


def _join_headers(response: h11.Response) -> dict[str, str]:
    headers: dict[str, str] = {}
    for raw_name, raw_value in response.headers.raw_items():
        name, value = raw_name.lower().decode("latin-1"), raw_value.decode("latin-1")
        headers[name] = f"{headers[name]}, {value}" if name in headers else value
    return headers
