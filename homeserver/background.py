"""Work in the background of a server: what fails there is logged, and ends nothing else.

While storage fails, background work pauses; it resumes when storage works again. The outage itself is logged once, by
`homeserver.process.outages`.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import TypeVarTuple

import trio

from homeserver.limits import BACKGROUND_PAUSE_S
from homeserver.process.outages import OUTAGE_PROBE_SECONDS, is_outage
from homeserver.resources import Resources

Ts = TypeVarTuple("Ts")

_log = logging.getLogger(__name__)


async def keep_running(hs: Resources, fn: Callable[[Resources], Awaitable[None]]) -> None:
    """fn(hs), and again after a pause if it fails. After an outage of the storage it resumes at once."""
    while True:
        try:
            with _cancellation_first(fn):
                await fn(hs)
            return
        except Exception as error:
            if is_outage(error):
                await trio.sleep(OUTAGE_PROBE_SECONDS)
                await hs.outages.wait_over()
                continue
            _log_failure(fn, error)
        await trio.sleep(BACKGROUND_PAUSE_S)


def start_aside(hs: Resources, fn: Callable[[*Ts], Awaitable[object]], *args: *Ts) -> None:
    """Begins fn(*args), which nobody waits for."""
    hs.nursery.start_soon(_run_aside, fn, *args)


def single_error(error: BaseException) -> BaseException:
    """The exception that nurseries have wrapped, if it is a single one: so Ctrl-C comes out as KeyboardInterrupt.

    A cancellation beside it is left out. It is raised again at the next checkpoint.
    """
    if isinstance(error, BaseExceptionGroup):
        error = error.split(trio.Cancelled)[1] or error
    while isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1:
        error = error.exceptions[0]
    return error


async def _run_aside(fn: Callable[[*Ts], Awaitable[object]], *args: *Ts) -> None:
    try:
        with _cancellation_first(fn):
            await fn(*args)
    except Exception as error:
        if not is_outage(error):
            _log_failure(fn, error)


@contextmanager
def _cancellation_first(fn: Callable[..., object]) -> Iterator[None]:
    """Lets only the cancellation out if the tasks of fn end with it and with failures: the server closes."""
    try:
        yield
    except BaseExceptionGroup as group:
        cancelled, rest = group.split(trio.Cancelled)
        if cancelled is None or (rest is not None and not isinstance(rest, ExceptionGroup)):
            raise
        if isinstance(rest, ExceptionGroup) and not is_outage(rest):
            _log_failure(fn, rest)
        raise cancelled from None


def _log_failure(fn: Callable[..., object], error: Exception) -> None:
    _log.error("work in the background failed", exc_info=error, extra={"work": getattr(fn, "__qualname__", str(fn))})
