"""What must not cost more the longer a room's history is, or the more a peer has sent before."""

from __future__ import annotations

from typing import Any, Literal

import pytest

from homeserver.database import Transaction
from homeserver.errors import MatrixError
from homeserver.federation.event import Event
from homeserver.federation.identifiers import server_name_of
from homeserver.rooms.gaps import BEHIND_EVENTS_MAX
from homeserver.rooms.receive import Received, receive_event
from homeserver.rooms.relations import (
    Wanted,
    check_may_relate,
    count_replies,
    count_replies_upto,
    list_aggregations,
    list_children,
    list_edits,
    list_parents_below,
    list_participated,
    list_threads,
)
from homeserver.rooms.sharing import list_shared_since
from homeserver.rooms.timeline import END, START, list_by_timestamp
from tests.federation.rooms_for_tests import ALICE, BOB, CAROL
from tests.rooms.test_receive import accepted, joined, said
from tests.support.engine import ENGINE
from tests.support.rooms import OUR_ALICE, Rooms


async def test_a_banned_user_cannot_make_each_event_more_expensive(rooms: Rooms) -> None:
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
    """Returns the number of rows read to receive the event."""

    def receive(tx: Transaction) -> int:
        counting = CountingTransaction(tx)
        assert isinstance(receive_event(counting, event), Received)  # type: ignore[arg-type]
        return counting.rows

    return int(await rooms.write(receive))


@pytest.mark.skipif(ENGINE != "sqlite", reason="it is SQLite that tells how it reads")
@pytest.mark.parametrize("direction", ["f", "b"])
async def test_events_are_found_by_timestamp_through_an_index(rooms: Rooms, direction: Literal["f", "b"]) -> None:
    room_id = await rooms.create()

    def plans(tx: Transaction) -> list[str]:
        explaining = ExplainingTransaction(tx)
        list_by_timestamp(explaining, room_id, 0, direction, 1)  # type: ignore[arg-type]
        return explaining.plans

    assert "USING INDEX events_by_time (room_nid=? AND origin_server_ts" in (await rooms.read(plans))[0]


@pytest.mark.skipif(ENGINE != "sqlite", reason="it is SQLite that tells how it reads")
async def test_since_when_rooms_are_shared_is_found_without_reading_their_members(rooms: Rooms) -> None:
    await rooms.create()

    def plans(tx: Transaction) -> list[str]:
        explaining = ExplainingTransaction(tx)
        list_shared_since(explaining, [OUR_ALICE], server_name_of(OUR_ALICE))  # type: ignore[arg-type]
        return explaining.plans

    found = await rooms.read(plans)
    assert any("m USING COVERING INDEX memberships_of_room" in plan for plan in found)
    assert not any("TEMP B-TREE" in plan for plan in found)


@pytest.mark.skipif(ENGINE != "sqlite", reason="it is SQLite that tells how it reads")
async def test_relations_are_listed_and_counted_by_indexes(rooms: Rooms) -> None:
    room_id = await rooms.create()
    root = await rooms.append(room_id, OUR_ALICE)
    for rel_type in ("m.thread", "m.annotation"):
        relates_to = {"rel_type": rel_type, "event_id": root.event_id, "key": "x"}
        await rooms.append(room_id, OUR_ALICE, content={"m.relates_to": relates_to})
    parent = (await rooms.stored(root.event_id)).position

    def plans(tx: Transaction) -> list[str]:
        explaining: Any = ExplainingTransaction(tx)
        for wanted in (Wanted(), Wanted("m.thread"), Wanted("m.thread", "m.room.message")):
            for forwards in (True, False):
                list_children(explaining, (parent,), wanted, START, END, 10, forwards=forwards)
            list_parents_below(explaining, parent, wanted, 3)
        list_aggregations(explaining, (parent,))
        list_edits(explaining, parent, 10)
        list_threads(explaining, room_id, END, 10)
        list_participated(explaining, OUR_ALICE, (parent,))
        count_replies(explaining, parent, (OUR_ALICE,))
        count_replies_upto(explaining, parent, END, (OUR_ALICE,))
        with pytest.raises(MatrixError):
            check_may_relate(explaining, OUR_ALICE, "m.room.message", {"m.relates_to": relates_to})
        return [plan for plan in explaining.plans if "events" not in plan]

    found = await rooms.read(plans)
    assert len(found) >= 16
    for plan in found:
        read = plan.replace("SCAN c", "")  # the rows that the statement has already limited
        assert "SCAN" not in read and "TEMP B-TREE" not in read, plan


class ExplainingTransaction:
    """A transaction that notes how each statement is carried out."""

    def __init__(self, tx: Transaction) -> None:
        self._tx = tx
        self.plans: list[str] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._tx, name)

    def values(self, sql: str, *params: Any) -> list[Any]:
        return [row[0] for row in self.all(sql, *params)]

    def one(self, sql: str, *params: Any) -> Any:
        return next(iter(self.all(sql, *params)), None)

    def all(self, sql: str, *params: Any) -> list[Any]:
        self.plans.append("\n".join(row[3] for row in self._tx.all("EXPLAIN QUERY PLAN " + sql, *params)))
        return self._tx.all(sql, *params)

    def all_in(self, sql: str, values: Any, *params: Any) -> list[Any]:
        self.plans.append("\n".join(row[3] for row in self._tx.all_in("EXPLAIN QUERY PLAN " + sql, values, *params)))
        return self._tx.all_in(sql, values, *params)


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
