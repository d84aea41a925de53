"""Asks several servers for the same thing without waiting for slow ones."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

import trio

T = TypeVar("T")

Attempt = Callable[[], Awaitable[T | None]]


async def first_answer(attempts: Sequence[Attempt[T]], stagger_s: float, timeout_s: float) -> T | None:
    """Returns the first result that is not None, and cancels the other attempts.

    Each attempt starts when the one before it has failed or has taken `stagger_s`. All of them together take at most
    `timeout_s`.
    """
    found: list[T] = []

    async def run(attempt: Attempt[T], over: trio.Event) -> None:
        answer = await attempt()
        if answer is not None:
            found.append(answer)
            nursery.cancel_scope.cancel()
        over.set()

    with trio.move_on_after(timeout_s):
        async with trio.open_nursery() as nursery:
            for attempt in attempts:
                over = trio.Event()
                nursery.start_soon(run, attempt, over)
                with trio.move_on_after(stagger_s):
                    await over.wait()
    return found[0] if found else None
