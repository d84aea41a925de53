"""The keys that seal what is stored: one for each conversation, and one for each file of the media repository.

Theory of operation. A key is random. It is in `sealing_keys`, wrapped by the master key, which is not in the database
(`master_keys.py`). A room has at most one key in use; it is made when it is first needed. Forgetting a key
deletes its wrapped form and leaves the row, so everything that it has sealed is known to be unreadable, in contrast to
damaged. Afterwards the room gets a new key, for what is stored from then on.

    state of a key     is_current   wrapped                           what it has sealed
    in use             1            by the current master key, or     can be read
                                    by an older one, which a
                                    rotation replaces
    being forgotten    0            the same                          can be read
    forgotten          0            NULL                              cannot be read, is shown as if it was redacted

Sealed data names its key by number, and the number's row names the room: data of another room does not open. Loaded
keys are cached under their number, which never gets another key. Which key a room uses is read in the transaction that
seals, because another process may have forgotten it a moment ago. After forgetting, the caches are emptied
(`forgetting.py`).
"""

from __future__ import annotations

from collections.abc import Collection

from homeserver.database import DatabaseDamaged, DatabaseUnavailable, Transaction
from homeserver.process.sealing import (
    MasterKey,
    MasterKeyMissing,
    SealBroken,
    SealingKey,
    is_sealed,
    key_number,
    new_secret,
)

KEYS_CACHED_MAX = 20_000  # 300 bytes each: the rooms and files of an hour


def seal(tx: Transaction, room_nid: int, where: bytes, plaintext: bytes) -> bytes:
    """Returns `plaintext` sealed with the room's key, or as it is if the configuration says that rows are not sealed.

    where: the place of the value, see `process/sealing.py`.
    """
    return room_key(tx, room_nid).seal(where, plaintext) if tx.server.config.at_rest.events else plaintext


def open_sealed(tx: Transaction, room_nid: int, where: bytes, data: bytes) -> bytes | None:
    """Returns what was sealed, or None if its key is forgotten. Data that is not sealed is returned unchanged.

    Raises DatabaseDamaged if it does not open.
    """
    if not is_sealed(data):
        return data
    try:
        number = key_number(data)
        key = find_key(tx, number, room_nid)
        return None if key is None else key.open(where, data)
    except SealBroken as error:
        raise DatabaseDamaged(f"Sealed data of room {room_nid} is damaged: {error}.") from None


def room_key(tx: Transaction, room_nid: int) -> SealingKey:
    """Returns the key that seals what is stored of a room from now on. Creates it if there is none; only in writes."""
    number = find_number(tx, room_nid)
    if number is None:
        return create_key(tx, room_nid)
    key = find_key(tx, number, room_nid)
    assert key is not None
    return key


def find_key(tx: Transaction, number: int, room_nid: int | None) -> SealingKey | None:
    """Returns the key with this number, or None if it is forgotten. room_nid: None for the key of a file.

    Raises DatabaseDamaged if there never was one, or if it is the key of another room.
    """
    known: tuple[int | None, SealingKey] | None = tx.cache("sealing_keys", KEYS_CACHED_MAX).get(number)
    if known is None:
        return list_keys(tx, {number}, room_nid)[number]
    if known[0] != room_nid:
        raise _of_another_room(number)
    return known[1]


def list_keys(tx: Transaction, numbers: Collection[int], room_nid: int | None) -> dict[int, SealingKey | None]:
    """Returns the keys with these numbers from the table. None and errors: see `find_key`."""
    rows = tx.all_in("SELECT number, room_nid, master, wrapped FROM sealing_keys WHERE number IN (?*)", numbers)
    if len(rows) < len(numbers):
        missing = min({*numbers} - {row[0] for row in rows})
        raise DatabaseDamaged(f"The sealing key {missing} is missing.")
    found: dict[int, SealingKey | None] = {}
    cache = tx.cache("sealing_keys", KEYS_CACHED_MAX)
    for number, of_room, master, wrapped in rows:
        if of_room != room_nid:
            raise _of_another_room(number)
        key = None if wrapped is None else SealingKey(number, unwrap(tx, number, of_room, master, bytes(wrapped)))
        found[number] = key
        if key is not None and not tx.is_write:  # a write may have made it, and be rolled back
            cache.put(number, (of_room, key))
    return found


def unwrap(tx: Transaction, number: int, room_nid: int | None, master: str, wrapped: bytes) -> bytes:
    """Returns the secret of a key. Raises DatabaseDamaged, and DatabaseUnavailable if the master key is missing."""
    try:
        return get_master(tx, master).unwrap(_where(number, room_nid), wrapped)
    except SealBroken as error:
        raise DatabaseDamaged(f"The sealing key {number} is damaged: {error}.") from None


def create_key(tx: Transaction, room_nid: int | None) -> SealingKey:
    """Creates a key: of a room that has none in use, or of a file if room_nid is None."""
    master = get_master(tx, get_current_master(tx))
    secret = new_secret()
    row = tx.one(
        "INSERT INTO sealing_keys (room_nid, master, wrapped) VALUES (?, ?, NULL) RETURNING number",
        room_nid, master.fingerprint,
    )  # fmt: skip
    assert row is not None
    key = SealingKey(int(row[0]), secret)
    replace_wrapped(tx, key, room_nid, master)
    tx.after_commit(tx.cache("sealing_keys", KEYS_CACHED_MAX).put, key.number, (room_nid, key))
    return key


def replace_wrapped(tx: Transaction, key: SealingKey, room_nid: int | None, master: MasterKey) -> None:
    """Wraps a key with a master key."""
    tx.run(
        "UPDATE sealing_keys SET master = ?, wrapped = ? WHERE number = ?",
        master.fingerprint, master.wrap(_where(key.number, room_nid), key.secret), key.number,
    )  # fmt: skip


def find_number(tx: Transaction, room_nid: int) -> int | None:
    """Returns the number of the room's key that is in use, or None."""
    row = tx.one("SELECT number FROM sealing_keys WHERE room_nid = ? AND is_current = 1", room_nid)
    return None if row is None else int(row[0])


def set_out_of_use(tx: Transaction, room_nid: int) -> None:
    """Lets the room seal with a new key from now on. What the old one has sealed can still be read."""
    tx.run("UPDATE sealing_keys SET is_current = 0 WHERE room_nid = ? AND is_current = 1", room_nid)


def forget_old_keys(tx: Transaction, room_nid: int) -> None:
    """Deletes the keys that the room no longer seals with. What they have sealed cannot be read again."""
    tx.run(
        "UPDATE sealing_keys SET wrapped = NULL WHERE room_nid = ? AND is_current = 0 AND wrapped IS NOT NULL", room_nid
    )
    tx.drop_caches()


def delete_keys(tx: Transaction, room_nid: int) -> None:
    """Deletes all keys of a room of which nothing is left."""
    tx.run("DELETE FROM sealing_keys WHERE room_nid = ?", room_nid)


def forget_key(tx: Transaction, number: int) -> None:
    """Deletes the key of a file. What it has sealed cannot be read again."""
    tx.run("UPDATE sealing_keys SET wrapped = NULL, is_current = 0 WHERE number = ?", number)
    tx.after_commit(tx.cache("sealing_keys", KEYS_CACHED_MAX).forget, number)


def find_forgotten(tx: Transaction, room_nid: int) -> int | None:
    """Returns the stream position at which a room was last forgotten, 0 if it never was, None while it is being
    forgotten: see `forgetting.py`.
    """
    row = tx.one("SELECT is_done, forgotten_position FROM forgotten_rooms WHERE room_nid = ?", room_nid)
    if row is None:
        return 0
    return int(row[1]) if row[0] else None


# --- master keys ---


def get_current_master(tx: Transaction) -> str:
    """Returns the fingerprint of the master key that wraps new keys. If there is none yet, the first of ours becomes
    it. Raises DatabaseUnavailable if we have none.
    """
    row = tx.one("SELECT fingerprint FROM master_keys WHERE is_current = 1")
    if row is not None:
        return str(row[0])
    ours = tx.server.master_keys.list()
    if not ours:
        raise DatabaseUnavailable(f"There is no master key: {tx.server.master_keys.place} does not hold one.")
    set_current_master(tx, ours[0].fingerprint)
    return ours[0].fingerprint


def set_current_master(tx: Transaction, fingerprint: str) -> None:
    """Makes a master key the one that wraps new keys. The others stay, until nothing is wrapped by them any more."""
    tx.run("UPDATE master_keys SET is_current = 0 WHERE fingerprint != ?", fingerprint)
    tx.run(
        "INSERT INTO master_keys (fingerprint, is_current) VALUES (?, 1)"
        " ON CONFLICT (fingerprint) DO UPDATE SET is_current = 1",
        fingerprint,
    )


def list_masters(tx: Transaction) -> dict[str, bool]:
    """Returns the master keys by fingerprint, the current one first: True. The others are being replaced."""
    rows = tx.all("SELECT fingerprint, is_current FROM master_keys ORDER BY is_current DESC, fingerprint")
    return {fingerprint: bool(is_current) for fingerprint, is_current in rows}


def list_needed_masters(tx: Transaction) -> list[str]:
    """Returns the fingerprints of the master keys without which something cannot be read or sealed."""
    return tx.values(
        "SELECT fingerprint FROM master_keys WHERE is_current = 1 OR EXISTS (SELECT 1 FROM sealing_keys"
        " WHERE sealing_keys.master = master_keys.fingerprint AND sealing_keys.wrapped IS NOT NULL)"
        " ORDER BY fingerprint"
    )


def get_master(tx: Transaction, fingerprint: str) -> MasterKey:
    """Returns a master key. Raises DatabaseUnavailable if we do not have it."""
    try:
        return tx.server.master_keys.get(fingerprint)
    except MasterKeyMissing as error:
        raise DatabaseUnavailable(str(error)) from None


def _where(number: int, room_nid: int | None) -> bytes:
    return b"key %d of room %d" % (number, room_nid) if room_nid is not None else b"key %d of a file" % number


def _of_another_room(number: int) -> DatabaseDamaged:
    return DatabaseDamaged(f"The sealing key {number} belongs to another room.")
