"""One client's connection: Hypercorn's HTTP/1.1, HTTP/2 and WebSocket code between a trio stream and the application.

Theory of operation. Hypercorn's own trio server spends more on each request than the application does: a task and a few
checkpoints for each idle period, queue entry and empty write. Here there are no timers per connection. Each connection
notes since when it is idle, receives the head of a request, or sends an answer. A sweep checks all connections
regularly and closes those that have been in one of these states for too long. The head of an answer is held back and
sent together with the beginning of its body. `Connections` limits their number and decides which one must make room.
"""

from __future__ import annotations

import logging
import sys
from collections import deque
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from math import inf
from typing import Any

import trio
from hypercorn.app_wrappers import ASGIWrapper
from hypercorn.config import Config as HypercornConfig
from hypercorn.events import Closed, Event, RawData, Updated
from hypercorn.trio.worker_context import WorkerContext
from hypercorn.typing import ConnectionState
from hypercorn.utils import parse_socket_addr

from homeserver import limits
from homeserver.http.asgi import Message
from homeserver.http.http1 import Http1
from homeserver.http.http2 import Http2

_log = logging.getLogger("homeserver.http.listener")

_QUEUE_MESSAGES_MAX = 8
_RECEIVE_BYTES = 65_536


class Queue:
    """The messages from a connection to one request. A full queue blocks the connection; a left one drops messages.

    A body that stands still is given up. To the request it looks as if the client had disconnected.
    """

    __slots__ = ("_before_body", "_left", "_messages", "_more_body", "_readers", "_writers")

    def __init__(self, *, has_body: bool, before_body: Callable[[], Awaitable[None]] | None = None) -> None:
        """before_body: awaited when the body is requested for the first time."""
        self._more_body = has_body
        self._before_body = before_body
        self._messages: deque[Message] = deque()
        self._readers = trio.lowlevel.ParkingLot()
        self._writers = trio.lowlevel.ParkingLot()
        self._left = False

    async def put(self, message: Message) -> None:
        if self._left:
            return
        self._messages.append(message)
        self._readers.unpark()
        while len(self._messages) > _QUEUE_MESSAGES_MAX and not self._left:
            await self._writers.park()

    async def get(self) -> Message:
        if self._before_body is not None:
            before_body, self._before_body = self._before_body, None
            await before_body()
        if not self._messages:
            with trio.move_on_after(limits.http.REQUEST_CHUNK_SECONDS_MAX if self._more_body else inf):
                while not self._messages:
                    await self._readers.park()
            if not self._messages:
                return {"type": "http.disconnect"}
        if self._writers:
            self._writers.unpark_all()
        message = self._messages.popleft()
        if self._more_body:
            self._more_body = message.get("more_body", False)
        return message

    def leave(self) -> None:
        """Ends the request: it needs no more messages, and tasks waiting in `put` return."""
        self._left = True
        self._messages.clear()
        self._writers.unpark_all()


@dataclass(slots=True)
class _Tasks:
    """Starts tasks for Hypercorn's protocols."""

    nursery: trio.Nursery
    before_body: Callable[[], Awaitable[None]] | None = None  # for the next request

    async def spawn_app(
        self, app: ASGIWrapper, config: HypercornConfig, scope: Any, send: Callable[[Any], Awaitable[None]]
    ) -> Callable[[Message], Awaitable[None]]:
        queue = Queue(has_body=scope["type"] == "http", before_body=self.before_body)
        self.before_body = None
        self.nursery.start_soon(_run_app, app, scope, queue, send)
        return queue.put

    def spawn(self, fn: Callable[..., Awaitable[Any]], *args: Any) -> None:
        self.nursery.start_soon(fn, *args)


async def _run_app(app: ASGIWrapper, scope: Any, queue: Queue, send: Callable[[Any], Awaitable[None]]) -> None:
    try:
        await app.app(scope, queue.get, send)
    except Exception as error:
        # The answer broke off in the middle. This must only affect this connection. The application has already
        # answered and logged errors that happened before the answer began.
        if not is_gone(error):
            _log.error("answer broke off", exc_info=error, extra={"path": scope.get("path", "")})
    finally:
        queue.leave()
        await send(None)


def is_gone(error: BaseException) -> bool:
    """Returns whether the error only means that the client has closed its connection."""
    if isinstance(error, BaseExceptionGroup):
        return all(is_gone(each) for each in error.exceptions)
    return isinstance(error, (trio.BrokenResourceError, trio.ClosedResourceError, OSError))


@dataclass(slots=True, eq=False)
class Connection:
    """One client's connection, and since when it has been in each of its states (inf while it is not in that state).

    idle_since: no request is in progress. asking_since: receiving the head of a request. sending_since: sending.
    """

    stream: trio.abc.Stream
    socket: trio.socket.SocketType
    is_tls: bool
    idle_since: float = field(default_factory=trio.current_time)
    asking_since: float = inf
    sending_since: float = inf
    crowd: Crowd | None = None  # the connections that it is counted with
    _held: bytes = b""
    _lock: trio.Lock = field(default_factory=trio.Lock)
    _reading: trio.CancelScope = field(default_factory=trio.CancelScope)
    _protocol: Any = None  # None until it has begun

    async def run(self, app: ASGIWrapper, config: HypercornConfig, context: WorkerContext) -> None:
        """Serves the connection until either side closes it."""
        alpn = "http/1.1"
        if isinstance(self.stream, trio.SSLStream):
            with trio.fail_after(limits.http.TLS_HANDSHAKE_SECONDS_MAX):
                await self.stream.do_handshake()
            alpn = self.stream.selected_alpn_protocol() or alpn
        client = parse_socket_addr(self.socket.family, self.socket.getpeername())
        server = parse_socket_addr(self.socket.family, self.socket.getsockname())
        async with trio.open_nursery() as nursery:
            protocol = Http2 if alpn == "h2" else Http1
            self._protocol = protocol(
                app, config, context, _Tasks(nursery), ConnectionState({}),
                self.is_tls, client, server, self._send,
            )  # fmt: skip
            await self._protocol.initiate()
            self.idle_since = trio.current_time()
            with self._reading:
                await self._read()
            await self._protocol.handle(Closed())
        await self._linger()

    def overdue(self, now: float) -> bool:
        """Returns whether the client has sent no request, or received nothing, for too long."""
        return (
            now - self.idle_since > limits.http.KEEP_ALIVE_SECONDS
            or now - self.asking_since > limits.http.HEAD_SECONDS_MAX
            or now - self.sending_since > limits.http.SEND_SECONDS_MAX
        )

    @property
    def is_idle(self) -> bool:
        return self.idle_since is not inf

    async def _read(self) -> None:
        protocol, stream = self._protocol, self.stream
        while True:
            try:
                data = await stream.receive_some(_RECEIVE_BYTES)
            except (trio.ClosedResourceError, trio.BrokenResourceError):
                return
            if self.asking_since is inf and self.idle_since is not inf:
                self.asking_since = trio.current_time()
            await protocol.handle(RawData(bytes(data)))
            if not data:
                return

    async def _send(self, event: Event) -> None:
        if isinstance(event, RawData):
            await self._send_data(event.data)
        elif isinstance(event, Updated):
            await self._flush()
            self.idle_since = trio.current_time() if event.idle else inf
            self.asking_since = inf
            if self.crowd is not None:
                self.crowd.note(self)
        else:
            await self._flush()
            await self._end()
            await self._protocol.handle(Closed())
            self._reading.cancel()  # the protocol may block the next request, which would wait in vain

    async def _send_data(self, data: bytes) -> None:
        if not data:
            return
        if self._held:
            if len(data) > limits.http.SEND_BYTES:
                await self._flush()  # copying a large answer would cost more than a packet
            else:
                data, self._held = self._held + data, b""
        elif data.startswith(b"HTTP/1.1 ") and data[9:10] != b"1" and b"\r\ncontent-length: " in data:
            self._held = data  # its body, or the end of the answer, follows at once
            return
        await self._write(data)

    async def _flush(self) -> None:
        if self._held:
            data, self._held = self._held, b""
            await self._write(data)

    async def _write(self, data: bytes) -> None:
        try:
            self._lock.acquire_nowait()
        except trio.WouldBlock:
            await self._lock.acquire()
        try:
            if len(data) <= limits.http.SEND_BYTES:
                self.sending_since = trio.current_time()
                await self.stream.send_all(data)
            else:
                view = memoryview(data)
                for start in range(0, len(view), limits.http.SEND_BYTES):
                    self.sending_since = trio.current_time()
                    await self.stream.send_all(view[start : start + limits.http.SEND_BYTES])
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            await self._protocol.handle(Closed())
        finally:
            self.sending_since = inf
            self._lock.release()

    @property
    def _transport(self) -> trio.abc.HalfCloseableStream:
        transport = self.stream.transport_stream if isinstance(self.stream, trio.SSLStream) else self.stream
        assert isinstance(transport, trio.abc.HalfCloseableStream)
        return transport

    async def _end(self) -> None:
        """Tells the client that nothing more will be sent."""
        try:
            await self._transport.send_eof()
        except trio.BusyResourceError:  # in the middle of an answer that cannot be finished
            await trio.aclose_forcefully(self.stream)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass  # the client closed it first

    async def _linger(self) -> None:
        """Drops whatever the client still sends, until the client closes too.

        A connection that is closed with unread bytes is reset, and the client may lose its answer.
        """
        transport, seen = self._transport, 0
        with trio.move_on_after(limits.http.LINGER_SECONDS):
            try:
                while data := await transport.receive_some(_RECEIVE_BYTES):
                    seen += len(data)
                    if seen > limits.http.REFUSED_BODY_BYTES_MAX:
                        break
            except (trio.BrokenResourceError, trio.ClosedResourceError):
                pass


class _Sizes:
    """Knows the largest crowd, at a cost that does not grow with their number."""

    __slots__ = ("_by_size", "_largest")

    def __init__(self) -> None:
        self._by_size: dict[int, dict[Crowd, None]] = {}
        self._largest = 0

    def move(self, crowd: Crowd, before: int, after: int) -> None:
        """Records that the size of the crowd has changed by one."""
        if before:
            del self._by_size[before][crowd]
            if not self._by_size[before]:
                del self._by_size[before]
        if after:
            self._by_size.setdefault(after, {})[crowd] = None
        self._largest = max(self._largest, after)
        if self._largest not in self._by_size:
            self._largest = after if after in self._by_size else 0

    def largest(self) -> Crowd | None:
        return next(iter(self._by_size[self._largest]), None) if self._largest else None


class Crowd:
    """The connections of one address. members: the oldest first. idle: the one idle for longest first."""

    __slots__ = ("_all_idle", "idle", "is_proxy", "key", "members")

    def __init__(self, key: str, *, is_proxy: bool, all_idle: dict[Connection, None]) -> None:
        """all_idle: the idle connections of all crowds, which this crowd updates."""
        self.key = key
        self.is_proxy = is_proxy
        self.members: dict[Connection, None] = {}
        self.idle: dict[Connection, None] = {}
        self._all_idle = all_idle

    def note(self, connection: Connection) -> None:
        """Records that the connection became idle or busy, or has ended."""
        self.idle.pop(connection, None)
        self._all_idle.pop(connection, None)
        if connection.is_idle and connection in self.members:
            self.idle[connection] = self._all_idle[connection] = None


class Connections:
    """The connections of all listeners. Used on the trio thread only.

    There may be as many as the limit for open files allows, less a reserve for everything else. One address may have a
    part of them, a trusted proxy a larger part. At a limit the new connection replaces another one:
    - at the limit of its address: the connection of that address that has been idle for longest;
    - at the total limit: the connection of any address that has been idle for longest. If all are busy, the oldest
      connection of the address with the most, if that has at least two more than the new one's address. So nobody can
      keep others out with long polls or endless bodies. A proxy is only replaced by proxies: it stands for many people.
    Otherwise the new connection is refused.
    """

    __slots__ = ("_all", "_crowds", "_each", "_idle", "_proxy", "_sizes", "_total", "refused")

    def __init__(self, total: int) -> None:
        """total: the largest number of connections."""
        self.refused = 0
        self._total = total
        self._each = max(1, min(limits.http.CONNECTIONS_PER_ADDRESS_MAX, total // 4))
        self._proxy = max(1, total * 3 // 4)
        self._all: dict[Connection, None] = {}
        self._idle: dict[Connection, None] = {}
        self._crowds: dict[str, Crowd] = {}
        self._sizes = {False: _Sizes(), True: _Sizes()}  # key: whether the crowd is a proxy's

    def __len__(self) -> int:
        return len(self._all)

    def __iter__(self) -> Iterator[Connection]:
        return iter(tuple(self._all))

    async def admit(self, connection: Connection, key: str, *, is_proxy: bool) -> bool:
        """Counts a new connection, perhaps ending another one. Returns False if the new one must be closed.

        key: its address, its network for IPv6; "" for a unix socket.
        """
        crowd = self._crowds.get(key) or Crowd(key, is_proxy=is_proxy, all_idle=self._idle)
        is_crowded = len(crowd.members) >= (self._proxy if crowd.is_proxy else self._each)
        if is_crowded or len(self._all) >= self._total:
            other = next(iter(crowd.idle), None) if is_crowded else self._replaceable(crowd)
            if other is None:
                self.refused += 1
                return False
            self.discard(other)
            await trio.aclose_forcefully(other.stream)
        crowd = self._crowds.setdefault(key, crowd)
        connection.crowd = crowd
        self._all[connection] = None
        crowd.members[connection] = None
        self._sizes[crowd.is_proxy].move(crowd, len(crowd.members) - 1, len(crowd.members))
        crowd.note(connection)
        return True

    def _replaceable(self, crowd: Crowd) -> Connection | None:
        """Returns the connection that a new one of the crowd may replace at the total limit, or None."""
        if self._idle:
            return next(iter(self._idle))
        for is_proxy in (False, True) if crowd.is_proxy else (False,):
            largest = self._sizes[is_proxy].largest()
            if largest is not None and len(largest.members) >= len(crowd.members) + 2:
                return next(iter(largest.members))
        return None

    def discard(self, connection: Connection) -> None:
        """Removes a connection that has ended."""
        if self._all.pop(connection, connection) is connection:
            return  # it is already not counted any more
        crowd = connection.crowd
        assert crowd is not None
        del crowd.members[connection]
        crowd.note(connection)
        self._sizes[crowd.is_proxy].move(crowd, len(crowd.members) + 1, len(crowd.members))
        if not crowd.members:
            del self._crowds[crowd.key]


def room_for_connections() -> int:
    """Returns how many connections this process may have. A part of its open files is reserved for everything else."""
    files = _open_files_max()
    return min(limits.http.CONNECTIONS_MAX, files - min(limits.http.FILES_RESERVED, files // 2))


def _open_files_max() -> int:
    if sys.platform == "win32":
        return limits.http.CONNECTIONS_MAX + limits.http.FILES_RESERVED
    import resource  # not available on every system

    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return soft if soft != resource.RLIM_INFINITY else limits.http.CONNECTIONS_MAX + limits.http.FILES_RESERVED
