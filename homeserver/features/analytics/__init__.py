"""Analytics: figures about the server's use, without reading what people say. Not in the spec; see docs/analytics.md.

`counting` counts a span of the stream, `homeserver.users.figures` stores sums, `report` reads them.
"""

from __future__ import annotations

from typing import Literal

import msgspec
import trio

from homeserver.api.routes import Response, Routes
from homeserver.authenticate import Requester, check_admin
from homeserver.database import Database, Transaction
from homeserver.database.tail import store_position
from homeserver.errors import not_found
from homeserver.feature import Feature, Follower, JsonObject
from homeserver.features.analytics.counting import Counted, count_span
from homeserver.features.analytics.report import TAIL, Granularity, largest_rooms, parse_span, read_report, to_csv
from homeserver.limits import TAIL_SPAN_MAX, Bucket
from homeserver.resources import Resources
from homeserver.rooms.figures import RoomSize, list_sizes
from homeserver.users.figures import (
    DAY_MS,
    Clock,
    find_clock,
    find_current,
    forget_figures,
    store_active,
    store_amounts,
    store_clock,
    store_closed,
    store_peers,
)

routes = Routes()

# What is new is counted together, so that a message costs a small part of a write. Requests count what is missing.
COUNT_SECONDS = 10.0
ROOMS_SPAN = 50_000  # positions whose events are measured in one read: some 20 ms
DAYS_OPEN = 2  # an event may count up to a day late


class AnalyticsQuery(msgspec.Struct, frozen=True):
    """from, to: see `parse_span`. table: what CSV has, which is a single table."""

    start: str = msgspec.field(name="from", default="")
    to: str = ""
    granularity: Granularity = "day"
    format: Literal["json", "csv"] = "json"
    table: Literal["periods", "peers", "rooms"] = "periods"


@routes.get("/_homeserver/admin/v1/analytics", rate_limit="analytics")
async def get_analytics(hs: Resources, requester: Requester, query: AnalyticsQuery) -> Response:
    check_admin(requester)
    if not hs.config.analytics.enabled:
        raise not_found("Analytics are turned off: [analytics] enabled = false.")
    span = parse_span(query.start, query.to, query.granularity, hs.now_ms())
    report = await hs.database.read(read_report, span)
    is_csv = query.format == "csv"
    rooms = await list_rooms(hs.database) if not is_csv or query.table == "rooms" else []
    if not is_csv:
        return Response(200, report.body(rooms))
    table = {"periods": report.periods, "peers": report.peers, "rooms": rooms}[query.table]
    name = f"{query.table}-{query.granularity}.csv"
    headers = {"content-type": "text/csv; charset=utf-8", "content-disposition": f"attachment; filename={name}"}
    return Response(200, to_csv(table).encode(), headers)


@routes.get("/_synapse/admin/v1/statistics/database/rooms", rate_limit="analytics")
async def list_largest_rooms(hs: Resources, requester: Requester) -> JsonObject:
    """The same in the format of tools for other servers: the ten largest rooms, without indexes and files."""
    check_admin(requester)
    rooms = await list_rooms(hs.database)
    largest = sorted(rooms, key=lambda room: -room["bytes"])[:10]
    return {"rooms": [{"room_id": room["room_id"], "estimated_size": room["bytes"]} for room in largest]}


async def list_rooms(database: Database) -> list[JsonObject]:
    """Measures what the events of each room take now, and returns the largest rooms. Other reads get their turns."""
    sizes: dict[int, RoomSize] = {}
    upto = await database.read(_position)
    for since in range(0, upto, ROOMS_SPAN):
        for nid, size in (await database.read(list_sizes, since, min(upto, since + ROOMS_SPAN))).items():
            before = sizes.get(nid, RoomSize(0, 0, 0))
            sizes[nid] = RoomSize(*map(sum, zip(before, size, strict=True)))
    return await database.read(largest_rooms, sizes)


def _position(tx: Transaction) -> int:
    return tx.position


# --- after the commit ---


async def follow(hs: Resources, since: int, upto: int) -> None:
    """Counts a span of the stream, a while after it was committed; at once if there is much to do."""
    if hs.stream.position - upto < TAIL_SPAN_MAX:
        await trio.sleep(COUNT_SECONDS)
    counted = await hs.database.read(_count, since, upto)
    if counted.amounts or counted.active or counted.peers:
        await hs.database.write(_store, counted, upto)


def _count(tx: Transaction, since: int, upto: int) -> Counted:
    return count_span(tx, find_clock(tx).clock_ms, since, upto)


def _store(tx: Transaction, counted: Counted, upto: int) -> None:
    store_amounts(tx, counted.amounts)
    store_active(tx, find_current(tx, counted.active))
    store_peers(tx, counted.peers)
    # A clock that was wrong may have closed days of the future. They are closed again.
    closed, due = min(find_clock(tx).closed_day, _last_closed(tx.now_ms)), _last_closed(counted.clock_ms)
    if due > closed:
        store_closed(tx, closed, due)
    store_clock(tx, Clock(counted.clock_ms, max(closed, due)))
    store_position(tx, TAIL, upto)  # in the same write, so that nothing is counted twice


def _last_closed(clock_ms: int) -> int:
    return clock_ms // DAY_MS - DAYS_OPEN


FEATURE = Feature(
    name="analytics",
    spec="",
    routes=routes,
    limits={"analytics": Bucket(20, 0.5)},  # an answer may read all rows of events
    tails=(Follower(TAIL, follow, is_on=lambda config: config.analytics.enabled),),
    forget_user=forget_figures,
)
