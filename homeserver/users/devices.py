"""Devices: the clients on which a user is logged in. Spec: client-server-api/#device-management

Each change of a device is noted for `encryption/device_lists.py` in the same write.
"""

from __future__ import annotations

import secrets
import string
from collections.abc import Collection
from typing import Any

import msgspec
from msgspec.structs import replace

from homeserver import authenticate, limits
from homeserver.database import Schema, Step, Transaction
from homeserver.errors import MatrixError, invalid_param
from homeserver.feature import JsonObject
from homeserver.federation.identifiers import UserID
from homeserver.process.token_cache import Seen, TokenCache
from homeserver.users.encryption.cross_signing import has_cross_signing_key
from homeserver.users.encryption.dehydrated import delete_dehydrated
from homeserver.users.encryption.device_keys import delete_device_keys
from homeserver.users.encryption.device_lists import note_device_created, note_device_list_changed
from homeserver.users.encryption.inbox import forget_inbox
from homeserver.users.encryption.one_time_keys import delete_one_time_keys
from homeserver.users.oauth.sessions import delete_session
from homeserver.users.page_sessions import forget_page_sessions
from homeserver.users.push.pushers import delete_pushers_of_device
from homeserver.users.sync_connections import forget_connections

SCHEMA = Schema(
    "devices",
    (
        Step(
            "create",
            """
            CREATE TABLE devices (
                user_nid INTEGER NOT NULL,
                device_id TEXT NOT NULL,
                display_name TEXT,
                created_ms INTEGER NOT NULL,
                last_seen_ms INTEGER,
                last_seen_ip TEXT,
                user_agent TEXT,
                PRIMARY KEY (user_nid, device_id)
            ) WITHOUT ROWID;
            CREATE TABLE device_changes (
                user_nid INTEGER NOT NULL,
                device_id TEXT NOT NULL,
                position INTEGER NOT NULL,
                change INTEGER NOT NULL,
                PRIMARY KEY (user_nid, device_id)
            ) WITHOUT ROWID;
            CREATE INDEX device_changes_position ON device_changes (position);
            """,
        ),
        Step("002_without_changes", "DROP TABLE device_changes;"),
    ),
)


class Device(msgspec.Struct, frozen=True):
    """A device as stored. last_seen_ms and last_seen_ip may be up to a minute old."""

    user_id: UserID
    device_id: str
    display_name: str | None
    created_ms: int
    last_seen_ms: int | None
    last_seen_ip: str | None
    user_agent: str | None

    def body(self) -> JsonObject:
        """Returns the device as the API shows it to its owner."""
        body: JsonObject = {"device_id": self.device_id}
        if self.display_name is not None:
            body["display_name"] = self.display_name
        if self.last_seen_ms is not None:
            body["last_seen_ts"] = self.last_seen_ms
        if self.last_seen_ip:
            body["last_seen_ip"] = self.last_seen_ip
        return body

    def session(self) -> JsonObject:
        """Returns the device's only session, as `/admin/whois` shows it."""
        seen = {"ip": self.last_seen_ip, "last_seen": self.last_seen_ms, "user_agent": self.user_agent}
        connection = {name: value for name, value in seen.items() if value is not None}
        return {"connections": [connection] if connection else []}


def with_last_seen(device: Device, cache: TokenCache[Any]) -> Device:
    """Returns the device, updated with a last-seen time that is not stored yet."""
    seen = cache.last_seen(device.user_id, device.device_id)
    if seen is None:
        return device
    return replace(device, last_seen_ms=seen.ts_ms, last_seen_ip=seen.ip, user_agent=seen.user_agent)


# --- logging in ---


def check_device_id(device_id: str | None) -> None:
    """Raises M_INVALID_PARAM if the text is not a valid device ID."""
    if device_id is None:
        return
    try:
        size_bytes = len(device_id.encode())
    except UnicodeEncodeError:
        size_bytes = 0
    if not 0 < size_bytes <= limits.DEVICE_ID_BYTES_MAX or not device_id.isprintable():
        raise invalid_param(f"A device_id must be 1 to {limits.DEVICE_ID_BYTES_MAX} bytes of printable text.")


def new_device_id() -> str:
    """Returns a random device ID with 47 random bits."""
    return "".join(secrets.choice(string.ascii_uppercase) for _ in range(10))


def log_in(
    tx: Transaction,
    user_id: UserID,
    device_id: str | None,
    display_name: str | None,
    refreshable: bool,
) -> JsonObject:
    """Returns tokens for a device of the user, as `/login` and `/register` return them. Creates the device if needed.

    The existing tokens of a known device end. `display_name` is for a new device only, and is cut if it is too long.
    """
    if device_id is not None and find_device(tx, user_id, device_id) is not None:
        authenticate.delete_tokens_of_device(tx, user_id, device_id)
        delete_session(tx, user_id, device_id)
    else:
        device_id = device_id or new_device_id()
        name = display_name[: limits.DEVICE_NAME_CHARACTERS_MAX] if display_name else None
        create_device(tx, user_id, device_id, name)
    tokens = authenticate.create_tokens(tx, user_id, device_id, refreshable=refreshable)
    return {"user_id": user_id, "device_id": device_id, **tokens.body()}


# --- storage ---


def create_device(tx: Transaction, user_id: UserID, device_id: str, display_name: str | None) -> None:
    """Stores a new device.

    Raises M_USER_LIMIT_EXCEEDED if the user has too many, M_INVALID_PARAM if the ID is that of a cross-signing key.
    """
    nid = tx.intern(user_id)
    if has_cross_signing_key(tx, user_id, device_id):
        raise invalid_param("The device_id is the ID of one of the user's cross-signing keys.")
    (count,) = tx.one("SELECT COUNT(*) FROM devices WHERE user_nid = ?", nid) or (0,)
    if count >= limits.DEVICES_PER_USER_MAX:
        raise MatrixError(
            403, "M_USER_LIMIT_EXCEEDED", "The account has too many devices. Log some of them out.",
            info_uri=tx.server.config.base_url,
        )  # fmt: skip
    tx.run(
        "INSERT INTO devices (user_nid, device_id, display_name, created_ms) VALUES (?, ?, ?, ?)",
        nid, device_id, display_name, tx.now_ms,
    )  # fmt: skip
    note_device_created(tx, user_id, device_id)


def find_device(tx: Transaction, user_id: UserID, device_id: str) -> Device | None:
    """Returns the device, None if the user has none with that ID."""
    row = tx.one(
        "SELECT device_id, display_name, created_ms, last_seen_ms, last_seen_ip, user_agent FROM devices"
        " WHERE user_nid = ? AND device_id = ?",
        tx.find(user_id), device_id,
    )  # fmt: skip
    return Device(user_id, *row) if row else None


def list_devices(tx: Transaction, user_id: UserID) -> list[Device]:
    """Returns all devices of the user, sorted by ID."""
    rows = tx.all(
        "SELECT device_id, display_name, created_ms, last_seen_ms, last_seen_ip, user_agent FROM devices"
        " WHERE user_nid = ? ORDER BY device_id",
        tx.find(user_id),
    )
    return [Device(user_id, *row) for row in rows]


def count_devices(tx: Transaction, user_ids: Collection[UserID]) -> int:
    """Returns how many devices these users have, all together."""
    rows = tx.all_in(
        "SELECT user_nid, COUNT(*) FROM devices WHERE user_nid IN (?*) GROUP BY user_nid",
        list(tx.find_all(user_ids).values()),
    )
    return sum(int(count) for _, count in rows)


def list_device_names(tx: Transaction, user_ids: Collection[UserID]) -> dict[UserID, dict[str, str]]:
    """Returns the names of these users' devices by device ID. Devices and users without a name are left out."""
    by_nid = {nid: UserID(user_id) for user_id, nid in tx.find_all(user_ids).items()}
    found: dict[UserID, dict[str, str]] = {}
    for nid, device_id, name in tx.all_in(
        "SELECT user_nid, device_id, display_name FROM devices WHERE user_nid IN (?*) AND display_name IS NOT NULL",
        by_nid,
    ):
        found.setdefault(by_nid[nid], {})[device_id] = name
    return found


def set_display_name(tx: Transaction, user_id: UserID, device_id: str, display_name: str) -> None:
    """Replaces the name of a device."""
    tx.run(
        "UPDATE devices SET display_name = ? WHERE user_nid = ? AND device_id = ?",
        display_name, tx.find(user_id), device_id,
    )  # fmt: skip
    note_device_list_changed(tx, user_id, [device_id])


def delete_devices_of_user(
    tx: Transaction,
    user_id: UserID,
    device_ids: list[str] | None = None,
    *,
    except_device_id: str | None = None,
) -> None:
    """Logs out and removes devices: all of the user's if no IDs are given. Ignores unknown IDs."""
    known = tx.values("SELECT device_id FROM devices WHERE user_nid = ?", tx.find(user_id))
    wanted = set(known if device_ids is None else device_ids) - {except_device_id}
    ended = [device_id for device_id in known if device_id in wanted]
    for device_id in ended:
        authenticate.delete_tokens_of_device(tx, user_id, device_id)
        delete_session(tx, user_id, device_id)
        tx.run("DELETE FROM devices WHERE user_nid = ? AND device_id = ?", tx.find(user_id), device_id)
        delete_device_keys(tx, user_id, device_id)
        delete_one_time_keys(tx, user_id, device_id)
        forget_inbox(tx, user_id, device_id)
        delete_pushers_of_device(tx, user_id, device_id)
        forget_connections(tx, user_id, device_id)
        delete_dehydrated(tx, user_id, device_id)
    if ended:
        note_device_list_changed(tx, user_id, ended)


def log_out_everywhere(
    tx: Transaction, user_id: UserID, *, except_device_id: str | None = None, except_page_session: str | None = None
) -> None:
    """Logs a user out of all devices and browsers, except the given ones, and removes the devices.

    The tokens with which an administrator acts for others end too.
    """
    authenticate.delete_tokens_of_user(tx, user_id, except_device_id=except_device_id)
    authenticate.delete_tokens_issued_by(tx, user_id)
    delete_devices_of_user(tx, user_id, except_device_id=except_device_id)
    forget_page_sessions(tx, user_id, except_token=except_page_session)


def forget_devices(tx: Transaction, user_id: UserID, erase: bool) -> bool:
    """Deletes all devices and their tokens. Their deletion stays recorded for other servers' device lists."""
    delete_devices_of_user(tx, user_id)
    return False


def store_seen(tx: Transaction, seen: dict[tuple[str, str], Seen]) -> None:
    """Stores when devices were last seen. Ignores devices that no longer exist."""
    tx.many(
        "UPDATE devices SET last_seen_ms = ?, last_seen_ip = ?, user_agent = ? WHERE user_nid = ? AND device_id = ?",
        [
            (each.ts_ms, each.ip, each.user_agent, tx.find(user_id), device_id)
            for (user_id, device_id), each in seen.items()
        ],
    )
