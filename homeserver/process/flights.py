"""Flights: work that several requests need at the same moment is done once, and outlives any one of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Awaitable, Callable, Hashable
from typing import Any, TypeVar, TypeVarTuple

import trio

from homeserver.errors import MatrixError
from homeserver.limits import FLIGHTS_AT_ONCE_MAX

T = TypeVar("T")
Ts = TypeVarTuple("Ts")
Key = tuple[str, *tuple[Hashable, ...]]


class _Flight:
    __slots__ = ("done", "error", "landed", "value")

    def __init__(self) -> None:
        self.done = trio.Event()
        self.landed = False
        self.value: Any = None
        self.error: Exception | None = None


class Flights:
    """The work in progress, by key. Used on the trio thread only. Nothing is kept once the work is done."""

    __slots__ = ("_counts", "_limiters", "_under_way")

    def __init__(self) -> None:
        self._under_way: dict[Key, _Flight] = {}
        self._counts: Counter[str] = Counter()
        self._limiters: dict[str, trio.CapacityLimiter] = {}

    async def join(self, nursery: trio.Nursery, key: Key, fn: Callable[[*Ts], Awaitable[T]], *args: *Ts) -> T:
        """Runs `fn(*args)` in `nursery` and returns or raises its outcome. Calls with the same key share one run.

        The first part of the key is the kind of work; the kinds do not crowd each other out. Cancelling a caller does
        not stop the work. Raises 503 M_UNKNOWN if too much work of the kind is in progress, or the server is closing.
        """
        flight = self._under_way.get(key)
        if flight is None:
            if self._counts[key[0]] >= FLIGHTS_AT_ONCE_MAX:
                raise MatrixError(503, "M_UNKNOWN", "The server is too busy. Try again later.")
            self._counts[key[0]] += 1
            flight = self._under_way[key] = _Flight()
            nursery.start_soon(self._fly, key, flight, fn, args)
        await flight.done.wait()
        if flight.error is not None:
            raise flight.error
        if not flight.landed:
            raise MatrixError(503, "M_UNKNOWN", "The server is closing.")
        value: T = flight.value
        return value

    async def _fly(self, key: Key, flight: _Flight, fn: Callable[..., Awaitable[Any]], args: tuple[Any, ...]) -> None:
        try:
            flight.value = await fn(*args)
            flight.landed = True
        except Exception as error:  # it belongs to the waiting callers, not to the whole server's nursery
            flight.error = error
        finally:
            del self._under_way[key]
            self._counts[key[0]] -= 1
            flight.done.set()

    def limiter(self, name: str, at_once: int) -> trio.CapacityLimiter:
        """Returns the limiter `name`, creating it on first use. It limits how much of one kind of work runs at once."""
        limiter = self._limiters.get(name)
        return limiter if limiter is not None else self._limiters.setdefault(name, trio.CapacityLimiter(at_once))
