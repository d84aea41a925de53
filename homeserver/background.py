"""Work in the background of a server: what fails there is logged, and ends nothing else.

`start_background` starts what features declare: their tails, their worklists, and what waits for time.

While storage fails, background work pauses; it resumes when storage works again. The outage itself is logged once, by
`homeserver.process.outages`.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, TypeVarTuple

import trio

from homeserver.database import Transaction
from homeserver.database.lane import Lane
from homeserver.database.parked import RETRY_KEY
from homeserver.database.tail import Tail
from homeserver.errors import StorageDamaged
from homeserver.feature import Feature, Follower, Worklist, combine
from homeserver.limits import BACKGROUND_PAUSE_S
from homeserver.process.outages import OUTAGE_PROBE_SECONDS, is_outage
from homeserver.resources import Resources

Ts = TypeVarTuple("Ts")

_log = logging.getLogger(__name__)


def start_background(hs: Resources, features: Iterable[Feature]) -> None:
    """Starts the work of features that goes on while the server is open. Raises ValueError if two share a name."""
    features = tuple(features)
    tails = [follower.name for feature in features for follower in feature.tails]
    worklists = [worklist.name for feature in features for worklist in feature.worklists]
    combine("tails or worklists", ({name: None} for name in (*tails, *worklists)))
    for feature in features:
        for background in feature.background:
            hs.nursery.start_soon(keep_running, hs, background)
        for follower in feature.tails:
            if follower.is_on(hs.config):
                hs.nursery.start_soon(keep_running, hs, partial(_follow, follower), f"tail {follower.name}")
        for worklist in feature.worklists:
            hs.nursery.start_soon(keep_running, hs, partial(_run_worklist, worklist), worklist.name)


async def _follow(follower: Follower, hs: Resources) -> None:
    tail = Tail(follower.name, hs.database, hs.stream, hs.metrics, wake_keys=follower.wake_keys, rest=follower.rest)
    await tail.run(partial(follower.follow, hs), from_now=follower.from_now)


async def _run_worklist(worklist: Worklist, hs: Resources) -> None:
    """Does the listed work, and waits for more. Only one node at a time does it."""
    lane = Lane(worklist.name, hs.database, hs.metrics)

    async def finish(items: Sequence[Any]) -> None:
        for item in items:
            await worklist.finish(hs, item)

    while True:
        async with hs.database.hold(worklist.name):
            items, position = await hs.database.read(_list_due, worklist)
            await lane.work(items, finish)
            listed = {str(item) for item in items}
            await lane.forget(item for item in await lane.list_retried() if item not in listed)  # done meanwhile
        keys = (worklist.wake_key, RETRY_KEY) if worklist.wake_key else (RETRY_KEY,)
        await hs.stream.wait(keys, position, math.inf)


def _list_due(tx: Transaction, worklist: Worklist) -> tuple[Sequence[Any], int]:
    return worklist.list_due(tx), tx.position


async def keep_running(hs: Resources, fn: Callable[[Resources], Awaitable[None]], name: str = "") -> None:
    """Runs fn(hs), and again after a pause if it fails. After an outage of the storage it resumes at once.

    Damaged data that it needs is logged when it is first met: it will most likely be damaged after the pause too.

    name: of the work, in the log; that of fn unless given.
    """
    name = name or _name_of(fn)
    damage = ""
    while True:
        try:
            with _cancellation_first(name):
                await fn(hs)
            return
        except Exception as error:  # whatever it is, it must not end the server: the work is tried again
            if is_outage(error):
                await trio.sleep(OUTAGE_PROBE_SECONDS)
                await hs.outages.wait_over()
                continue
            if not isinstance(error, StorageDamaged):
                _log_failure(name, error)
            elif damage != str(error):
                damage = str(error)
                _log.error("work in the background is held up by damaged data", extra={"work": name, "damage": damage})
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
        with _cancellation_first(_name_of(fn)):
            await fn(*args)
    except Exception as error:  # nobody waits for the result, and the server's nursery must not end with it
        if not is_outage(error):
            _log_failure(_name_of(fn), error)


@contextmanager
def _cancellation_first(name: str) -> Iterator[None]:
    """Lets only the cancellation out if the tasks of some work end with it and with failures: the server closes."""
    try:
        yield
    except BaseExceptionGroup as group:
        cancelled, rest = group.split(trio.Cancelled)
        if cancelled is None or (rest is not None and not isinstance(rest, ExceptionGroup)):
            raise
        if isinstance(rest, ExceptionGroup) and not is_outage(rest):
            _log_failure(name, rest)
        raise cancelled from None


def _name_of(fn: Callable[..., object]) -> str:
    return getattr(fn, "__qualname__", str(fn))


def _log_failure(name: str, error: Exception) -> None:
    _log.error("work in the background failed", exc_info=error, extra={"work": name})
