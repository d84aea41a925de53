"""What an event of a peer costs must not grow with how many the peer has sent before."""

from __future__ import annotations

from typing import Any

from federation.event import Event
from homeserver.database import Transaction
from homeserver.rooms.receive import BEHIND_EVENTS_MAX, Received, receive_event
from tests.federation.rooms_for_tests import ALICE, BOB, CAROL
from tests.rooms.test_receive import accepted, joined, said
from tests.support.rooms import Rooms


async def test_who_was_put_out_cannot_make_each_event_cost_more_than_the_last(rooms: Rooms) -> None:
    room = await joined(rooms)
    branch = room.fork()
    await accepted(rooms, room.member(ALICE, "ban", BOB))
    costs = []
    for number in range(2 * BEHIND_EVENTS_MAX):
        evasion = said(branch, BOB, f"still here {number}")
        costs.append(await rows_read(rooms, evasion))
    assert costs[-1] == costs[1]
    after = room.build(CAROL, "m.room.message", {"body": "I hear him"}, prev=[*room.last, *branch.last])
    assert await rows_read(rooms, after) < costs[1] + 6 * BEHIND_EVENTS_MAX
    assert await rooms.extremities(room.room_id) == {after.event_id}


async def rows_read(rooms: Rooms, event: Event) -> int:
    """How many rows it takes to receive the event."""

    def receive(tx: Transaction) -> int:
        counting = CountingTransaction(tx)
        assert isinstance(receive_event(counting, event), Received)  # type: ignore[arg-type]
        return counting.rows

    return int(await rooms.write(receive))


class CountingTransaction:
    """A transaction that counts what it reads."""

    def __init__(self, tx: Transaction) -> None:
        self._tx = tx
        self.rows = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._tx, name)

    def all_in(self, *args: Any) -> Any:
        rows = self._tx.all_in(*args)
        self.rows += len(rows)
        return rows
