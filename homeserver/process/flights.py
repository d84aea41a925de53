"""Flights: work that several requests want at the same moment is done once, and does not end with one of them."""

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
    """The work under way, by key. Used on the trio thread only; it holds nothing once the work is done."""

    __slots__ = ("_counts", "_limiters", "_under_way")

    def __init__(self) -> None:
        self._under_way: dict[Key, _Flight] = {}
        self._counts: Counter[str] = Counter()
        self._limiters: dict[str, trio.CapacityLimiter] = {}

    async def join(self, nursery: trio.Nursery, key: Key, fn: Callable[[*Ts], Awaitable[T]], *args: *Ts) -> T:
        """What `fn(*args)` answers or raises, run in `nursery`; who names the same key meanwhile gets the same answer.

        The first of the key is the kind of work: one kind does not crowd out another. A cancelled caller leaves it
        running. Raises 503 M_UNKNOWN where too much of the kind is under way, or the server closes.
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
        except Exception as error:  # whatever it is belongs to those who wait, not to the nursery of the whole server
            flight.error = error
        finally:
            del self._under_way[key]
            self._counts[key[0]] -= 1
            flight.done.set()

    def limiter(self, name: str, at_once: int) -> trio.CapacityLimiter:
        """The limiter `name`, made when first asked for: how much of one kind of work may go on at once."""
        limiter = self._limiters.get(name)
        return limiter if limiter is not None else self._limiters.setdefault(name, trio.CapacityLimiter(at_once))
