"""Seals the files that were stored before there were keys, or while `[at_rest] media` was off, in the background.

Theory of operation. A file is read, checked against its hash, and stored again under a new name with a new key; one
write makes all rows with this content refer to the new blob and releases the old one. If the process ends in between,
the file is as it was, and the new blob is an orphan that the clean-up finds. Which files are left follows from their
names, so the work resumes with the next start. Thumbnails are not sealed again but deleted: they are made when they are
asked for.
"""

from __future__ import annotations

import logging

import trio

from homeserver.blobs import BlobDamaged
from homeserver.features.media import sealed_blobs
from homeserver.features.media.content_headers import stored_headers
from homeserver.features.media.receiving import new_blob_key, receive
from homeserver.features.media.sealing_storage import delete_unsealed_thumbnails, list_unsealed, store_sealed
from homeserver.features.media.storage import Blob, forget_unused_key
from homeserver.resources import Resources

_log = logging.getLogger(__name__)

_AT_ONCE = 100  # files listed, and thumbnails deleted, by one step
_PAUSE_S = 0.05  # between files: nobody waits for the end


async def seal_old_files(hs: Resources) -> None:
    """Seals whatever file is not sealed yet."""
    if not hs.config.at_rest.media:
        return
    async with hs.database.hold("sealing files"):
        after = 0
        while found := await hs.database.read(list_unsealed, after, _AT_ONCE):
            for _, content_type, blob in found:
                await _seal(hs, content_type, blob)
                await trio.sleep(_PAUSE_S)
            after = found[-1][0]
            while await hs.database.write(delete_unsealed_thumbnails, _AT_ONCE) == _AT_ONCE:
                pass
        await hs.database.write(delete_unsealed_thumbnails, _AT_ONCE)  # of a crash


async def _seal(hs: Resources, content_type: str, old: Blob) -> None:
    number = await sealed_blobs.new_key(hs)
    new = Blob(new_blob_key(old.sha256, hs.now_ms(), number), old.sha256, old.size_bytes)
    try:
        async with receive(hs, sealed_blobs.stream(hs, old.key, old.size_bytes)) as received:
            if received.sha256 != old.sha256:
                raise BlobDamaged(f"The content of the blob {old.key} is not what was stored.")
            await sealed_blobs.put(hs, new.key, received.data, stored_headers(content_type))
    except (KeyError, BlobDamaged) as error:
        _log.warning("a file cannot be sealed", extra={"blob": old.key, "reason": str(error)})
        await hs.database.write(forget_unused_key, new.key)
    else:
        await hs.database.write(store_sealed, old, new)
