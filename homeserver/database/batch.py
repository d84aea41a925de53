"""Batch: writes that are committed together. Each has its own savepoint, so that a failing write fails alone."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any

import msgspec
import outcome
import trio

from homeserver.database.interning import StringCache
from homeserver.database.leases import Lease, LeaseLost
from homeserver.database.schema import DatabaseBusy, DatabaseError, DatabaseUnavailable
from homeserver.database.server_identity import ServerIdentity
from homeserver.database.session import Session
from homeserver.database.transaction import TooManyPositions, Transaction
from homeserver.database.turns import Within
from homeserver.limits import DATABASE_POSITIONS_PER_WRITE


class Request(msgspec.Struct, eq=False):
    """One call of read or write, from its arrival until it is answered."""

    fn: Callable[..., Any]
    args: tuple[Any, ...]
    now_ms: int
    task: trio.lowlevel.Task | None  # None once nobody waits for the result
    server: ServerIdentity | None = None
    leases: tuple[Lease, ...] = ()
    result: outcome.Outcome[Any] | None = None
    within: Collection[str] = ()  # the keys that the write keeps within; none: it may touch anything


class Batch(msgspec.Struct, eq=False):
    """Writes that share one transaction, and what follows from its commit."""

    requests: list[Request]
    taken: int  # the highest position ever taken in this process, committed or not; no position is taken twice
    since: int = 0  # the last position that was committed before this batch
    position: int | None = None  # the last position committed with this batch, None if it took none
    wakes: set[str] = msgspec.field(default_factory=set)
    callbacks: list[tuple[Callable[..., object], tuple[Any, ...]]] = msgspec.field(default_factory=list)
    committing: bool = False

    left: list[Request] = msgspec.field(default_factory=list)  # writes that have to run again, without others beside


class _TransactionLost(Exception):
    """The engine gave up the whole transaction while one of its writes was running."""


def run_read(session: Session, cache: StringCache, request: Request) -> None:
    """Runs a read on its own snapshot and stores its result in the request."""
    try:
        try:
            request.result = outcome.Value(_read(session, cache, request))
        except Exception:  # drivers do not say reliably that the connection is gone, so ask the session
            if not session.recover():
                raise
            request.result = outcome.Value(_read(session, cache, request))  # on a new connection
    except BaseException as error:  # every exception belongs to the waiting caller, not to this thread
        if not isinstance(error, Exception):  # Ctrl-C, in the middle of a read on the caller's own thread
            session.recover()
        request.result = outcome.Error(session.explain(error))


def _read(session: Session, cache: StringCache, request: Request) -> Any:
    session.begin_read()
    result = request.fn(Transaction(session, cache, request.now_ms, request.server, {}, None), *request.args)
    session.end_read()
    return result


def run_batch(
    session: Session, cache: StringCache, requests: list[Request], taken: int, *, beside: bool = False
) -> Batch:
    """Runs and commits writes, and stores their results. If the commit fails, its error is the result of all of them.

    If the connection is lost before the commit, all of them run once more on a new one. beside: other writes may run at
    the same time, because each of these has said what it keeps within; those that this does not work for are left.
    """
    for last_attempt in (False, True):
        batch = Batch(requests, taken)
        within = None
        if beside:
            keys = {key for request in requests for key in request.within}
            within = Within(keys, DATABASE_POSITIONS_PER_WRITE * len(requests))
        try:
            _commit(session, cache, batch, within)
            return batch
        except BaseException as error:  # belongs to the waiting callers: the writer thread must go on
            failure: BaseException = error
            try:
                lost = session.recover()
            except Exception as no_connection:  # whatever it is, the callers get it
                lost, failure = False, no_connection
            if lost and batch.committing:
                failure = DatabaseUnavailable(
                    "The connection to the database was lost in a commit; it may have worked."
                )
            elif lost and not last_attempt:
                taken = batch.taken
                continue
            if beside and not lost and isinstance(session.explain(failure), DatabaseBusy):
                return Batch([], batch.taken, left=requests)
            return _fail(session, batch, failure)
    raise AssertionError("the last attempt returns")


def _fail(session: Session, batch: Batch, error: BaseException) -> Batch:
    if isinstance(error, _TransactionLost):
        assert error.__cause__ is not None
        error = session.explain(error.__cause__)
        if not isinstance(error, DatabaseError):  # one write's own error would mean nothing to the others
            error = DatabaseUnavailable(f"The database gave up a transaction: {error}.")
    error = session.explain(error)
    for request in batch.requests:
        request.result = outcome.Error(error)
    return Batch(batch.requests, batch.taken)


def _commit(session: Session, cache: StringCache, batch: Batch, within: Within | None) -> None:
    batch.taken = session.begin_write(within, batch.taken)
    limit = None if within is None else batch.taken + within.count
    interned: dict[str, int] = {}
    alone = len(batch.requests) == 1
    for request in batch.requests:
        tx = Transaction(session, cache, request.now_ms, request.server, interned, batch.taken, limit)
        if not alone:
            session.savepoint()
        try:
            for lease in request.leases:
                _check_fence(tx, lease)
            request.result = outcome.Value(request.fn(tx, *request.args))
        except BaseException as error:  # raised by the caller's function, so it is the caller's result
            batch.taken = tx.position
            if not session.is_alive():
                raise _TransactionLost from error
            request.result = outcome.Error(session.explain(error))
            if within is not None and isinstance(request.result.error, (DatabaseBusy, TooManyPositions)):
                batch.left.append(request)
            if alone:
                session.rollback()
                break
            session.rollback_to_savepoint()
            continue
        if not alone:
            session.release()
        if tx.position != batch.taken:
            batch.position = batch.taken = tx.position
        interned.update(tx.interned)
        batch.wakes |= tx.wakes
        batch.callbacks += tx.callbacks
    else:
        batch.committing = True
        batch.since = session.commit(batch.position, batch.wakes)
        cache.add(interned)
    if batch.left:
        batch.requests = [request for request in batch.requests if request not in batch.left]


def _check_fence(tx: Transaction, lease: Lease) -> None:
    if tx.one("SELECT 1 FROM leases WHERE name = ? AND fence = ?", lease.name, lease.fence) is None:
        raise LeaseLost(lease)
