"""Shadow-bans: what a shadow-banned user does is answered as if it had worked, and reaches nobody.

Theory of operation. Every operation that would reach others writes by `write_for`. For a shadow-banned user the write
runs as always, with all its checks, and is then undone: the user gets the same errors as everybody, and otherwise the
answer that the write gave, such as the ID of an event that does not exist. Nothing of it is stored, so there is nothing
to hide. What needs another server is not begun at all.

Joining and leaving rooms works, and so does everything that only the user's own devices see.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any, TypeVar, TypeVarTuple

from homeserver.authenticate import Requester
from homeserver.database import Transaction
from homeserver.resources import Resources
from homeserver.rooms.policy import PolicySignatureNeeded

T = TypeVar("T")
Ts = TypeVarTuple("Ts")


class Undone(Exception):
    """Undoes a write, and has what it would have returned."""

    def __init__(self, result: Any) -> None:
        super().__init__()
        self.result = result


async def write_for(
    hs: Resources,
    requester: Requester,
    fn: Callable[[Transaction, *Ts], T],
    *args: *Ts,
    within: Collection[str] = (),
) -> T:
    """Does what `Database.write` does, but stores nothing if the requester is shadow-banned."""
    if requester.is_shadow_banned:
        return await write_and_undo(hs, fn, *args)
    return await hs.database.write(fn, *args, within=within)


async def write_and_undo(hs: Resources, fn: Callable[[Transaction, *Ts], T], *args: *Ts) -> T:
    """Runs a write, undoes it, and returns what it has returned. Raises what it raises."""

    def undo(tx: Transaction) -> None:
        try:
            raise Undone(fn(tx, *args))
        except PolicySignatureNeeded as needed:  # the room's policy server must not see the event either
            raise Undone(needed.event.event_id) from None

    try:
        await hs.database.write(undo)
    except Undone as undone:
        result: T = undone.result
        return result
    raise AssertionError("A write that raises has been committed.")
