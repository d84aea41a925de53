"""Rotation: a new master key replaces the old one, while servers run. What is sealed is not touched: only its keys are
wrapped again.

Theory of operation. The database says which master key is current, so every process wraps new keys with the same one,
and reads the file again if it does not know that key yet. During a rotation the file holds both.

    step                                                   if the process ends there
    1  the file gets a new key beside the old one          the next rotation uses that key
    2  the new key becomes current (`set_current_master`)  the next rotation continues; servers use both keys
    3  all keys are wrapped again, some in each write      the same
    4  the file loses the old key                          the same; the old key wraps nothing any more
    5  the database forgets the old key                    nothing is left to do

If the environment or systemd provides the keys, an administrator does steps 1 and 4: see docs/encryption_at_rest.md.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping

import msgspec

from homeserver.config import Config, ConfigError
from homeserver.database import Database, Transaction
from homeserver.durable_files import replace_file
from homeserver.process.sealing import MasterKey, MasterKeys, SealingKey, new_secret
from homeserver.rooms.keys import get_master, list_masters, replace_wrapped, set_current_master, unwrap
from homeserver.rooms.master_keys import find_fixed_source, format_keys

KEYS_PER_WRITE = 500  # wrapping a key again takes 20 µs, for which other writes wait


class KeyStatus(msgspec.Struct, frozen=True):
    """current: the fingerprint of the master key that wraps new keys, None before the first start. files: including the
    search index. replaced: master keys that a rotation is replacing, each with the number of keys that it still wraps.
    """

    current: str | None
    rooms: int
    files: int
    forgotten: int
    replaced: dict[str, int]


async def rotate(
    config: Config,
    database: Database,
    keys: MasterKeys,
    tell: Callable[[int, int], object],
    environment: Mapping[str, str] = os.environ,
) -> tuple[str, bool]:
    """Replaces the master key, or finishes a rotation that was interrupted. tell(done, of): called after each write.

    Returns the fingerprint of the new key, and whether its source still holds an old one, which an administrator has to
    remove. Raises ConfigError.
    """
    known = await database.read(list_masters)
    if len(known) <= 1:
        new = _choose_new(config, keys, known, environment)
        await database.write(set_current_master, new.fingerprint)
    done, total = 0, await database.read(_count_to_wrap)
    while wrapped := await database.write(_replace_some):
        done += wrapped
        tell(done, max(done, total))
    current = next(iter(await database.read(list_masters)))
    is_fixed = find_fixed_source(config, environment) is not None
    if not is_fixed:
        _replace_file(config, [keys.get(current)])  # it has just wrapped keys, so we have it
        keys.reload()
    await database.write(_delete_old_masters)
    await database.scrub("sealing_keys")
    return current, is_fixed and len(keys.list()) > 1


def _choose_new(
    config: Config, keys: MasterKeys, known: Mapping[str, bool], environment: Mapping[str, str]
) -> MasterKey:
    """Returns a key that was added to the source, or adds one to the file."""
    first = keys.list()[0]
    if first.fingerprint not in known:  # an old one, which was left there, is behind the current one
        return first
    fixed = find_fixed_source(config, environment)
    if fixed is not None:
        raise ConfigError(
            f"at_rest.master_key_file: the master key comes from {fixed}: put a new key before the old one there,"
            " restart every server, then run this again"
        )
    new = MasterKey(new_secret())
    _replace_file(config, [new, *keys.list()])
    keys.reload()
    return new


def _replace_file(config: Config, keys: list[MasterKey]) -> None:
    path = config.master_key_path
    try:
        replace_file(path, format_keys(keys))
    except OSError as error:
        raise ConfigError(f"at_rest.master_key_file: {path} cannot be written: {error.strerror}") from error


# Storage


def _replace_some(tx: Transaction) -> int:
    """Wraps some keys with the current master key. Returns how many, 0 if none were left.

    They are found by the key that wraps them, so the cost does not grow with the keys that are done already.
    """
    current, *replaced = list_masters(tx)
    master = get_master(tx, current)
    for old in replaced:
        rows = tx.all(
            "SELECT number, room_nid, wrapped FROM sealing_keys WHERE master = ? AND wrapped IS NOT NULL"
            " ORDER BY number LIMIT ?",
            old, KEYS_PER_WRITE,
        )  # fmt: skip
        for number, room_nid, wrapped in rows:
            key = SealingKey(number, unwrap(tx, number, room_nid, old, bytes(wrapped)))
            replace_wrapped(tx, key, room_nid, master)
        if rows:
            return len(rows)
    return 0


def _count_to_wrap(tx: Transaction) -> int:
    _, *replaced = list_masters(tx)
    sql = "SELECT COUNT(*) FROM sealing_keys WHERE master = ? AND wrapped IS NOT NULL"
    return sum(int(number) for old in replaced for number in tx.values(sql, old))


def _delete_old_masters(tx: Transaction) -> None:
    tx.run("DELETE FROM master_keys WHERE is_current = 0")


def get_status(tx: Transaction) -> KeyStatus:
    """Returns how many keys there are, and what wraps them."""
    row = tx.one(
        "SELECT COUNT(CASE WHEN wrapped IS NOT NULL AND room_nid IS NOT NULL THEN 1 END),"
        " COUNT(CASE WHEN wrapped IS NOT NULL AND room_nid IS NULL THEN 1 END),"
        " COUNT(CASE WHEN wrapped IS NULL THEN 1 END) FROM sealing_keys"
    )
    assert row is not None
    rows = tx.all("SELECT master, COUNT(*) FROM sealing_keys WHERE wrapped IS NOT NULL GROUP BY master")
    counts = {master: int(count) for master, count in rows}
    masters = list_masters(tx)
    current = next((fingerprint for fingerprint, is_current in masters.items() if is_current), None)
    replaced = {each: counts.get(each, 0) for each, is_current in masters.items() if not is_current}
    return KeyStatus(current, int(row[0]), int(row[1]), int(row[2]), replaced)
