"""Work in the background of a server: what fails there is logged, and ends nothing else."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from typing import TypeVarTuple

import trio

from homeserver.limits import BACKGROUND_PAUSE_S
from homeserver.resources import Resources

Ts = TypeVarTuple("Ts")

_log = logging.getLogger(__name__)


async def keep_running(hs: Resources, fn: Callable[[Resources], Awaitable[None]]) -> None:
    """fn(hs), and again after a pause if it fails: the database, say, may be in reach again by then."""
    while True:
        if await _has_ended(fn, hs):
            return
        await trio.sleep(BACKGROUND_PAUSE_S)


def start_aside(hs: Resources, fn: Callable[[*Ts], Awaitable[object]], *args: *Ts) -> None:
    """Begins fn(*args), which nobody waits for."""
    hs.nursery.start_soon(_has_ended, fn, *args)


def single_error(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """The exception that nurseries have wrapped, if it is a single one: so Ctrl-C comes out as KeyboardInterrupt.

    A cancellation beside it is left out. It is raised again at the next checkpoint.
    """
    _, others = group.split(trio.Cancelled)
    error: BaseException = others or group
    while isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1:
        error = error.exceptions[0]
    return error


async def _has_ended(fn: Callable[[*Ts], Awaitable[object]], *args: *Ts) -> bool:
    """Whether it came to its end; False if it failed."""
    try:
        await fn(*args)
    except Exception:
        _log.exception("work in the background failed", extra={"work": fn.__qualname__})
        return False
    return True
