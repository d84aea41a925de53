"""Figures about the server's use, by hour and by day: how many messages, joins, files, active people …

Theory of operation
- A figure is a name and a sum, once by hour (kept HOURS_KEPT) and once by day (kept DAYS_KEPT). Rare things, such as
  uploads, are added by the write that does them (`note_figure`); what follows from events is added by a tail, see
  `homeserver.features.analytics`, in the write that stores its position. So each thing is counted exactly once.
- Active people are counted exactly. A row says in which hours of a day someone was active, as 24 bits. A day is closed
  when nothing can be added to it any more (`store_closed`): then the numbers of its hours, of the day, and of the week
  and the month that end with it become figures, and rows that no open day needs are deleted. So these rows are kept for
  some MONTH_DAYS days.
- Delivery times are counted in classes (`class_of`), four for each doubling, so a percentile is at most 10 % off.
- `clock_ms` is the latest moment that anything was counted at. It lets the tail recognise events with wrong times.
- Hours and days are numbers since 1970, in UTC.
"""

from __future__ import annotations

import math
import secrets
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from homeserver.database import Schema, Step, Transaction
from homeserver.federation.identifiers import ServerName, UserID
from homeserver.users.accounts import list_active

HOUR_MS = 3_600_000
DAY_MS = 24 * HOUR_MS
HOURS_KEPT = 62 * 24
DAYS_KEPT = 3_660
# How many days of rows are deleted when a day is closed. A clock that jumps ahead by a year makes everything look old:
# so it costs only this much, and after a long pause two days a day catch up.
DAYS_DELETED = 2
WEEK_DAYS, MONTH_DAYS = 7, 30
# Servers counted by name on one day; a peer could otherwise fill the table from a million subdomains.
PEERS_A_DAY_MAX = 1_000
CLASSES_A_DOUBLING = 4
_CLASS_MAX = 32 * CLASSES_A_DOUBLING  # 50 days
DELIVERY = "delivery:"
ACTIVE, ACTIVE_WEEK, ACTIVE_MONTH = "active_people", "active_people_week", "active_people_month"

# What is due, but of no more than the oldest days or hours.
_DELETE_ACTIVE = "DELETE FROM active_people WHERE day <= ? AND day < (SELECT MIN(day) FROM active_people) + ?"
_DELETE_DAILY = "DELETE FROM daily_figures WHERE day <= ? AND day < (SELECT MIN(day) FROM daily_figures) + ?"
_DELETE_PEERS = "DELETE FROM peer_figures WHERE day <= ? AND day < (SELECT MIN(day) FROM peer_figures) + ?"
_DELETE_HOURLY = "DELETE FROM hourly_figures WHERE hour <= ? AND hour < (SELECT MIN(hour) FROM hourly_figures) + ?"

SCHEMA = Schema(
    "figures",
    (
        Step(
            "001_create",
            """
            CREATE TABLE hourly_figures (
                hour INTEGER NOT NULL,
                name TEXT NOT NULL,
                amount INTEGER NOT NULL,
                PRIMARY KEY (hour, name)
            ) WITHOUT ROWID;
            CREATE TABLE daily_figures (
                day INTEGER NOT NULL,
                name TEXT NOT NULL,
                amount INTEGER NOT NULL,
                PRIMARY KEY (day, name)
            ) WITHOUT ROWID;
            -- Events from another server, and events that were for it. server_nid 0: all others of that day.
            CREATE TABLE peer_figures (
                day INTEGER NOT NULL,
                server_nid INTEGER NOT NULL,
                received INTEGER NOT NULL,
                sent INTEGER NOT NULL,
                PRIMARY KEY (day, server_nid)
            ) WITHOUT ROWID;
            -- hours: bit h is set if the person was active in hour h of the day.
            CREATE TABLE active_people (
                day INTEGER NOT NULL,
                user_nid INTEGER NOT NULL,
                hours INTEGER NOT NULL,
                PRIMARY KEY (day, user_nid)
            ) WITHOUT ROWID;
            -- closed_day: the last day whose active people have become figures.
            CREATE TABLE figures_clock (
                id INTEGER PRIMARY KEY CHECK (id = 1),
                clock_ms INTEGER NOT NULL,
                closed_day INTEGER NOT NULL
            );
            """,
        ),
    ),
)


Active = Mapping[tuple[int, int], int]
"""The hours in which people were active, as 24 bits, by day and the number of the user."""


class Clock(NamedTuple):
    """How far counting has come, see the module's docstring."""

    clock_ms: int
    closed_day: int


class Peer(NamedTuple):
    """Events received from a server, and events for it."""

    received: int
    sent: int


def class_of(latency_ms: int) -> int:
    """Returns the class of a delivery time."""
    return min(_CLASS_MAX, int(CLASSES_A_DOUBLING * math.log2(1 + max(0, latency_ms))))


def middle_of(number: int) -> int:
    """Returns the milliseconds in the middle of a class."""
    return round(2.0 ** ((number + 0.5) / CLASSES_A_DOUBLING)) - 1


def note_figure(tx: Transaction, name: str, amount: int = 1) -> None:
    """Adds to a figure of the current hour and day, for things that take no place in the stream."""
    if tx.server.config.analytics.enabled:
        store_amounts(tx, {(tx.now_ms // HOUR_MS, name): amount})


def store_amounts(tx: Transaction, amounts: Mapping[tuple[int, str], int]) -> None:
    """Adds to the figures of hours, and of their days. amounts: by hour and name."""
    tx.many(
        "INSERT INTO hourly_figures (hour, name, amount) VALUES (?, ?, ?)"
        " ON CONFLICT (hour, name) DO UPDATE SET amount = hourly_figures.amount + excluded.amount",
        [(hour, name, amount) for (hour, name), amount in amounts.items()],
    )
    days: dict[tuple[int, str], int] = {}
    for (hour, name), amount in amounts.items():
        days[hour // 24, name] = days.get((hour // 24, name), 0) + amount
    tx.many(
        "INSERT INTO daily_figures (day, name, amount) VALUES (?, ?, ?)"
        " ON CONFLICT (day, name) DO UPDATE SET amount = daily_figures.amount + excluded.amount",
        [(day, name, amount) for (day, name), amount in days.items()],
    )


def store_peers(tx: Transaction, peers: Mapping[tuple[int, ServerName], Peer]) -> None:
    """Adds to the figures of other servers, by day and server. Beyond PEERS_A_DAY_MAX they are counted as one."""
    known: dict[int, set[int]] = {
        day: set(tx.values("SELECT server_nid FROM peer_figures WHERE day = ?", day))
        for day in {day for day, _ in peers}
    }
    rows: list[tuple[int, int, int, int]] = []
    for (day, name), peer in peers.items():
        nid = tx.intern(name)
        if nid not in known[day]:
            nid = nid if len(known[day]) < PEERS_A_DAY_MAX else 0
            known[day].add(nid)
        rows.append((day, nid, peer.received, peer.sent))
    tx.many(
        "INSERT INTO peer_figures (day, server_nid, received, sent) VALUES (?, ?, ?, ?)"
        " ON CONFLICT (day, server_nid) DO UPDATE SET received = peer_figures.received + excluded.received,"
        " sent = peer_figures.sent + excluded.sent",
        rows,
    )


def find_current(tx: Transaction, active: Active) -> Active:
    """Returns the active people without those whose accounts have ended: nothing more is kept about these."""
    names = tx.names({user_nid for _, user_nid in active})
    current = list_active(tx, [UserID(name) for name in names.values()])
    return {key: hours for key, hours in active.items() if names[key[1]] in current}


def store_active(tx: Transaction, active: Active) -> None:
    """Adds hours in which people were active."""
    tx.many(
        "INSERT INTO active_people (day, user_nid, hours) VALUES (?, ?, ?)"
        " ON CONFLICT (day, user_nid) DO UPDATE SET hours = active_people.hours | excluded.hours",
        [(day, user_nid, hours) for (day, user_nid), hours in active.items()],
    )


def find_clock(tx: Transaction) -> Clock:
    """Returns how far counting has come, zeros if it has not begun."""
    row = tx.one("SELECT clock_ms, closed_day FROM figures_clock WHERE id = 1")
    return Clock(0, 0) if row is None else Clock(int(row[0]), int(row[1]))


def store_clock(tx: Transaction, clock: Clock) -> None:
    """Stores how far counting has come."""
    tx.run(
        "INSERT INTO figures_clock (id, clock_ms, closed_day) VALUES (1, ?, ?) ON CONFLICT (id)"
        " DO UPDATE SET clock_ms = excluded.clock_ms, closed_day = excluded.closed_day",
        clock.clock_ms,
        clock.closed_day,
    )


def store_closed(tx: Transaction, closed_day: int, upto: int) -> None:
    """Makes figures of the active people of closed_day < day ≤ upto, and deletes what has been kept long enough."""
    days = tx.values(
        "SELECT DISTINCT day FROM active_people WHERE day > ? AND day <= ?", closed_day - MONTH_DAYS, upto
    )  # fmt: skip
    # A day on which nobody was active still ends a week and a month in which people were.
    ends = {day + offset for day in days for offset in range(MONTH_DAYS)}
    for day in sorted(day for day in ends if closed_day < day <= upto and day > upto - DAYS_KEPT):
        tx.many(
            "INSERT INTO daily_figures (day, name, amount) VALUES (?, ?, ?)"
            " ON CONFLICT (day, name) DO UPDATE SET amount = excluded.amount"
            " WHERE excluded.amount > daily_figures.amount",
            [(day, name, number) for name, number in count_active(tx, day).items() if number],
        )
        tx.many(
            "INSERT INTO hourly_figures (hour, name, amount) VALUES (?, ?, ?)"
            " ON CONFLICT (hour, name) DO UPDATE SET amount = excluded.amount"
            " WHERE excluded.amount > hourly_figures.amount",
            [(day * 24 + hour, ACTIVE, number) for hour, number in count_active_by_hour(tx, day).items() if number],
        )
    for sql, last, number in (
        (_DELETE_ACTIVE, upto - MONTH_DAYS + 1, DAYS_DELETED),
        (_DELETE_DAILY, upto - DAYS_KEPT, DAYS_DELETED),
        (_DELETE_PEERS, upto - DAYS_KEPT, DAYS_DELETED),
        (_DELETE_HOURLY, upto * 24 - HOURS_KEPT, DAYS_DELETED * 24),
    ):
        tx.run(sql, last, number)


def count_active(tx: Transaction, day: int, others: Active | None = None) -> dict[str, int]:
    """Returns how many people were active on a day, and in the week and the month that end with it.

    others: people who are not stored yet, with the same keys and values as `store_active`.
    """
    counts: dict[str, int] = {}
    for name, days in ((ACTIVE, 1), (ACTIVE_WEEK, WEEK_DAYS), (ACTIVE_MONTH, MONTH_DAYS)):
        sql = "SELECT COUNT(DISTINCT user_nid) FROM active_people WHERE day > ? AND day <= ?"
        (number,) = tx.values(sql, day - days, day)
        missing = {user_nid for of_day, user_nid in others or () if day - days < of_day <= day}
        if missing:
            sql = "SELECT DISTINCT user_nid FROM active_people WHERE user_nid IN (?*) AND day > ? AND day <= ?"
            missing -= {row[0] for row in tx.all_in(sql, missing, day - days, day)}
        counts[name] = int(number) + len(missing)
    return counts


def count_active_by_hour(tx: Transaction, day: int, others: Active | None = None) -> dict[int, int]:
    """Returns how many people were active in each of the 24 hours of a day. others: see `count_active`."""
    people: dict[int, int] = dict(tx.all("SELECT user_nid, hours FROM active_people WHERE day = ?", day))
    for (of_day, user_nid), hours in (others or {}).items():
        if of_day == day:
            people[user_nid] = people.get(user_nid, 0) | hours
    counts = dict.fromkeys(range(24), 0)
    for hours in people.values():
        for hour in counts:
            counts[hour] += hours >> hour & 1
    return counts


def list_hourly(tx: Transaction, begin: int, end: int) -> dict[tuple[int, str], int]:
    """Returns the figures of the hours begin ≤ hour < end, by hour and name."""
    rows = tx.all("SELECT hour, name, amount FROM hourly_figures WHERE hour >= ? AND hour < ?", begin, end)
    return {(hour, name): int(amount) for hour, name, amount in rows}


def list_daily(tx: Transaction, begin: int, end: int) -> dict[tuple[int, str], int]:
    """Returns the figures of the days begin ≤ day < end, by day and name."""
    rows = tx.all("SELECT day, name, amount FROM daily_figures WHERE day >= ? AND day < ?", begin, end)
    return {(day, name): int(amount) for day, name, amount in rows}


def list_peers(tx: Transaction, begin: int, end: int) -> dict[str, Peer]:
    """Returns the figures of other servers for the days begin ≤ day < end; under "" what was counted as one."""
    rows = tx.all(
        "SELECT server_nid, SUM(received), SUM(sent) FROM peer_figures WHERE day >= ? AND day < ? GROUP BY server_nid",
        begin, end,
    )  # fmt: skip
    names = tx.names({row[0] for row in rows if row[0]})
    return {names.get(nid, ""): Peer(int(received), int(sent)) for nid, received, sent in rows}


def percentiles(classes: Mapping[int, int], shares: Iterable[float]) -> list[int | None]:
    """Returns the delivery times in ms below which these shares of all lie, from the number of them in each class."""
    total = sum(classes.values())
    found: list[int | None] = []
    for share in shares:
        rest = math.ceil(total * share)
        middle: int | None = None
        for number in sorted(classes):
            rest -= classes[number]
            if rest <= 0:
                middle = middle_of(number) if total else None
                break
        found.append(middle)
    return found


def forget_figures(tx: Transaction, user_id: UserID, erase: bool) -> bool:
    """Puts a number that stands for nobody in the place of a user. The figures stay what they are."""
    user_nid = tx.find(user_id)
    (first,), (last,) = tx.values("SELECT MIN(day) FROM active_people"), tx.values("SELECT MAX(day) FROM active_people")
    if user_nid is None or first is None:
        return False
    # Day by day, because there is no index by user: it would cost more than it is worth.
    rows = tx.all_in(
        "SELECT day FROM active_people WHERE day IN (?*) AND user_nid = ?", range(first, last + 1), user_nid
    )
    nobody = -secrets.randbits(62) - 1
    tx.many(
        "UPDATE active_people SET user_nid = ? WHERE day = ? AND user_nid = ?",
        [(nobody, day, user_nid) for (day,) in rows],
    )
    return False
