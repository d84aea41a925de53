"""Work that ends in the middle: `mortal(hs, life)` is a server whose process is killed at a step.

Each call of the database or of the blob storage is a step. Nothing runs afterwards: a killed process cleans up nothing.

    for life in lives():
        with suppress(Killed):
            await job(mortal(hs, life))
        await job(hs)  # after the next start
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator
from typing import Any, TypeVar

import msgspec

from homeserver.resources import Resources

T = TypeVar("T")

_STEPS_MAX = 100


class Killed(Exception):
    """The process ends here."""


class Life:
    """How many steps are left. after: whether the last one still takes effect.

    is_over: whether the process was killed, instead of completing its work.
    """

    def __init__(self, steps: int, *, after: bool) -> None:
        self.steps, self.after, self.is_over = steps, after, False

    def __repr__(self) -> str:
        return f"killed {'after' if self.after else 'before'} step {self.steps}"

    async def step(self, call: Callable[..., Awaitable[T]], *args: Any, **options: Any) -> T:
        if self.is_over:
            raise Killed
        self.steps -= 1
        if self.steps == 0 and not self.after:
            self.is_over = True
            raise Killed
        result = await call(*args, **options)
        if self.steps == 0:
            self.is_over = True
            raise Killed
        return result


class _Mortal:
    """Passes everything on; calls of these methods are steps."""

    def __init__(self, whole: Any, life: Life, methods: frozenset[str]) -> None:
        self._whole, self._life, self._methods = whole, life, methods

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._whole, name)
        if name not in self._methods:
            return found

        async def step(*args: Any, **options: Any) -> Any:
            return await self._life.step(found, *args, **options)

        return step


def mortal(hs: Resources, life: Life) -> Resources:
    """Returns the server as a process with that life has it."""
    database: Any = _Mortal(hs.database, life, frozenset({"read", "write", "scrub"}))
    blobs: Any = _Mortal(hs.blobs, life, frozenset({"put", "get", "delete", "size_bytes"}))
    return msgspec.structs.replace(hs, database=database, blobs=blobs)


def lives() -> Iterator[Life]:
    """Yields lives that end at each step, until one is long enough for the whole work."""
    for steps in range(1, _STEPS_MAX):
        for after in (False, True):
            life = Life(steps, after=after)
            yield life
            if not life.is_over:
                return
    raise AssertionError("the work never ends")
