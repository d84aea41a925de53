"""Device keys: the identity keys of the devices of this server's users. Spec: client-server-api/#device-keys

They are stored as the JSON that others are shown, with the signatures of the device and of its owner's self-signing
key. Both are for everyone to see, so an answer needs nothing but these bytes and the device's name.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

import orjson

from homeserver import limits
from homeserver.database import Schema, Step, Transaction
from homeserver.encoding import is_intact, to_json
from homeserver.errors import MatrixError
from homeserver.feature import JsonObject
from homeserver.federation.identifiers import UserID
from homeserver.federation.signing import ALGORITHM
from homeserver.users.encryption.device_lists import note_device_list_changed

SCHEMA = Schema(
    "device_keys",
    (
        Step(
            "001_create",
            """
            CREATE TABLE device_keys (
                user_nid INTEGER NOT NULL,
                device_id TEXT NOT NULL,
                keys BLOB NOT NULL,
                PRIMARY KEY (user_nid, device_id)
            ) WITHOUT ROWID;
            """,
        ),
    ),
)


def find_device_keys(tx: Transaction, user_id: UserID, device_id: str) -> JsonObject | None:
    """Returns the keys of a device with their signatures, None if it has none."""
    row = tx.one("SELECT keys FROM device_keys WHERE user_nid = ? AND device_id = ?", tx.find(user_id), device_id)
    return None if row is None else orjson.loads(row[0])


def find_signing_key(tx: Transaction, user_id: UserID, device_id: str) -> str | None:
    """Returns the Ed25519 key of a device in base64, None if it has no keys."""
    content = find_device_keys(tx, user_id, device_id)
    return None if content is None else content["keys"][f"{ALGORITHM}:{device_id}"]


def list_device_keys(tx: Transaction, user_ids: Collection[UserID]) -> dict[UserID, dict[str, bytes]]:
    """Returns the keys of all devices of these users by device ID, as JSON.

    Users without keys are left out, and so are keys that are damaged.
    """
    by_nid: dict[int, UserID] = {nid: UserID(user_id) for user_id, nid in tx.find_all(user_ids).items()}
    found: dict[UserID, dict[str, bytes]] = {}
    for nid, device_id, keys in tx.all_in(
        "SELECT user_nid, device_id, keys FROM device_keys WHERE user_nid IN (?*) ORDER BY user_nid, device_id", by_nid
    ):
        if is_intact(keys, "device keys"):
            found.setdefault(by_nid[nid], {})[device_id] = keys
    return found


def store_device_keys(tx: Transaction, user_id: UserID, device_id: str, content: Mapping[str, object]) -> bool:
    """Stores the keys of a device, replacing its earlier ones. Returns whether they have changed.

    content: parsed, with the signatures to show. Raises M_TOO_LARGE.
    """
    keys = to_json(content)
    if len(keys) > limits.encryption.DEVICE_KEYS_BYTES_MAX:
        raise MatrixError(
            400, "M_TOO_LARGE", f"Device keys may have at most {limits.encryption.DEVICE_KEYS_BYTES_MAX} bytes."
        )
    if find_device_keys(tx, user_id, device_id) == content:
        return False
    tx.run(
        "INSERT INTO device_keys (user_nid, device_id, keys) VALUES (?, ?, ?)"
        " ON CONFLICT (user_nid, device_id) DO UPDATE SET keys = excluded.keys",
        tx.intern(user_id), device_id, keys,
    )  # fmt: skip
    note_device_list_changed(tx, user_id, [device_id])
    return True


def delete_device_keys(tx: Transaction, user_id: UserID, device_id: str) -> None:
    """Deletes the identity keys of a device that is being deleted."""
    tx.run("DELETE FROM device_keys WHERE user_nid = ? AND device_id = ?", tx.find(user_id), device_id)
