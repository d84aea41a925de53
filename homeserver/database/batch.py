"""Batch: writes that are committed together, each under its own savepoint, so that one that fails fails alone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import outcome
import trio

from homeserver.database.interning import StringCache
from homeserver.database.schema import DatabaseError
from homeserver.database.session import Session
from homeserver.database.transaction import Transaction


@dataclass(slots=True, eq=False)
class Request:
    """One call of read or write, from its arrival to its answer."""

    fn: Callable[..., Any]
    args: tuple[Any, ...]
    now_ms: int
    task: trio.lowlevel.Task | None  # None once nobody waits for the answer
    result: outcome.Outcome[Any] | None = None


@dataclass(slots=True, eq=False)
class Batch:
    """Writes that were asked for, and what follows from their commit."""

    requests: list[Request]
    position: int | None = None  # the last one taken, None if none was
    wakes: set[str] = field(default_factory=set)
    callbacks: list[tuple[Callable[..., object], tuple[Any, ...]]] = field(default_factory=list)


def run_read(session: Session, cache: StringCache, request: Request) -> None:
    """Runs a read on its own snapshot and stores its result."""
    try:
        session.begin_read()
        try:
            tx = Transaction(session, cache, request.now_ms, {}, None)
            request.result = outcome.Value(request.fn(tx, *request.args))
        finally:
            session.rollback()
    except BaseException as error:  # whatever it is, it belongs to the waiter, not to this thread
        request.result = outcome.Error(error)


def run_batch(session: Session, cache: StringCache, requests: list[Request]) -> Batch:
    """Runs and commits writes, and stores their results. A failure of the commit is the result of all."""
    batch = Batch(requests)
    try:
        _commit(session, cache, batch)
    except BaseException as error:  # belongs to the waiters: the writer thread must live on
        failed = Batch(requests)
        for request in requests:
            if not isinstance(request.result, outcome.Error):
                request.result = outcome.Error(error)
        session.rollback()
        return failed
    return batch


def _commit(session: Session, cache: StringCache, batch: Batch) -> None:
    position = start = session.begin_write()
    interned: dict[str, int] = {}
    alone = len(batch.requests) == 1
    for request in batch.requests:
        tx = Transaction(session, cache, request.now_ms, interned, position)
        if not alone:
            session.savepoint()
        try:
            result = outcome.Value(request.fn(tx, *request.args))
        except BaseException as error:  # of the caller's function: it is the answer to its caller
            request.result = outcome.Error(error)
            if alone:
                session.rollback()
                return
            if not session.is_alive():
                raise DatabaseError(f"The database gave up the transaction: {error}") from error
            session.rollback_to_savepoint()
        else:
            if not alone:
                session.release()
            request.result = result
            position = tx.position
            interned.update(tx.interned)
            batch.wakes |= tx.wakes
            batch.callbacks += tx.callbacks
    batch.position = position if position != start else None
    session.commit(batch.position, batch.wakes)
    cache.add(interned)
