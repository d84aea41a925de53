"""Counts the changes in a room's stored history, so that caches of what readers get can tell when they are out of date.

An event, its place and the state before it are stored once and rarely change afterwards. The exceptions are counted in
`rooms.rewrites`, in the write that makes the change: a redaction, an event of the past, an outlier that gets its place,
a gap that closes, a redaction that turns out to be valid, and the erasure of a user. A new event at the end of the
timeline is not counted, because it changes `rooms.last_position`.

So whatever is computed from a room's events alone may be cached under the room and this count, on every node: it is
read in the snapshot that the answer is made from.
"""

from __future__ import annotations

from homeserver.database import Transaction


def note_rewrite(tx: Transaction, room_nid: int | None) -> None:
    """Counts a change in what is stored of a room, other than a new event at its end."""
    tx.run("UPDATE rooms SET rewrites = rewrites + 1 WHERE room_nid = ?", room_nid)


def note_rewrites_of_user(tx: Transaction, user_nid: int) -> None:
    """Does the same for every room that a user is or was in."""
    tx.run(
        "UPDATE rooms SET rewrites = rewrites + 1"
        " WHERE room_nid IN (SELECT room_nid FROM memberships WHERE user_nid = ?)",
        user_nid,
    )
