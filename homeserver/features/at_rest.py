"""Keys at rest: forgets rooms, and seals what was stored before there were keys. Not in the spec.

The keys themselves are in `homeserver/rooms/keys.py`, forgetting in `homeserver/rooms/forgetting.py`.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from homeserver.database import Transaction
from homeserver.feature import Feature
from homeserver.federation.identifiers import RoomID
from homeserver.resources import ForgetRoom, Resources
from homeserver.rooms.forgetting import (
    FORGOTTEN,
    forget_block,
    forget_events,
    list_forgotten,
    list_unfinished,
    note_forgetting,
    note_forgotten,
)
from homeserver.rooms.resealing import note_setting, seal_rest
from homeserver.rooms.timeline import START

_PAUSE_S = 0.05  # between writes of which nobody waits for the end


async def forget_room(hs: Resources, room_id: RoomID, tell: Callable[[int, int], object]) -> None:
    """Makes everything that is stored of a room unreadable. tell(done, of): called after each write.

    Raises MatrixError 404 if this server knows nothing of the room.
    """
    room_nid = await hs.database.write(note_forgetting, room_id)
    await seal_rest(hs.database, 0)  # only then it is known which files other rooms refer to
    await _go_on(hs, room_nid, tell)


async def _go_on(hs: Resources, room_nid: int, tell: Callable[[int, int], object]) -> None:
    block_end: int | None = START
    while block_end is not None:
        block_end = await hs.database.write(forget_block, room_nid, block_end)
    reached, upto = 0, 1
    while reached < upto:
        reached, upto = await hs.database.write(forget_events, room_nid)
        tell(reached, upto)
    await hs.database.write(_finish, room_nid, hs.room_forgetters)
    await hs.database.scrub("sealing_keys")


def _finish(tx: Transaction, room_nid: int, forgetters: tuple[ForgetRoom, ...]) -> None:
    room_id = RoomID(tx.name(room_nid))
    for forget in forgetters:  # first, because they may have to read what the key has sealed
        forget(tx, room_id)
    note_forgotten(tx, room_nid)


async def finish_interrupted(hs: Resources) -> None:
    """Continues what a crash has interrupted."""
    for room_nid in await hs.database.read(list_unfinished):
        await _go_on(hs, room_nid, lambda done, of: None)


async def seal_old(hs: Resources) -> None:
    """Seals what was stored before there were keys, or while sealing was off."""
    await hs.database.write(note_setting)
    await seal_rest(hs.database, _PAUSE_S)


async def drop_caches(hs: Resources) -> None:
    """Empties the caches when another process has forgotten a room. Runs as long as the server is open."""
    position = hs.stream.position
    while True:
        upto = await hs.stream.wait((FORGOTTEN,), position, math.inf)
        if await hs.database.read(list_forgotten, position, upto):
            hs.database.drop_caches()
        position = upto


FEATURE = Feature(name="at_rest", spec="", background=(finish_interrupted, seal_old, drop_caches))
