"""One-time and fallback keys: each one-time key is issued to one claimant, once.

Theory of operation. A device uploads one-time keys. A claim deletes the key that was uploaded first and returns it, in
one statement of one write, so no other claim can get it: writes are serialised, also between nodes. When a device has
none left, the claim returns its fallback key of that algorithm and marks it as used, which the device is shown in its
next sync. It replaces the key then, and a new fallback key is unused again.

A client repeats an upload whose answer was lost. Keys that were issued in between must not come back, so the digests
of issued keys are remembered for a while, and keys with these digests are accepted, but not stored.

After a restore from a backup, keys that were issued since the backup are there again. We know of the restore only once
the device syncs with a token of the lost history. Then the keys from before the restore are deleted, and the device,
which is told that it has none, uploads new ones.

Counts are part of every sync of the device, so each change of them wakes the user.

Spec: client-server-api/#one-time-and-fallback-keys
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence

import msgspec
import orjson

from homeserver import limits
from homeserver.database import Schema, Step, Transaction
from homeserver.database.generations import get_beginning
from homeserver.encoding import is_intact, to_json
from homeserver.errors import MatrixError, invalid_param
from homeserver.federation.identifiers import UserID
from homeserver.federation.signed_keys import OneTimeKey

# uploaded: the position of the upload, which orders keys. digest: of the key itself, whatever it is called.
SCHEMA = Schema(
    "one_time_keys",
    (
        Step(
            "001_create",
            """
            CREATE TABLE one_time_keys (
                user_nid INTEGER NOT NULL,
                device_id TEXT NOT NULL,
                algorithm TEXT NOT NULL,
                key_id TEXT NOT NULL,
                uploaded INTEGER NOT NULL,
                digest BLOB NOT NULL,
                key BLOB NOT NULL,
                PRIMARY KEY (user_nid, device_id, algorithm, key_id)
            ) WITHOUT ROWID;
            CREATE INDEX one_time_keys_by_upload ON one_time_keys (user_nid, device_id, algorithm, uploaded, key_id);
            CREATE TABLE issued_one_time_keys (
                user_nid INTEGER NOT NULL,
                device_id TEXT NOT NULL,
                digest BLOB NOT NULL,
                position INTEGER NOT NULL,
                PRIMARY KEY (user_nid, device_id, digest)
            ) WITHOUT ROWID;
            CREATE TABLE fallback_keys (
                user_nid INTEGER NOT NULL,
                device_id TEXT NOT NULL,
                algorithm TEXT NOT NULL,
                key_id TEXT NOT NULL,
                is_used INTEGER NOT NULL,
                key BLOB NOT NULL,
                PRIMARY KEY (user_nid, device_id, algorithm)
            ) WITHOUT ROWID;
            """,
        ),
        Step(
            "002_claims",
            """
            CREATE INDEX issued_one_time_keys_by_position ON issued_one_time_keys (position);
            -- used_position: when the key was first issued; 0 if it was not, or before this step.
            ALTER TABLE fallback_keys ADD COLUMN used_position INTEGER NOT NULL DEFAULT 0;
            CREATE INDEX fallback_keys_by_use ON fallback_keys (used_position) WHERE used_position > 0;
            """,
        ),
    ),
)

ALWAYS_COUNTED = "signed_curve25519"
"""The algorithm of Olm. Clients upload keys only if they are told that there are none: absence tells them nothing."""


class KeyCounts(msgspec.Struct, frozen=True):
    """What a device has left: one-time keys by algorithm, and the algorithms of its unused fallback keys."""

    one_time: dict[str, int] = msgspec.field(default_factory=dict)
    unused_fallback: list[str] = msgspec.field(default_factory=list)


class Claim(msgspec.Struct, frozen=True):
    """A claim of one key of an algorithm, of a device of this server."""

    user_id: UserID
    device_id: str
    algorithm: str


class IssuedKey(msgspec.Struct, frozen=True):
    """The answer to a claim. key: JSON."""

    claim: Claim
    name: str
    key: bytes


def count_keys(tx: Transaction, user_id: UserID, device_id: str) -> KeyCounts:
    """Returns what the device has left. The algorithm of Olm is always counted."""
    counts = KeyCounts({ALWAYS_COUNTED: 0})
    nid = tx.find(user_id)
    for algorithm, count, is_fallback in tx.all(
        "SELECT algorithm, COUNT(*), 0 FROM one_time_keys WHERE user_nid = ? AND device_id = ? GROUP BY algorithm"
        " UNION ALL SELECT algorithm, 0, 1 FROM fallback_keys WHERE user_nid = ? AND device_id = ? AND is_used = 0",
        nid, device_id, nid, device_id,
    ):  # fmt: skip
        if is_fallback:
            counts.unused_fallback.append(algorithm)
        else:
            counts.one_time[algorithm] = count
    return counts


def store_one_time_keys(tx: Transaction, user_id: UserID, device_id: str, keys: Sequence[OneTimeKey]) -> None:
    """Stores new one-time keys. Ignores those that are stored already, or were issued.

    Raises M_INVALID_PARAM if another key has the same ID, if a key has two IDs, or if there are too many.
    """
    if not keys:
        return
    nid = tx.intern(user_id)
    rows = tx.all(
        "SELECT algorithm, key_id, digest, key FROM one_time_keys WHERE user_nid = ? AND device_id = ?", nid, device_id
    )
    stored = {(algorithm, key_id): orjson.loads(key) for algorithm, key_id, _, key in rows}
    digests = {bytes(row[2]) for row in rows}
    issued = _list_issued(tx, nid, device_id)
    uploaded = tx.next_position(user_id)
    new = []
    for key in keys:
        name, digest = (key.algorithm, key.key_id), _digest(key)
        if digest in issued or (name in stored and stored[name] == key.content):
            continue
        if name in stored:
            raise invalid_param(f"The device has another one-time key called {key.algorithm}:{key.key_id}.")
        if digest in digests:
            raise invalid_param(f"The device has the one-time key {key.algorithm}:{key.key_id} under another ID.")
        digests.add(digest)
        new.append((nid, device_id, key.algorithm, key.key_id, uploaded, digest, _encode(key)))
    if len(rows) + len(new) > limits.encryption.ONE_TIME_KEYS_PER_DEVICE_MAX:
        most = limits.encryption.ONE_TIME_KEYS_PER_DEVICE_MAX
        raise invalid_param(f"A device may have at most {most} one-time keys on the server.")
    tx.many(
        "INSERT INTO one_time_keys (user_nid, device_id, algorithm, key_id, uploaded, digest, key)"
        " VALUES (?, ?, ?, ?, ?, ?, ?)",
        new,
    )


def store_fallback_keys(tx: Transaction, user_id: UserID, device_id: str, keys: Sequence[OneTimeKey]) -> None:
    """Stores fallback keys, replacing the earlier one of the same algorithm. A repeated upload changes nothing.

    Raises M_INVALID_PARAM if there are two keys of an algorithm, or too many algorithms.
    """
    if not keys:
        return
    nid = tx.intern(user_id)
    stored = {
        algorithm: (key_id, orjson.loads(key))
        for algorithm, key_id, key in tx.all(
            "SELECT algorithm, key_id, key FROM fallback_keys WHERE user_nid = ? AND device_id = ?", nid, device_id
        )
    }
    algorithms = [key.algorithm for key in keys]
    if len(set(algorithms)) < len(algorithms):
        raise invalid_param("There may be only one fallback key of each algorithm.")
    if len(stored.keys() | set(algorithms)) > limits.encryption.FALLBACK_KEYS_PER_DEVICE_MAX:
        most = limits.encryption.FALLBACK_KEYS_PER_DEVICE_MAX
        raise invalid_param(f"A device may have at most {most} fallback keys.")
    for key in keys:
        if stored.get(key.algorithm) == (key.key_id, key.content):
            continue
        tx.run(
            "INSERT INTO fallback_keys (user_nid, device_id, algorithm, key_id, is_used, key)"
            " VALUES (?, ?, ?, ?, 0, ?) ON CONFLICT (user_nid, device_id, algorithm)"
            " DO UPDATE SET key_id = excluded.key_id, is_used = 0, used_position = 0, key = excluded.key",
            nid, device_id, key.algorithm, key.key_id, _encode(key),
        )  # fmt: skip
    tx.wake(user_id)


def issue_keys(tx: Transaction, claims: Iterable[Claim]) -> list[IssuedKey]:
    """Issues a key for each claim, in their order: a one-time key, else the fallback key. Leaves out the others.

    Keys that are damaged are not issued.
    """
    issued = (_delete_first_key(tx, claim) or _find_fallback_key(tx, claim) for claim in claims)
    # A key that is not signed is a string.
    return [each for each in issued if each is not None and is_intact(each.key, "one-time key", b'{"')]


def list_claimed(tx: Transaction, since: int, upto: int) -> set[tuple[UserID, str]]:
    """Returns the user and ID of each device of which a key was issued in since < position ≤ upto.

    A fallback key counts only the first time.
    """
    rows = tx.all(
        "SELECT user_nid, device_id FROM issued_one_time_keys WHERE position > ? AND position <= ?"
        " UNION SELECT user_nid, device_id FROM fallback_keys"
        " WHERE used_position > 0 AND used_position > ? AND used_position <= ?",
        since, upto, since, upto,
    )  # fmt: skip
    names = tx.names({nid for nid, _ in rows})
    return {(UserID(names[nid]), device_id) for nid, device_id in rows}


def delete_one_time_keys(tx: Transaction, user_id: UserID, device_id: str) -> None:
    """Deletes all one-time and fallback keys of a device: it is being deleted, or has new identity keys."""
    nid = tx.find(user_id)
    if nid is not None:
        tx.run("DELETE FROM one_time_keys WHERE user_nid = ? AND device_id = ?", nid, device_id)
        tx.run("DELETE FROM fallback_keys WHERE user_nid = ? AND device_id = ?", nid, device_id)
        tx.run("DELETE FROM issued_one_time_keys WHERE user_nid = ? AND device_id = ?", nid, device_id)
        tx.wake(user_id)


def has_restored_keys(tx: Transaction, user_id: UserID, device_id: str) -> bool:
    """Returns whether the device has one-time keys that may come from a backup. Ask only if there was a restore."""
    return bool(
        tx.one(
            "SELECT 1 FROM one_time_keys WHERE user_nid = ? AND device_id = ? AND uploaded <= ? LIMIT 1",
            tx.find(user_id), device_id, get_beginning(tx),
        )
    )  # fmt: skip


def delete_restored_keys(tx: Transaction, user_id: UserID, device_id: str) -> None:
    """Deletes the one-time keys of a device that may come from a backup, and may have been issued since."""
    tx.run(
        "DELETE FROM one_time_keys WHERE user_nid = ? AND device_id = ? AND uploaded <= ?",
        tx.find(user_id), device_id, get_beginning(tx),
    )  # fmt: skip
    tx.wake(user_id)


def _delete_first_key(tx: Transaction, claim: Claim) -> IssuedKey | None:
    """Deletes and returns the one-time key that was uploaded first. Remembers that it was issued."""
    nid = tx.find(claim.user_id)
    rows = tx.all(
        "DELETE FROM one_time_keys WHERE user_nid = ? AND device_id = ? AND algorithm = ? AND key_id = ("
        "SELECT key_id FROM one_time_keys WHERE user_nid = ? AND device_id = ? AND algorithm = ?"
        " ORDER BY uploaded, key_id LIMIT 1) RETURNING key_id, digest, key",
        nid, claim.device_id, claim.algorithm, nid, claim.device_id, claim.algorithm,
    )  # fmt: skip
    if not rows:
        return None
    ((key_id, digest, key),) = rows
    tx.run(
        "INSERT INTO issued_one_time_keys (user_nid, device_id, digest, position) VALUES (?, ?, ?, ?)",
        nid, claim.device_id, digest, tx.next_position(claim.user_id),
    )  # fmt: skip
    return IssuedKey(claim, f"{claim.algorithm}:{key_id}", key)


def _find_fallback_key(tx: Transaction, claim: Claim) -> IssuedKey | None:
    row = tx.one(
        "SELECT key_id, key, is_used FROM fallback_keys WHERE user_nid = ? AND device_id = ? AND algorithm = ?",
        tx.find(claim.user_id), claim.device_id, claim.algorithm,
    )  # fmt: skip
    if row is None:
        return None
    key_id, key, is_used = row
    if not is_used:
        _set_used(tx, claim)
    return IssuedKey(claim, f"{claim.algorithm}:{key_id}", key)


def _set_used(tx: Transaction, claim: Claim) -> None:
    tx.run(
        "UPDATE fallback_keys SET is_used = 1, used_position = ?"
        " WHERE user_nid = ? AND device_id = ? AND algorithm = ?",
        tx.next_position(claim.user_id), tx.find(claim.user_id), claim.device_id, claim.algorithm,
    )  # fmt: skip


def _list_issued(tx: Transaction, nid: int, device_id: str) -> set[bytes]:
    """Returns the digests of the device's issued keys that are remembered. Forgets the oldest if there are too many."""
    rows = tx.all(
        "SELECT digest, position FROM issued_one_time_keys WHERE user_nid = ? AND device_id = ? ORDER BY position DESC",
        nid, device_id,
    )  # fmt: skip
    most = limits.encryption.ISSUED_KEYS_REMEMBERED_MAX
    if len(rows) > most:
        _delete_issued(tx, nid, device_id, rows[most][1])
    return {bytes(digest) for digest, _ in rows[:most]}


def _delete_issued(tx: Transaction, nid: int, device_id: str, upto: int) -> None:
    tx.run(
        "DELETE FROM issued_one_time_keys WHERE user_nid = ? AND device_id = ? AND position <= ?",
        nid, device_id, upto,
    )  # fmt: skip


def _digest(key: OneTimeKey) -> bytes:
    return hashlib.sha256(f"{key.algorithm}\0{key.public_key.rstrip('=')}".encode()).digest()[:16]


def _encode(key: OneTimeKey) -> bytes:
    encoded = to_json(key.content)
    if len(encoded) > limits.encryption.ONE_TIME_KEY_BYTES_MAX:
        most = limits.encryption.ONE_TIME_KEY_BYTES_MAX
        raise MatrixError(400, "M_TOO_LARGE", f"A one-time key may have at most {most} bytes.")
    return encoded
