"""The pool of connections that are kept open between requests, with its limits."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Awaitable, Callable, Hashable
from typing import Generic, TypeVar

import msgspec
import trio

from homeserver.federation.wire import WireError, WireRequest
from homeserver.federation.wire.http1 import Connection, ConnectionEnded, Head

Key = TypeVar("Key", bound=Hashable)

_NOT_REPEATABLE = frozenset({"POST", "PATCH"})


class PoolLimits(msgspec.Struct, frozen=True):
    """`busy_*` limit connections with an exchange in progress, `idle_*` those waiting for the next one."""

    busy_per_host_max: int = 16
    busy_max: int = 512
    idle_max: int = 256
    idle_s: float = 50.0  # common servers close idle connections after 60 to 75 s; closing first avoids a race
    age_s: float = 600.0  # after this the server's address is resolved again


class _Host(msgspec.Struct):
    busy: trio.Semaphore
    users: int = 0
    idle: list[Connection] = msgspec.field(default_factory=list)


class Pool(Generic[Key]):
    """Connections by key. `open_connection(key)` opens a new one; it raises WireError if it cannot."""

    __slots__ = ("_busy", "_hosts", "_idle", "_limits", "_open_connection")

    def __init__(
        self, open_connection: Callable[[Key], Awaitable[Connection]], limits: PoolLimits | None = None
    ) -> None:
        self._open_connection = open_connection
        self._limits = limits if limits is not None else PoolLimits()
        self._busy = trio.Semaphore(self._limits.busy_max)
        self._hosts: dict[Key, _Host] = {}
        self._idle: OrderedDict[Connection, Key] = OrderedDict()  # longest idle first

    async def begin(self, key: Key, request: WireRequest) -> tuple[Connection, Head]:
        """Sends a request and reads the response's head. Return the connection with `end`. Raises WireError.

        A server may close an idle connection at the moment we use it. Then the request is sent once more on a new
        connection if it is safe to repeat.
        """
        connection = await self._acquire(key, fresh=False)
        try:
            return connection, await connection.start(request)
        except ConnectionEnded as error:
            reused = connection.exchanges > 1
            await self.end(key, connection)
            if not reused or request.method in _NOT_REPEATABLE:
                raise WireError("the connection ended without a response", "protocol") from error
        except BaseException:  # cancelled as well: the places that the connection holds must be given back
            await self.end(key, connection)
            raise
        connection = await self._acquire(key, fresh=True)
        try:
            return connection, await connection.start(request)
        except ConnectionEnded as error:
            await self.end(key, connection)
            raise WireError("the connection ended without a response", "protocol") from error
        except BaseException:  # as above
            await self.end(key, connection)
            raise

    async def end(self, key: Key, connection: Connection) -> None:
        """Takes a connection back: keeps it if its exchange is complete, closes it otherwise."""
        host = self._hosts[key]
        host.busy.release()
        self._busy.release()
        now_s = trio.current_time()
        if connection.is_reusable and now_s < connection.opened_s + self._limits.age_s:
            connection.idle_since_s = now_s
            host.idle.append(connection)
            self._idle[connection] = key
            unwanted = self._take_unwanted(now_s)
        else:
            unwanted = [connection]
        self._leave(key, host)
        for each in unwanted:
            await each.aclose()

    async def aclose(self) -> None:
        """Closes the idle connections. Their users close the busy ones."""
        while self._idle:
            connection, key = self._idle.popitem()
            self._hosts[key].idle.remove(connection)
            self._forget_unused(key)
            await connection.aclose()

    def statistics(self) -> tuple[int, int]:
        """Returns how many connections are busy and how many are idle."""
        return self._limits.busy_max - self._busy.value, len(self._idle)

    async def _acquire(self, key: Key, *, fresh: bool) -> Connection:
        host = self._hosts.get(key)
        if host is None:
            host = self._hosts[key] = _Host(trio.Semaphore(self._limits.busy_per_host_max))
        host.users += 1
        held: list[trio.Semaphore] = []
        try:
            # The host's own first: waiting for a slow host must not block connections to others.
            for semaphore in (host.busy, self._busy):
                await _take(semaphore)
                held.append(semaphore)
            connection = None if fresh else await self._take_idle(host)
            return connection if connection is not None else await self._open_connection(key)
        except BaseException:  # cancelled while it waited or connected: nobody else will give the places back
            for semaphore in held:
                semaphore.release()
            self._leave(key, host)
            raise

    async def _take_idle(self, host: _Host) -> Connection | None:
        now_s = trio.current_time()
        while host.idle:
            connection = host.idle.pop()
            del self._idle[connection]
            if now_s < self._expires_s(connection) and connection.is_quiet:
                return connection
            await connection.aclose()
        return None

    def _take_unwanted(self, now_s: float) -> list[Connection]:
        """Removes and returns the idle connections beyond the limits, of all hosts."""
        unwanted = []
        while self._idle:
            oldest, key = next(iter(self._idle.items()))
            if len(self._idle) <= self._limits.idle_max and now_s < oldest.idle_since_s + self._limits.idle_s:
                break
            del self._idle[oldest]
            self._hosts[key].idle.remove(oldest)
            self._forget_unused(key)
            unwanted.append(oldest)
        return unwanted

    def _expires_s(self, connection: Connection) -> float:
        return min(connection.idle_since_s + self._limits.idle_s, connection.opened_s + self._limits.age_s)

    def _leave(self, key: Key, host: _Host) -> None:
        host.users -= 1
        self._forget_unused(key)

    def _forget_unused(self, key: Key) -> None:
        host = self._hosts.get(key)
        if host is not None and host.users == 0 and not host.idle:
            del self._hosts[key]


async def _take(semaphore: trio.Semaphore) -> None:
    """Acquires the semaphore, without a trip through the scheduler when it is free."""
    try:
        semaphore.acquire_nowait()
    except trio.WouldBlock:
        await semaphore.acquire()
