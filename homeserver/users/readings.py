"""Receipts as a sign of life: who has read something, and how long messages took to reach a device."""

from __future__ import annotations

from typing import NamedTuple

from homeserver.database import Transaction
from homeserver.rooms.figures import list_times
from homeserver.users.receipts import DELIVERED


class Reading(NamedTuple):
    """A receipt. latency_ms: from the event to its delivery; None for receipts of other kinds."""

    position: int
    user_nid: int
    is_local: bool
    ts_ms: int
    latency_ms: int | None


def list_readings(tx: Transaction, since: int, upto: int) -> list[Reading]:
    """Returns the receipts that are current and were stored at since < position ≤ upto, oldest first."""
    rows = tx.all(
        "SELECT position, user_nid, is_local, ts_ms, receipt_type, event_id FROM receipts"
        " WHERE position > ? AND position <= ? ORDER BY position",
        since, upto,
    )  # fmt: skip
    times = list_times(tx, {row[5] for row in rows if row[4] == DELIVERED})
    return [
        Reading(
            position,
            user_nid,
            bool(is_local),
            ts_ms,
            max(0, ts_ms - times[event_id]) if kind == DELIVERED and event_id in times else None,
        )
        for position, user_nid, is_local, ts_ms, kind, event_id in rows
    ]
