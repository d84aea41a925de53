"""Each room has a key of its own, which the master key wraps in the database."""

from __future__ import annotations

import pytest

from homeserver.database import Database, DatabaseDamaged, Transaction
from homeserver.rooms import keys
from tests.support.rooms import Rooms

WHERE = b"a place"


async def reload_keys(database: Database) -> None:
    """Makes the next transaction read the keys from the table."""
    cache = database.caches.named("sealing_keys", keys.KEYS_CACHED_MAX)
    for number in range(100):
        cache.forget(number)


async def test_data_sealed_for_a_room_can_be_read_again(rooms: Rooms) -> None:
    sealed = await rooms.database.write(keys.seal, 7, WHERE, b"words")
    for _ in range(2):
        assert await rooms.database.read(keys.open_sealed, 7, WHERE, sealed) == b"words"
        await reload_keys(rooms.database)


async def test_a_room_keeps_its_key(rooms: Rooms) -> None:
    first = await rooms.database.write(keys.room_key, 7)
    again = await rooms.database.write(keys.room_key, 7)
    other = await rooms.database.write(keys.room_key, 8)
    assert first.number == again.number != other.number
    assert first.secret == again.secret != other.secret


async def test_a_key_of_a_write_that_fails_is_not_used(rooms: Rooms) -> None:
    made: list[int] = []

    def fail(tx: Transaction) -> None:
        made.append(keys.room_key(tx, 7).number)
        raise KeyError

    with pytest.raises(KeyError):
        await rooms.database.write(fail)
    key = await rooms.database.write(keys.room_key, 8)
    sealed = key.seal(WHERE, b"words")
    assert await rooms.database.read(keys.open_sealed, 8, WHERE, sealed) == b"words"
    assert await rooms.database.read(keys.find_number, 7) is None


async def test_data_of_another_room_does_not_open(rooms: Rooms) -> None:
    sealed = await rooms.database.write(keys.seal, 7, WHERE, b"words")
    for _ in range(2):
        with pytest.raises(DatabaseDamaged):
            await rooms.database.read(keys.open_sealed, 8, WHERE, sealed)
        await reload_keys(rooms.database)


async def test_wrapped_keys_cannot_be_swapped(rooms: Rooms) -> None:
    def swap(tx: Transaction) -> None:
        ours, theirs = keys.room_key(tx, 7), keys.room_key(tx, 8)
        (wrapped,) = tx.values("SELECT wrapped FROM sealing_keys WHERE number = ?", theirs.number)
        tx.run("UPDATE sealing_keys SET wrapped = ? WHERE number = ?", wrapped, ours.number)

    sealed = await rooms.database.write(keys.seal, 7, WHERE, b"words")
    await rooms.database.write(swap)
    await reload_keys(rooms.database)
    with pytest.raises(DatabaseDamaged):
        await rooms.database.read(keys.open_sealed, 7, WHERE, sealed)


async def test_data_sealed_with_a_forgotten_key_is_gone_and_not_damaged(rooms: Rooms) -> None:
    key = await rooms.database.write(keys.room_key, 7)
    sealed = key.seal(WHERE, b"words")
    await rooms.database.write(keys.forget_key, key.number)
    assert await rooms.database.read(keys.open_sealed, 7, WHERE, sealed) is None
    new = await rooms.database.write(keys.room_key, 7)
    assert new.number != key.number and new.secret != key.secret


async def test_a_key_that_never_was_is_damage(rooms: Rooms) -> None:
    sealed = keys.SealingKey(99, bytes(32)).seal(WHERE, b"words")
    with pytest.raises(DatabaseDamaged, match="99"):
        await rooms.database.read(keys.open_sealed, 7, WHERE, sealed)


async def test_data_that_is_not_sealed_is_returned(rooms: Rooms) -> None:
    assert await rooms.database.read(keys.open_sealed, 7, WHERE, b"[1]") == b"[1]"
