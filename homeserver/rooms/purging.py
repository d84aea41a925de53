"""Deletes the messages of a room that are older than a time, and the files that only they show."""

from __future__ import annotations

from collections.abc import Callable

from homeserver.resources import Resources
from homeserver.rooms.archiving import Wanted, archive
from homeserver.rooms.expiring import Purged, estimate_expiry, expire
from homeserver.rooms.retention import estimate_files, forget_expired_files


async def purge_room(
    hs: Resources,
    room_nid: int,
    before_ms: int,
    purged: Purged,
    tell: Callable[[int], object] = lambda count: None,
    *,
    keeps_local: bool = False,
) -> None:
    """Deletes the messages of a room that are older than a time, and the files that only they show. Adds to `purged`.

    What remains of the messages is archived at once, because hardly anybody will ask for it. tell, keeps_local: see
    `expire`. Which files local messages show is not known, so with `keeps_local` no file is deleted.
    """
    events, text_bytes = await expire(hs, room_nid, before_ms, tell, keeps_local=keeps_local)
    is_any_left, files, file_bytes = not keeps_local, 0, 0
    while is_any_left:
        is_any_left, number, size_bytes = await hs.database.write(
            forget_expired_files, room_nid, before_ms, hs.file_forgetters
        )
        files, file_bytes = files + number, file_bytes + size_bytes
    if events and hs.config.archive.after_days:
        await archive(hs, [room_nid], Wanted(before_ms))
    purged.rooms += events > 0 or files > 0
    purged.events += events
    purged.text_bytes += text_bytes
    purged.files += files
    purged.file_bytes += file_bytes


async def estimate_purge(hs: Resources, room_nid: int, before_ms: int, purged: Purged) -> None:
    """Adds to `purged` what `purge_room` would delete."""
    events, text_bytes = await estimate_expiry(hs, room_nid, before_ms)
    files, file_bytes = await hs.database.read(estimate_files, room_nid, before_ms, hs.file_forgetters)
    purged.rooms += events > 0 or files > 0
    purged.events += events
    purged.text_bytes += text_bytes
    purged.files += files
    purged.file_bytes += file_bytes
