"""Connections: how many there may be, since when each has been in its state, and which one must make room for another.

Theory of operation. There are no timers per connection. Each connection notes since when it is idle, receives the head
of a request, or sends an answer. A sweep (`listener.py`) checks all connections regularly and closes those that have
been in one of these states for too long. `Connections` limits their number and decides which one must make room.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from math import inf

import msgspec
import trio

from homeserver import limits
from homeserver.http.sockets import RECEIVE_BYTES, SocketStream

Tls = trio.SSLStream[trio.abc.HalfCloseableStream]


class Connection(msgspec.Struct, eq=False):
    """One client's connection, and since when it has been in each of its states (inf while it is not in that state).

    stream: with TLS if there is TLS. idle_since: no request is in progress. asking_since: receiving the head of a
    request. sending_since: sending.
    """

    stream: trio.abc.HalfCloseableStream | Tls
    idle_since: float = msgspec.field(default_factory=trio.current_time)
    asking_since: float = inf
    sending_since: float = inf
    crowd: Crowd | None = None  # the connections that it is counted with

    def overdue(self, now: float) -> bool:
        """Returns whether the client has sent no request, or received nothing, for too long."""
        return (
            now - self.idle_since > limits.http.KEEP_ALIVE_SECONDS
            or now - self.asking_since > limits.http.HEAD_SECONDS_MAX
            or now - self.sending_since > limits.http.SEND_SECONDS_MAX
        )

    @property
    def is_idle(self) -> bool:
        """Whether no request is in progress."""
        return self.idle_since is not inf

    def become_busy(self) -> None:
        """Notes that a request has begun."""
        self.idle_since = self.asking_since = inf
        if self.crowd is not None:
            self.crowd.note(self)

    def become_idle(self) -> None:
        """Notes that no request is in progress any more."""
        self.idle_since = trio.current_time()
        self.asking_since = inf
        if self.crowd is not None:
            self.crowd.note(self)

    async def send(self, data: bytes | memoryview) -> None:
        """Sends everything, in parts: a client that does not receive one in time is gone, see `overdue`."""
        if len(data) <= limits.http.SEND_BYTES and isinstance(self.stream, SocketStream):
            sent = self.stream.send_some(data)  # usually all of it
            if sent == len(data):
                return
            data = memoryview(data)[sent:]
        try:
            view = memoryview(data)
            for start in range(0, len(view), limits.http.SEND_BYTES):
                self.sending_since = trio.current_time()
                await self.stream.send_all(view[start : start + limits.http.SEND_BYTES])
        finally:
            self.sending_since = inf

    @property
    def _transport(self) -> trio.abc.HalfCloseableStream:
        stream = self.stream
        return stream.transport_stream if isinstance(stream, trio.SSLStream) else stream

    async def end(self) -> None:
        """Tells the client that nothing more will be sent."""
        try:
            await self._transport.send_eof()
        except trio.BusyResourceError:  # in the middle of an answer that cannot be finished
            await trio.aclose_forcefully(self.stream)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass  # the client closed it first

    async def linger(self) -> None:
        """Drops whatever the client still sends, until the client closes too.

        A connection that is closed with unread bytes is reset, and the client may lose its answer.
        """
        transport, seen = self._transport, 0
        with trio.move_on_after(limits.http.LINGER_SECONDS):
            try:
                while data := await transport.receive_some(RECEIVE_BYTES):
                    seen += len(data)
                    if seen > limits.http.REFUSED_BODY_BYTES_MAX:
                        break
            except (trio.BrokenResourceError, trio.ClosedResourceError):
                pass


def is_gone(error: BaseException) -> bool:
    """Returns whether the error only means that the client has closed its connection."""
    if isinstance(error, BaseExceptionGroup):
        return all(is_gone(each) for each in error.exceptions)
    return isinstance(error, (trio.BrokenResourceError, trio.ClosedResourceError, OSError))


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
