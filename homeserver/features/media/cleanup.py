"""Clean-up: deletes what is no longer needed, in small steps that can be interrupted anywhere and resumed.

It deletes created URIs that got no content in time; resumable uploads that have expired; remote files that nobody uses,
or beyond the limit, least recently used first; URL previews that are too old; blobs whose last row is gone; blobs that
never got a row, because a crash came in between; temporary files left by a crash.
"""

from __future__ import annotations

import logging
import time
from contextlib import suppress
from pathlib import Path

import trio

from homeserver.blobs import BlobError
from homeserver.database import Transaction
from homeserver.features.media import preview_storage, resumable_storage, storage
from homeserver.features.media.receiving import blob_created_ms, shard_folder, temporary_folder
from homeserver.features.media.resumable_files import delete_parts, list_parts
from homeserver.federation.identifiers import UserID
from homeserver.limits import (
    HOUSEKEEPING_DELAY_S,
    MEDIA_CLEANUP_INTERVAL_S,
    MEDIA_CLEANUP_ROWS,
    MEDIA_ORPHAN_AGE_MS,
)
from homeserver.resources import Resources

_log = logging.getLogger(__name__)

SHARDS = 16
"""One shard per hourly round, so that the whole store has been listed after 16 hours, a little at a time."""


_DAY_MS = 24 * 60 * 60 * 1000

# How many rows one write changes when a user is erased: some milliseconds.
_FORGOTTEN_PER_WRITE = 500


async def clean_up_forever(hs: Resources) -> None:
    """Runs as long as the server does."""
    await trio.sleep(HOUSEKEEPING_DELAY_S)
    while True:
        await clean_up(hs)
        await trio.sleep(MEDIA_CLEANUP_INTERVAL_S)


async def clean_up(hs: Resources) -> None:
    """Runs one round of everything."""
    await hs.database.write(storage.delete_expired_pending)
    await delete_expired_uploads(hs)
    if hs.config.blobs.remote_days_max:
        unused_since_ms = hs.now_ms() - hs.config.blobs.remote_days_max * _DAY_MS
        while await hs.database.write(storage.delete_unused_remote, unused_since_ms, MEDIA_CLEANUP_ROWS):
            pass
    excess_bytes = await hs.database.read(storage.get_remote_bytes) - hs.config.blobs.remote_bytes_max
    while excess_bytes > 0:
        excess_bytes -= await hs.database.write(storage.delete_oldest_remote, excess_bytes, MEDIA_CLEANUP_ROWS)
    while await hs.database.write(preview_storage.delete_expired_previews, hs.server_name, MEDIA_CLEANUP_ROWS):
        pass
    await find_orphans(hs)
    await delete_released(hs)
    await hs.workers.run(_delete_temporary_files, temporary_folder(hs))


async def delete_expired_uploads(hs: Resources) -> None:
    """Deletes resumable uploads that have expired, and the files of those that are over."""
    await hs.database.write(resumable_storage.delete_expired_uploads)
    stored = await hs.workers.run(list_parts, temporary_folder(hs))  # before the rows: these come before the files
    if stored:
        unfinished = set(await hs.database.read(resumable_storage.list_unfinished))
        over = [upload_id for upload_id in stored if upload_id not in unfinished]
        await hs.workers.run(delete_parts, temporary_folder(hs), over)


async def find_orphans(hs: Resources) -> None:
    """Lists the next shard of the store, and releases the blobs that are old enough to have a row but have none."""
    shard = await hs.database.read(storage.get_sweep)
    created_before_ms = hs.now_ms() - MEDIA_ORPHAN_AGE_MS
    batch: list[str] = []
    async for key, _ in hs.blobs.list(shard_folder(shard)):
        created_ms = blob_created_ms(key)
        if created_ms is not None and created_ms < created_before_ms:
            batch.append(key)
        if len(batch) == MEDIA_CLEANUP_ROWS:
            await _release_orphans(hs, batch)
            batch = []
    await _release_orphans(hs, batch)
    await hs.database.write(storage.store_sweep, (shard + 1) % SHARDS)


async def _release_orphans(hs: Resources, blob_keys: list[str]) -> None:
    orphans = await hs.database.read(storage.list_unused, blob_keys) if blob_keys else []
    if orphans:
        await hs.database.write(storage.store_orphans, orphans)


async def delete_released(hs: Resources) -> None:
    """Deletes the blobs that no row refers to any more. Their keys are deleted afterwards, so a crash repeats it."""
    while keys := await hs.database.read(storage.list_deletions, MEDIA_CLEANUP_ROWS):
        deleted = []
        for key in keys:
            try:
                await hs.blobs.delete(key)
                deleted.append(key)
            except BlobError as error:  # it stays on the list; an undeletable blob must not block the others
                _log.warning("blob not deleted", extra={"blob": key, "reason": str(error)})
        await hs.database.write(storage.delete_deletions, deleted)
        if len(deleted) < len(keys):
            return


def _delete_temporary_files(folder: Path) -> None:
    """Deletes temporary files of uploads cut off by a crash. File times follow the machine's clock, not `now_ms`."""
    written_before_s = time.time() - MEDIA_ORPHAN_AGE_MS / 1000
    for path in folder.glob("upload-*"):
        with suppress(FileNotFoundError):
            if path.stat().st_mtime < written_before_s:
                path.unlink()


def forget_media(tx: Transaction, user_id: UserID, erase: bool) -> bool:
    """Deletes URIs without content; with `erase` also the uploader and name of files, some at a time.

    The content stays: it belongs to the messages in rooms.
    """
    nid = tx.find(user_id)
    tx.run("DELETE FROM media_pending WHERE uploader_nid = ?", nid)
    tx.run("DELETE FROM media_uploads WHERE owner_nid = ?", nid)
    if not erase:
        return False
    tx.run("DELETE FROM media_usage WHERE uploader_nid = ?", nid)
    tx.run("UPDATE media_quarantine SET by_nid = ? WHERE by_nid = ?", tx.intern(""), nid)
    changed = tx.run(
        "UPDATE media SET uploader_nid = ?, filename = NULL WHERE media_nid IN"
        " (SELECT media_nid FROM media WHERE uploader_nid = ? LIMIT ?)",
        tx.intern(""), nid, _FORGOTTEN_PER_WRITE,
    )  # fmt: skip
    return changed == _FORGOTTEN_PER_WRITE
