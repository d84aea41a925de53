"""Leases: what only one node of a database may do at a time is led by the node that has the lease for it.

Theory of operation. A lease is a row with its owner, a time until which it is valid, by the clock of PostgreSQL, and a
number, the *fence*, which rises whenever the lease changes hands.

    there is no row, or it is past its time, or its owner's session is gone    a node may take it: fence + 1
    the owner                                                                   renews it every few seconds
    the owner ends what it did                                                  it is past its time at once

A node that stands still or is cut off does not know that it has lost a lease. So what is done under a lease is
cancelled here when its time has passed by the clock of this machine. And every write that is made under it checks the
fence (`batch.py`), in the same transaction: a lease changes hands only between two writes, so the former owner can
write nothing any more. What it has begun to do elsewhere, such as a request to another server, may happen twice.
"""

from __future__ import annotations

import time

import trio

from homeserver.database.schema import DatabaseBusy
from homeserver.limits import DATABASE_LEASE_SECONDS


class Lease:
    """The right to do something, from when it is granted until `scope` is cancelled or it is given back."""

    __slots__ = ("fence", "granted_at", "is_over", "name", "scope")

    def __init__(self, name: str, fence: int, granted_at: float) -> None:
        self.name = name
        self.fence = fence
        self.granted_at = granted_at  # by time.monotonic, just before it was asked for
        self.is_over = False
        self.scope = trio.CancelScope()

    def has_expired(self) -> bool:
        """Returns whether another node may have it by now."""
        return time.monotonic() - self.granted_at > DATABASE_LEASE_SECONDS


class LeaseLost(DatabaseBusy):
    """Another node does now what the caller did under `lease`."""

    def __init__(self, lease: Lease) -> None:
        super().__init__(f"Another node has taken over {lease.name!r}.")
        self.lease = lease
