"""Races of staggered attempts: a slow one is not waited for, and no more than necessary are started.

Theory of operation. The attempts are in order of preference. The first one starts at once. The next one starts when any
of them has ended without success, or when `stagger_s` have passed since the last start; RFC 8305 §5 connects to several
addresses of a host like this. Results are taken in order of arrival, one at a time, and nothing starts while one is
being taken. The first one that is accepted wins, and the attempts that are still running are cancelled.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from math import inf
from typing import TypeVar

import trio

T = TypeVar("T")
R = TypeVar("R")

Attempt = Callable[[], Awaitable[T]]


async def race(
    attempts: Sequence[Attempt[T]], stagger_s: float, accept: Callable[[T], Awaitable[R | None]]
) -> R | None:
    """Returns what `accept` made of the first result that it accepted; None if it made None of every result."""
    give, results = trio.open_memory_channel[T](len(attempts))
    won: R | None = None

    async def run(attempt: Attempt[T]) -> None:
        give.send_nowait(await attempt())

    async with trio.open_nursery() as nursery:
        started = ended = 0
        while won is None and ended < len(attempts):
            if started < len(attempts):
                nursery.start_soon(run, attempts[started])
                started += 1
            with trio.move_on_after(stagger_s if started < len(attempts) else inf) as pause:
                result = await results.receive()
            if not pause.cancelled_caught:
                ended += 1
                won = await accept(result)
        nursery.cancel_scope.cancel()
    return won


async def first_answer(attempts: Sequence[Attempt[T | None]], stagger_s: float, timeout_s: float = inf) -> T | None:
    """Returns the first result that is not None; None if there is none within `timeout_s`."""

    async def accept(answer: T | None) -> T | None:
        return answer

    with trio.move_on_after(timeout_s):
        return await race(attempts, stagger_s, accept)
    return None
