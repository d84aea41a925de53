"""Cross-signing keys, and the signatures that users make with them.

Theory of operation. A user has up to three keys: the master key, and the self-signing and user-signing keys that it
signs. Each is stored as the JSON that others are shown. Signatures lie where they are shown:

- Signatures that everyone may see are part of the signed object: those of a user's self-signing key on the user's own
  devices (`device_keys`), and those of devices on their user's master key.
- A signature of a user-signing key on another user's master key is only for the user who made it (`user_signatures`).
  It names the key that it is of and the key that it is by, and is shown as long as both are in use.

Every stored signature has been checked. When a key is replaced, the signatures by it are deleted, and a new master key
ends the keys that it has not signed.

Spec: client-server-api/#cross-signing, #key-and-signature-security
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping

import msgspec
import orjson

from homeserver import limits
from homeserver.database import Schema, Step, Transaction
from homeserver.encoding import is_intact, to_json
from homeserver.errors import MatrixError, invalid_param, missing_param, not_found
from homeserver.feature import JsonObject
from homeserver.federation.identifiers import UserID
from homeserver.federation.signed_keys import (
    CrossSigningKey,
    DeviceKeys,
    Usage,
    check_signed_by,
    signatures_by,
    with_signatures,
    without_signatures,
)
from homeserver.federation.signing import ALGORITHM, verify_json
from homeserver.users.encryption.device_keys import (
    find_device_keys,
    find_signing_key,
    list_device_keys,
    store_device_keys,
)
from homeserver.users.encryption.device_lists import note_device_list_changed
from homeserver.users.encryption.one_time_keys import delete_one_time_keys

SCHEMA = Schema(
    "cross_signing",
    (
        Step(
            "001_create",
            """
            CREATE TABLE cross_signing_keys (
                user_nid INTEGER NOT NULL,
                usage TEXT NOT NULL,
                public_key TEXT NOT NULL,
                key BLOB NOT NULL,
                PRIMARY KEY (user_nid, usage)
            ) WITHOUT ROWID;
            -- position: when the signature was made, for the syncs of the user who made it.
            CREATE TABLE user_signatures (
                signer_nid INTEGER NOT NULL,
                signed_user_nid INTEGER NOT NULL,
                signed_key TEXT NOT NULL,
                signing_key TEXT NOT NULL,
                signature TEXT NOT NULL,
                position INTEGER NOT NULL,
                PRIMARY KEY (signer_nid, signed_user_nid)
            ) WITHOUT ROWID;
            CREATE INDEX user_signatures_by_position ON user_signatures (signer_nid, position);
            CREATE INDEX user_signatures_of_user ON user_signatures (signed_user_nid);
            """,
        ),
    ),
)

USAGES: tuple[Usage, ...] = ("master", "self_signing", "user_signing")

KeysByUsage = dict[Usage, CrossSigningKey]


class UserSignature(msgspec.Struct, frozen=True):
    """A signature of the viewer's user-signing key on another user's master key `signed_key`."""

    signed_key: str
    signing_key: str
    signature: str


# --- keys ---


def find_cross_signing_keys(tx: Transaction, user_id: UserID) -> KeysByUsage:
    """Returns the user's keys by usage."""
    rows = tx.all("SELECT usage, public_key, key FROM cross_signing_keys WHERE user_nid = ?", tx.find(user_id))
    return {usage: CrossSigningKey(orjson.loads(key), public_key) for usage, public_key, key in rows}


def list_cross_signing_keys(
    tx: Transaction, user_ids: Collection[UserID]
) -> dict[UserID, dict[Usage, tuple[str, bytes]]]:
    """Returns the public key and the JSON of these users' keys, by usage. Leaves out keys that are damaged."""
    by_nid = {nid: UserID(user_id) for user_id, nid in tx.find_all(user_ids).items()}
    found: dict[UserID, dict[Usage, tuple[str, bytes]]] = {}
    for nid, usage, public_key, key in tx.all_in(
        "SELECT user_nid, usage, public_key, key FROM cross_signing_keys WHERE user_nid IN (?*)", by_nid
    ):
        if is_intact(key, "cross-signing key"):
            found.setdefault(by_nid[nid], {})[usage] = (public_key, key)
    return found


def has_cross_signing_key(tx: Transaction, user_id: UserID, public_key: str) -> bool:
    """Returns whether the user has a cross-signing key with this public key, which no device may have as its ID."""
    return bool(
        tx.one("SELECT 1 FROM cross_signing_keys WHERE user_nid = ? AND public_key = ?", tx.find(user_id), public_key)
    )


def has_new_keys(stored: Mapping[Usage, CrossSigningKey], given: Mapping[Usage, CrossSigningKey]) -> bool:
    """Returns whether any of the given keys differs from the stored one in what is signed."""
    return any(usage not in stored or not _is_same(stored[usage], key) for usage, key in given.items())


def check_cross_signing_keys(stored: Mapping[Usage, CrossSigningKey], given: Mapping[Usage, CrossSigningKey]) -> None:
    """Raises InvalidKeySignature if a key is not signed by the given master key, or by the stored one if none is given.

    Raises M_MISSING_PARAM if there is no master key.
    """
    master = given.get("master", stored.get("master"))
    if master is None:
        raise missing_param("There is no master signing key yet: upload one first, or together with the other keys.")
    for usage, key in given.items():
        if usage != "master":
            check_signed_by(key, str(key.content["user_id"]), master)


def store_cross_signing_keys(tx: Transaction, user_id: UserID, given: Mapping[Usage, CrossSigningKey]) -> None:
    """Stores keys that have been checked. Keys that were replaced take their signatures with them."""
    stored = find_cross_signing_keys(tx, user_id)
    ended = _changed(stored, given)
    if "master" in ended:
        ended |= stored.keys() - given.keys()
        tx.run("DELETE FROM user_signatures WHERE signed_user_nid = ?", tx.find(user_id))
    master = given["master"] if "master" in given else stored["master"]
    for usage in ended:
        tx.run("DELETE FROM cross_signing_keys WHERE user_nid = ? AND usage = ?", tx.find(user_id), usage)
    changed = set(ended)
    for usage, key in given.items():
        if usage == "master":
            key = _with_signatures_of_devices(tx, user_id, key, None if usage in ended else stored.get(usage))
        else:
            by_master = {master.key_id: signatures_by(key.content, user_id)[master.key_id]}
            key = CrossSigningKey(with_signatures(key.content, {user_id: by_master}), key.public_key)
        if _store_key(tx, user_id, usage, key):
            changed.add(usage)
    if "user_signing" in ended:
        tx.run("DELETE FROM user_signatures WHERE signer_nid = ?", tx.find(user_id))
    if "self_signing" in ended:
        _remove_signatures_by(tx, user_id, stored["self_signing"])
    if changed:
        note_device_list_changed(tx, user_id, signing_keys=changed != {"user_signing"})


def store_uploaded_keys(tx: Transaction, user_id: UserID, device_id: str, keys: DeviceKeys) -> None:
    """Stores the identity keys that a device has uploaded, with the signatures that everyone may see.

    One-time keys that an earlier identity of the device has signed are deleted, because nobody can use them any more.
    """
    own_key_id = f"{ALGORITHM}:{device_id}"
    before = find_device_keys(tx, user_id, device_id)
    given = signatures_by(keys.content, user_id)
    signatures = {own_key_id: given[own_key_id]}
    if before is not None and without_signatures(before) == without_signatures(keys.content):
        signatures = {**signatures_by(before, user_id), **signatures}
    elif before is not None and before["keys"][own_key_id] != keys.ed25519:
        delete_one_time_keys(tx, user_id, device_id)
    self_signing = find_cross_signing_keys(tx, user_id).get("self_signing")
    if self_signing is not None and _is_signed(keys.content, user_id, self_signing):
        signatures[self_signing.key_id] = given[self_signing.key_id]
    store_device_keys(tx, user_id, device_id, with_signatures(keys.content, {user_id: signatures}))


def forget_cross_signing(tx: Transaction, user_id: UserID) -> None:
    """Deletes the user's keys, and all signatures by and on them."""
    nid = tx.find(user_id)
    if tx.run("DELETE FROM cross_signing_keys WHERE user_nid = ?", nid):
        note_device_list_changed(tx, user_id, signing_keys=True)
    tx.run("DELETE FROM user_signatures WHERE signer_nid = ? OR signed_user_nid = ?", nid, nid)


def _store_key(tx: Transaction, user_id: UserID, usage: Usage, key: CrossSigningKey) -> bool:
    """Returns whether the key or its signatures have changed. Raises M_TOO_LARGE."""
    encoded = to_json(key.content)
    if len(encoded) > limits.encryption.CROSS_SIGNING_KEY_BYTES_MAX:
        raise MatrixError(400, "M_TOO_LARGE", "The cross-signing key is too large, or has too many signatures.")
    before = find_cross_signing_keys(tx, user_id).get(usage)
    if before is not None and before.content == key.content:
        return False
    tx.run(
        "INSERT INTO cross_signing_keys (user_nid, usage, public_key, key) VALUES (?, ?, ?, ?)"
        " ON CONFLICT (user_nid, usage) DO UPDATE SET public_key = excluded.public_key, key = excluded.key",
        tx.intern(user_id), usage, key.public_key, encoded,
    )  # fmt: skip
    return True


def _with_signatures_of_devices(
    tx: Transaction, user_id: UserID, master: CrossSigningKey, before: CrossSigningKey | None
) -> CrossSigningKey:
    """Returns a master key with the valid signatures of the user's devices, and those that it had before."""
    signatures = {} if before is None else signatures_by(before.content, user_id)
    signatures |= _valid_signatures_of_devices(tx, user_id, master)
    return CrossSigningKey(with_signatures(master.content, {user_id: signatures}), master.public_key)


def _valid_signatures_of_devices(
    tx: Transaction, user_id: UserID, master: CrossSigningKey
) -> Iterator[tuple[str, str]]:
    """Yields the key ID and the signature of each device of the user that has signed the master key."""
    for key_id, signature in signatures_by(master.content, user_id).items():
        ed25519 = find_signing_key(tx, user_id, key_id.removeprefix(f"{ALGORITHM}:"))
        if ed25519 is not None and verify_json(master.content, user_id, key_id, ed25519):
            yield key_id, signature


def _remove_signatures_by(tx: Transaction, user_id: UserID, self_signing: CrossSigningKey) -> None:
    for device_id, keys in list_device_keys(tx, [user_id]).get(user_id, {}).items():
        content = orjson.loads(keys)
        signatures = signatures_by(content, user_id)
        if signatures.pop(self_signing.key_id, None) is not None:
            store_device_keys(tx, user_id, device_id, with_signatures(content, {user_id: signatures}))


def _changed(stored: Mapping[Usage, CrossSigningKey], given: Mapping[Usage, CrossSigningKey]) -> set[Usage]:
    """Returns the usages whose stored key is replaced by another one."""
    return {usage for usage, key in given.items() if usage in stored and not _is_same(stored[usage], key)}


def _is_same(one: CrossSigningKey, other: CrossSigningKey) -> bool:
    return without_signatures(one.content) == without_signatures(other.content)


def _is_signed(content: JsonObject, user_id: UserID, key: CrossSigningKey) -> bool:
    return verify_json(content, user_id, key.key_id, key.public_key)


# --- signatures ---


def list_user_signatures(tx: Transaction, signer: UserID, user_ids: Collection[UserID]) -> dict[UserID, UserSignature]:
    """Returns the signatures that `signer` has made on the master keys of these users."""
    wanted, signer_nid = frozenset(user_ids), tx.find(signer)
    # Most users have signed few others: all signatures at once are quicker to find than those of many users.
    rows = tx.all(
        "SELECT signed_user_nid, signed_key, signing_key, signature FROM user_signatures WHERE signer_nid = ? LIMIT ?",
        signer_nid, len(wanted) + 1,
    )  # fmt: skip
    if len(rows) > len(wanted):
        rows = tx.all_in(
            "SELECT signed_user_nid, signed_key, signing_key, signature FROM user_signatures"
            " WHERE signer_nid = ? AND signed_user_nid IN (?*)",
            tx.find_all(wanted).values(), signer_nid,
        )  # fmt: skip
    names = tx.names([row[0] for row in rows])
    return {UserID(names[nid]): UserSignature(*row) for nid, *row in rows if names[nid] in wanted}


def list_signed_users(tx: Transaction, signer: UserID, since: int, upto: int) -> list[UserID]:
    """Returns the users whose master keys `signer` has signed in since < position ≤ upto."""
    nids = tx.values(
        "SELECT signed_user_nid FROM user_signatures WHERE signer_nid = ? AND position > ? AND position <= ?",
        tx.find(signer), since, upto,
    )  # fmt: skip
    return [UserID(name) for name in tx.names(nids).values()]


def store_signature(
    tx: Transaction, signer: UserID, user_id: UserID, name: str, content: JsonObject, remote: CrossSigningKey | None
) -> None:
    """Stores the signatures that a user has added to a key object. Raises MatrixError if it cannot.

    name: the device ID, or the public key of a master key. remote: the master key of a user of another server.
    """
    if user_id != signer:
        master = remote if remote is not None else find_cross_signing_keys(tx, user_id).get("master")
        _store_user_signature(tx, signer, user_id, name, content, master)
        return
    keys = find_cross_signing_keys(tx, signer)
    device = find_device_keys(tx, signer, name)
    if device is not None:
        _sign_device(tx, signer, name, content, device, keys.get("self_signing"))
    elif "master" in keys and keys["master"].public_key == name:
        _sign_own_master(tx, signer, content, keys["master"])
    else:
        raise not_found("The user has no such device with keys, and no such master key.")


def _sign_device(
    tx: Transaction,
    user_id: UserID,
    device_id: str,
    content: JsonObject,
    stored: JsonObject,
    self_signing: CrossSigningKey | None,
) -> None:
    if self_signing is None:
        raise not_found("There is no self-signing key, with which devices are signed.")
    _check_same(content, stored)
    if not _is_signed(content, user_id, self_signing):
        raise _invalid_signature("The device is not signed by the self-signing key, or the signature is wrong.")
    signatures = {**signatures_by(stored, user_id), self_signing.key_id: _signature(content, user_id, self_signing)}
    store_device_keys(tx, user_id, device_id, with_signatures(stored, {user_id: signatures}))


def _sign_own_master(tx: Transaction, user_id: UserID, content: JsonObject, master: CrossSigningKey) -> None:
    _check_same(content, master.content)
    given = CrossSigningKey(content, master.public_key)
    signatures = dict(_valid_signatures_of_devices(tx, user_id, given))
    wrong = [
        key_id for key_id in signatures_by(content, user_id) if key_id not in signatures and key_id != master.key_id
    ]
    if wrong or not signatures:
        raise _invalid_signature("The master key is not signed by the user's devices, or a signature is wrong.")
    signatures = {**signatures_by(master.content, user_id), **signatures}
    key = CrossSigningKey(with_signatures(master.content, {user_id: signatures}), master.public_key)
    if _store_key(tx, user_id, "master", key):
        note_device_list_changed(tx, user_id, signing_keys=True)


def _store_user_signature(
    tx: Transaction, signer: UserID, user_id: UserID, name: str, content: JsonObject, master: CrossSigningKey | None
) -> None:
    user_signing = find_cross_signing_keys(tx, signer).get("user_signing")
    if user_signing is None:
        raise not_found("There is no user-signing key, with which other users are signed.")
    if master is None or master.public_key != name:
        raise not_found("The user has no such master key. Of other users only the master key can be signed.")
    _check_same(content, master.content)
    if not _is_signed(content, signer, user_signing):
        raise _invalid_signature("The key is not signed by the user-signing key, or the signature is wrong.")
    row = (master.public_key, user_signing.public_key, _signature(content, signer, user_signing))
    before = list_user_signatures(tx, signer, [user_id]).get(user_id)
    if before == UserSignature(*row):
        return
    if before is None and _count_user_signatures(tx, signer) >= limits.encryption.USER_SIGNATURES_MAX:
        raise invalid_param(f"A user can sign at most {limits.encryption.USER_SIGNATURES_MAX} other users.")
    tx.run(
        "INSERT INTO user_signatures (signer_nid, signed_user_nid, signed_key, signing_key, signature, position)"
        " VALUES (?, ?, ?, ?, ?, ?) ON CONFLICT (signer_nid, signed_user_nid) DO UPDATE SET"
        " signed_key = excluded.signed_key, signing_key = excluded.signing_key, signature = excluded.signature,"
        " position = excluded.position",
        tx.intern(signer), tx.intern(user_id), *row, tx.next_position(signer),
    )  # fmt: skip


def _count_user_signatures(tx: Transaction, signer: UserID) -> int:
    (count,) = tx.values("SELECT COUNT(*) FROM user_signatures WHERE signer_nid = ?", tx.find(signer))
    return int(count)


def _check_same(content: JsonObject, stored: JsonObject) -> None:
    if without_signatures(content) != without_signatures(stored):
        raise invalid_param("The key object differs from the one that this server knows in more than its signatures.")


def _signature(content: JsonObject, user_id: UserID, key: CrossSigningKey) -> str:
    return signatures_by(content, user_id)[key.key_id]


def _invalid_signature(error: str) -> MatrixError:
    return MatrixError(400, "M_INVALID_SIGNATURE", error)
