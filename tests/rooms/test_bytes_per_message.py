"""The disk space that a text message takes in total: its row, its indexes, its share of the state.

The words are made up, so that the dictionary that was trained on real ones helps little.
"""

from __future__ import annotations

import random
from pathlib import Path
from string import ascii_lowercase

import trio

from homeserver import Homeserver
from homeserver.config import DatabaseSection
from homeserver.database import Transaction
from homeserver.federation.build import Draft
from homeserver.federation.identifiers import RoomID, UserID
from homeserver.rooms.append import append_local
from tests.support.homeservers import config_for_tests

MESSAGES, MEMBERS = 2_000, 50
BYTES_MAX = 700


def test_a_ten_word_message_takes_less_than_700_bytes(tmp_path: Path) -> None:
    sizes = trio.run(_sizes, tmp_path)
    assert 100 < (sizes[1] - sizes[0]) / MESSAGES <= BYTES_MAX


async def _sizes(folder: Path) -> tuple[int, int]:
    """The bytes of the database before and after the messages."""
    rng = random.Random(20_000)
    words = ["".join(rng.choices(ascii_lowercase, k=rng.randint(2, 9))) for _ in range(500)]
    config = config_for_tests("a.example", folder, database=DatabaseSection())
    async with Homeserver(config, inline_database=True) as hs:
        founder = await hs.register("user0")
        room_id = await founder.create_room(preset="public_chat")
        write = hs.resources.database.write
        await write(_join, room_id)
        before = await hs.resources.database.read(_used_bytes)
        for number in range(0, MESSAGES, 500):
            await write(_say, room_id, rng, words, range(number, number + 500))
        return before, await hs.resources.database.read(_used_bytes)


def _join(tx: Transaction, room_id: RoomID) -> None:
    for number in range(1, MEMBERS):
        user_id = UserID(f"@user{number}:a.example")
        append_local(tx, Draft(room_id, user_id, "m.room.member", {"membership": "join"}, state_key=user_id))


def _say(tx: Transaction, room_id: RoomID, rng: random.Random, words: list[str], numbers: range) -> None:
    for number in numbers:
        content = {"msgtype": "m.text", "body": " ".join(rng.choices(words, k=10))}
        sender = UserID(f"@user{rng.randrange(MEMBERS)}:a.example")
        draft = Draft(room_id, sender, "m.room.message", content)
        append_local(tx, draft, device_id="DEVICE", txn_id=f"m{number}.{rng.getrandbits(32)}")


def _used_bytes(tx: Transaction) -> int:
    """Returns the size of the file without its free pages."""
    pages, free, size = (tx.values(f"PRAGMA {name}")[0] for name in ("page_count", "freelist_count", "page_size"))
    return int((pages - free) * size)
