"""A made-up feature that takes part in sync in every way there is: each user gets parcels, and has stamps.

Parcels are for one device, are told as to-device messages until the device acknowledges them, and wake their user. The
number of stamps is always told. So are the notches of each room, as its count of notifications.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeVar

from homeserver.database import Schema, Step, Transaction
from homeserver.feature import BeforeSync, Feature, SyncContext, SyncStart
from homeserver.federation.identifiers import RoomID, UserID

SCHEMA = Schema(
    "parcels",
    (
        Step(
            "create",
            """
            CREATE TABLE parcels (user_nid INTEGER NOT NULL, device_id TEXT NOT NULL, position INTEGER NOT NULL);
            CREATE TABLE stamps (user_nid INTEGER PRIMARY KEY, number INTEGER NOT NULL);
            CREATE TABLE notches (room_nid INTEGER PRIMARY KEY, number INTEGER NOT NULL, position INTEGER NOT NULL);
            """,
        ),
    ),
)

T = TypeVar("T")


def send_parcel(tx: Transaction, user_id: UserID, device_id: str) -> None:
    tx.run("INSERT INTO parcels VALUES (?, ?, ?)", tx.intern(user_id), device_id, tx.next_position(user_id))


def set_stamps(tx: Transaction, user_id: UserID, number: int) -> None:
    tx.run(
        "INSERT INTO stamps VALUES (?, ?) ON CONFLICT (user_nid) DO UPDATE SET number = excluded.number",
        tx.intern(user_id),
        number,
    )
    tx.next_position(user_id)


def cut_notches(tx: Transaction, room_id: RoomID, number: int) -> None:
    tx.run(
        "INSERT INTO notches VALUES (?, ?, ?) ON CONFLICT (room_nid) DO UPDATE SET number = excluded.number,"
        " position = excluded.position",
        tx.intern(room_id),
        number,
        tx.next_position(room_id),
    )


def count_parcels(tx: Transaction) -> int:
    (number,) = tx.values("SELECT COUNT(*) FROM parcels")
    return number


@dataclass
class Parcels:
    """The feature, and what it was asked: the transactions, in order, and the last context.

    idle_ms: for how long it says that it will have nothing to write.
    """

    asked: list[tuple[str, Transaction]] = field(default_factory=list)
    contexts: list[SyncContext] = field(default_factory=list)
    idle_ms: int = 0

    def feature(self) -> Feature:
        return Feature(
            name="parcels",
            spec="client-server-api/#made-up",
            schema=SCHEMA,
            before_sync=BeforeSync(
                self._noting("is_due", _has_acknowledged),
                self._noting("write", _acknowledge),
                lambda tx, start: self.idle_ms,
            ),
            sync=self._noting("sync", self._sync),
            sync_always=self._noting("sync_always", _sync_always),
        )

    def names_asked(self) -> list[str]:
        """Returns the names of the questions asked since the last call."""
        names = [name for name, _ in self.asked]
        self.asked.clear()
        return names

    def _noting(self, name: str, fn: Callable[[Transaction, T], object]) -> Callable[[Transaction, T], object]:
        def noting(tx: Transaction, about: T) -> object:
            self.asked.append((name, tx))
            return fn(tx, about)

        return noting

    def _sync(self, tx: Transaction, context: SyncContext) -> None:
        self.contexts.append(context)
        parcels = tx.values(
            "SELECT position FROM parcels WHERE user_nid = ? AND device_id = ? AND position > ? AND position <= ?",
            tx.find(context.user_id), context.device_id, context.since, context.upto,
        )  # fmt: skip
        context.to_device += [
            {"type": "org.example.parcel", "sender": "@post:test.example", "content": {"number": number}}
            for number in parcels
        ]


def _has_acknowledged(tx: Transaction, start: SyncStart) -> bool:
    found = tx.one(
        "SELECT 1 FROM parcels WHERE user_nid = ? AND device_id = ? AND position <= ? LIMIT 1",
        tx.find(start.user_id), start.device_id, start.since,
    )  # fmt: skip
    return found is not None


def _acknowledge(tx: Transaction, start: SyncStart) -> None:
    tx.run(
        "DELETE FROM parcels WHERE user_nid = ? AND device_id = ? AND position <= ?",
        tx.find(start.user_id), start.device_id, start.since,
    )  # fmt: skip


def _sync_always(tx: Transaction, context: SyncContext) -> None:
    stamps = tx.values("SELECT number FROM stamps WHERE user_nid = ?", tx.find(context.user_id))
    context.always["org.example.stamps"] = sum(stamps)
    for room_id, section in context.rooms.items():
        row = tx.one("SELECT number, position FROM notches WHERE room_nid = ?", tx.find(room_id)) or (0, 0)
        if room_id in context.rooms_told or row[1] > section.since:
            section.unread_notifications = {"notification_count": row[0], "highlight_count": 0}
