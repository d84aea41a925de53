"""Archives for tests: `await archive_all(hs)` moves everything that can be moved into blocks."""

from __future__ import annotations

from homeserver.rooms.archiving import Archivist, Moved, Wanted, archive, list_rooms


async def archive_all(hs: Archivist) -> Moved:
    """Moves all events that the heads do not need, however few they are, and rewrites blocks that have changed."""
    rooms = await hs.database.read(list_rooms)
    now_ms = await hs.database.read(lambda tx: tx.now_ms)
    return await archive(hs, rooms, Wanted(now_ms + 1, rows_bytes_min=0))
