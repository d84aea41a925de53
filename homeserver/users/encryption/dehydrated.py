"""Dehydrated devices: one device of a user that nobody uses, but that receives keys while the user has no other.

It is a device like any other, with keys and an inbox. Beside it the user stores the private keys, encrypted. A new
client takes them to read the messages that have come, and then makes a dehydrated device of its own.

Spec: MSC3814
"""

from __future__ import annotations

import msgspec
import orjson

from homeserver.database import Schema, Step, Transaction
from homeserver.encoding import to_json
from homeserver.feature import JsonObject
from homeserver.federation.identifiers import UserID

SCHEMA = Schema(
    "dehydrated_devices",
    (
        Step(
            "001_create",
            """
            CREATE TABLE dehydrated_devices (
                user_nid INTEGER PRIMARY KEY,
                device_id TEXT NOT NULL,
                device_data BLOB NOT NULL
            );
            """,
        ),
    ),
)


class Dehydrated(msgspec.Struct, frozen=True):
    """A dehydrated device. device_data: its private keys, as the client has encrypted them."""

    device_id: str
    device_data: JsonObject


def find_dehydrated(tx: Transaction, user_id: UserID) -> Dehydrated | None:
    """Returns the user's dehydrated device, None if there is none."""
    row = tx.one("SELECT device_id, device_data FROM dehydrated_devices WHERE user_nid = ?", tx.find(user_id))
    return None if row is None else Dehydrated(row[0], orjson.loads(row[1]))


def store_dehydrated(tx: Transaction, user_id: UserID, device: Dehydrated) -> None:
    """Stores which device is the user's dehydrated one, and its data."""
    tx.run(
        "INSERT INTO dehydrated_devices (user_nid, device_id, device_data) VALUES (?, ?, ?) ON CONFLICT (user_nid)"
        " DO UPDATE SET device_id = excluded.device_id, device_data = excluded.device_data",
        tx.intern(user_id), device.device_id, to_json(device.device_data),
    )  # fmt: skip


def delete_dehydrated(tx: Transaction, user_id: UserID, device_id: str) -> None:
    """Deletes the data of a device that is being deleted, if it is the dehydrated one."""
    tx.run("DELETE FROM dehydrated_devices WHERE user_nid = ? AND device_id = ?", tx.find(user_id), device_id)
