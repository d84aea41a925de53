"""Figures as administrators get them: one row for each hour or day, and sums for other servers and rooms."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Literal, NamedTuple

from homeserver.database import Transaction
from homeserver.database.tail import find_position
from homeserver.errors import invalid_param
from homeserver.feature import JsonObject
from homeserver.features.analytics.counting import CALLS, JOINS, RECEIVED, ROOMS, SENT, Counted, count_span
from homeserver.rooms.figures import RoomSize
from homeserver.users.accounts import list_created
from homeserver.users.figures import (
    ACTIVE,
    DAY_MS,
    DELIVERY,
    HOUR_MS,
    Active,
    Peer,
    count_active,
    count_active_by_hour,
    find_clock,
    find_current,
    list_daily,
    list_hourly,
    list_peers,
    percentiles,
)

Granularity = Literal["hour", "day"]

TAIL = "analytics"
PERIODS_MAX = 4_000  # ten years of days, or five months of hours: some 1.5 MB of JSON
UNCOUNTED_MAX = 2_000  # positions that a request counts itself, because the tail has not reached them: some 50 ms
LARGEST_MAX = 100  # peers and rooms in an answer
SIMPLE = (SENT, RECEIVED, CALLS, JOINS, ROOMS, "media_files", "media_bytes")
SHARES = {"delivery_ms_p50": 0.5, "delivery_ms_p90": 0.9, "delivery_ms_p99": 0.99}


class Span(NamedTuple):
    """Whole hours or days, as numbers since 1970: begin ≤ number < end."""

    granularity: Granularity
    begin: int
    end: int

    @property
    def unit_ms(self) -> int:
        return HOUR_MS if self.granularity == "hour" else DAY_MS

    @property
    def days(self) -> tuple[int, int]:
        """The days that the span touches: first ≤ day < last."""
        return self.begin * self.unit_ms // DAY_MS, -(-self.end * self.unit_ms // DAY_MS)


class Report(NamedTuple):
    """behind: how many changes of the stream are not counted yet."""

    span: Span
    periods: Sequence[JsonObject]
    peers: Sequence[JsonObject]
    behind: int

    def body(self, rooms: Sequence[JsonObject]) -> JsonObject:
        """Returns the report in JSON."""
        return {
            "granularity": self.span.granularity,
            "from_ts": self.span.begin * self.span.unit_ms,
            "to_ts": self.span.end * self.span.unit_ms,
            "behind": self.behind,
            "periods": list(self.periods),
            "peers": list(self.peers),
            "rooms": list(rooms),
        }


def parse_span(start: str, stop: str, granularity: Granularity, now_ms: int) -> Span:
    """Returns the hours or days from `start` to `stop`, which both may be empty. Raises MatrixError 400.

    Each is a date, a date with a time (UTC if it does not name another zone), or milliseconds since 1970. A date as
    `stop` includes that day.
    """
    unit_ms = HOUR_MS if granularity == "hour" else DAY_MS
    end_ms = _parse_moment("to", stop, is_end=True) if stop else now_ms + 1
    begin_ms = (
        _parse_moment("from", start, is_end=False)
        if start
        else end_ms - (48 if granularity == "hour" else 30) * unit_ms
    )
    span = Span(granularity, begin_ms // unit_ms if start else -(-begin_ms // unit_ms), -(-end_ms // unit_ms))
    if span.begin >= span.end:
        raise invalid_param("`from` must be earlier than `to`.")
    if span.end - span.begin > PERIODS_MAX:
        raise invalid_param(f"At most {PERIODS_MAX} {granularity}s can be asked for at once.")
    return span


def _parse_moment(name: str, text: str, *, is_end: bool) -> int:
    if text.isascii() and text.isdecimal() and len(text) <= 14:
        return int(text)
    try:
        moment = datetime.fromisoformat(text)
        moment = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
        is_date = len(text) <= len("2026-11-01")
        return int(moment.timestamp() * 1000) + (DAY_MS if is_date and is_end else 0)
    except (ValueError, OverflowError):
        raise invalid_param(f"`{name}` must be a date such as 2026-11-01, a time, or milliseconds.") from None


def read_report(tx: Transaction, span: Span) -> Report:
    """Returns the figures of a span, including what the tail has not counted yet, if it is little."""
    since = find_position(tx, TAIL) or 0
    upto = min(tx.position, since + UNCOUNTED_MAX)
    clock = find_clock(tx)
    recent = count_span(tx, clock.clock_ms, since, upto)
    list_figures = list_hourly if span.granularity == "hour" else list_daily
    figures = list_figures(tx, span.begin, span.end)
    for (hour, name), amount in recent.amounts.items():
        key = (hour if span.granularity == "hour" else hour // 24, name)
        figures[key] = figures.get(key, 0) + amount
    _add_active(tx, span, clock.closed_day, find_current(tx, recent.active), figures)
    for created_ms in list_created(tx, span.begin * span.unit_ms, span.end * span.unit_ms):
        key = (created_ms // span.unit_ms, "new_people")
        figures[key] = figures.get(key, 0) + 1
    by_period: dict[int, dict[str, int]] = {}
    for (number, name), amount in figures.items():
        by_period.setdefault(number, {})[name] = amount
    periods = [_period(span, number, by_period.get(number, {})) for number in range(span.begin, span.end)]
    return Report(span, periods, _list_largest_peers(tx, span, recent), tx.position - upto)


def _add_active(
    tx: Transaction, span: Span, closed_day: int, recent: Active, figures: dict[tuple[int, str], int]
) -> None:
    """Adds the active people of days that are not closed yet."""
    first, last = span.days
    last = min(last, tx.now_ms // DAY_MS + 1)  # nobody was active in the future
    for day in range(max(first, min(closed_day, tx.now_ms // DAY_MS) + 1, last - PERIODS_MAX), last):
        if span.granularity == "hour":
            for hour, number in count_active_by_hour(tx, day, recent).items():
                figures[day * 24 + hour, ACTIVE] = number
        else:
            figures |= {(day, name): number for name, number in count_active(tx, day, recent).items()}


def _period(span: Span, number: int, figures: Mapping[str, int]) -> JsonObject:
    """Returns one row: the same fields for each period, so that it also is a line of a table."""
    start_ms = number * span.unit_ms
    moment = datetime.fromtimestamp(start_ms / 1000, UTC)
    row: JsonObject = {
        "start": moment.strftime("%Y-%m-%d" if span.granularity == "day" else "%Y-%m-%dT%H:00Z"),
        "start_ts": start_ms,
        ACTIVE: figures.get(ACTIVE, 0),
    }
    if span.granularity == "day":
        row |= {name: figures.get(name, 0) for name in ("active_people_week", "active_people_month")}
    row["messages"] = figures.get(SENT, 0) + figures.get(RECEIVED, 0)
    row["new_people"] = figures.get("new_people", 0)
    row |= {name: figures.get(name, 0) for name in SIMPLE}
    classes = {
        int(name.removeprefix(DELIVERY)): amount for name, amount in figures.items() if name.startswith(DELIVERY)
    }
    row["delivered"] = sum(classes.values())
    row |= zip(SHARES, percentiles(classes, SHARES.values()), strict=True)
    return row


def _list_largest_peers(tx: Transaction, span: Span, recent: Counted) -> list[JsonObject]:
    """Returns the other servers with the most events on the days that the span touches."""
    first, last = span.days
    peers = list_peers(tx, first, last)
    for (day, server), peer in recent.peers.items():
        if first <= day < last:
            before = peers.get(server, Peer(0, 0))
            peers[server] = Peer(before.received + peer.received, before.sent + peer.sent)
    named = [{"server": server or "(others)", **peer._asdict()} for server, peer in peers.items()]
    return sorted(named, key=lambda each: (-each["received"] - each["sent"], each["server"]))[:LARGEST_MAX]


def largest_rooms(tx: Transaction, sizes: Mapping[int, RoomSize]) -> list[JsonObject]:
    """Returns the rooms that take the most space."""
    largest = sorted(sizes.items(), key=lambda each: (-each[1].bytes, each[0]))[:LARGEST_MAX]
    names = tx.names({nid for nid, _ in largest})
    return [{"room_id": names[nid], **size._asdict()} for nid, size in largest]


def to_csv(rows: Iterable[Mapping[str, Any]]) -> str:
    """Returns rows with the same fields as CSV, with a heading. Spreadsheets cannot take a field for a formula."""
    text = io.StringIO()
    writer: Any = None
    for row in rows:
        if writer is None:
            writer = csv.DictWriter(text, list(row), lineterminator="\r\n")
            writer.writeheader()
        writer.writerow({name: _harmless(value) for name, value in row.items()})
    return text.getvalue()


def _harmless(value: Any) -> Any:
    """Returns a value with an apostrophe before it if a spreadsheet would calculate it."""
    if isinstance(value, str) and value.lstrip().startswith(("=", "+", "-", "@", "\t", "\r", "|")):
        return f"'{value}"
    return "" if value is None else value
