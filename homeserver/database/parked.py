"""The table of parked items: work that failed again and again, so that a lane left it out (see `lane`).

An administrator lists it, and says what is to be tried again: that is marked here, and the lane finds the mark.
"""

from __future__ import annotations

from collections.abc import Collection

import msgspec

from homeserver import limits
from homeserver.database.transaction import Transaction

# The stream key that wakes lanes which wait for work: one of their items is to be tried again.
RETRY_KEY = "parked"


class ParkedItem(msgspec.Struct, frozen=True):
    """An item that a lane left out, with the last error. `is_due`: it is to be tried again."""

    lane: str
    item: str
    reason: str
    parked_ms: int
    is_due: bool


def store_parked(tx: Transaction, lane: str, item: str, reason: str) -> None:
    """Notes a parked item. Keeps the newest PARKED_ITEMS_MAX items of each lane."""
    tx.run(
        "INSERT INTO parked_items (lane, item, reason, parked_ms, is_due) VALUES (?, ?, ?, ?, 0)"
        " ON CONFLICT (lane, item) DO UPDATE SET reason = excluded.reason, parked_ms = excluded.parked_ms, is_due = 0",
        lane, item, reason.replace("\0", "")[: limits.PARKED_REASON_CHARACTERS_MAX], tx.now_ms,
    )  # fmt: skip
    old = tx.values(
        "SELECT item FROM parked_items WHERE lane = ? ORDER BY parked_ms DESC, item LIMIT 100 OFFSET ?",
        lane, limits.PARKED_ITEMS_MAX,
    )  # fmt: skip
    delete_parked(tx, lane, old)


def list_parked(tx: Transaction) -> list[ParkedItem]:
    """Every parked item, lane by lane, the newest first."""
    rows = tx.all("SELECT lane, item, reason, parked_ms, is_due FROM parked_items ORDER BY lane, parked_ms DESC, item")
    return [ParkedItem(lane, item, reason, parked_ms, bool(is_due)) for lane, item, reason, parked_ms, is_due in rows]


def list_parked_of(tx: Transaction, lane: str) -> dict[str, bool]:
    """The parked items of a lane: whether each is to be tried again."""
    rows = tx.all("SELECT item, is_due FROM parked_items WHERE lane = ?", lane)
    return {item: bool(is_due) for item, is_due in rows}


def set_parked_due(tx: Transaction, lane: str | None = None, item: str | None = None) -> int:
    """Has the items of a lane tried again, or one of them, or those of all lanes. Returns how many there are.

    Not those of the sender: it does not go back to what it has passed.
    """
    changed = tx.run(
        "UPDATE parked_items SET is_due = 1 WHERE lane = COALESCE(?, lane) AND item = COALESCE(?, item)"
        " AND lane <> 'federation'",
        lane,
        item,
    )
    if changed:
        tx.next_position(RETRY_KEY)
    return changed


def delete_parked_items(tx: Transaction, lane: str | None = None, item: str | None = None) -> int:
    """Forgets the items of a lane, or one of them, or those of all lanes. Returns how many there were."""
    return tx.run("DELETE FROM parked_items WHERE lane = COALESCE(?, lane) AND item = COALESCE(?, item)", lane, item)


def delete_parked(tx: Transaction, lane: str, items: Collection[str]) -> None:
    """The items of the lane have succeeded, or there are too many."""
    for item in items:
        tx.run("DELETE FROM parked_items WHERE lane = ? AND item = ?", lane, item)
