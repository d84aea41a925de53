"""What resumable uploads append, and how it becomes a file. See `resumable` for the theory of operation."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from typing import TypeVar, TypeVarTuple

import trio
from msgspec.structs import replace

from homeserver.api.routes import Request
from homeserver.background import start_aside
from homeserver.database import Transaction
from homeserver.errors import MatrixError, not_found
from homeserver.features.media import resumable_storage, storage
from homeserver.features.media.information import examine, store_findings
from homeserver.features.media.receiving import Received, keep, temporary_folder
from homeserver.features.media.resumable_files import PartFile, PartGone, delete_part, hash_slice, new_digest
from homeserver.features.media.resumable_headers import Checksum
from homeserver.features.media.resumable_storage import Upload
from homeserver.features.media.storage import Blob
from homeserver.features.media.uploads import new_media_id
from homeserver.federation.identifiers import UserID
from homeserver.limits import MEDIA_CHUNK_BYTES, RESUMABLE_CHECKPOINT_BYTES, RESUMABLE_LIFETIME_MS
from homeserver.process.claims import Claim
from homeserver.resources import Resources

T = TypeVar("T")
Ts = TypeVarTuple("Ts")


async def append(
    hs: Resources, owner: UserID, upload: Upload, request: Request, checksum: Checksum | None, claim: Claim
) -> Upload:
    """Appends the body and returns the upload as it is then. Raises what reading the body raises; what came is kept."""
    part = PartFile(temporary_folder(hs), upload.upload_id, upload.offset_bytes)
    left_bytes = upload.length_bytes - upload.offset_bytes
    try:
        upload = await _receive(hs, upload, part, request.stream(left_bytes), checksum, claim)
        if part.offset_bytes == upload.length_bytes:
            upload = await _finish(hs, owner, upload, part)
            await hs.workers.run(delete_part, temporary_folder(hs), upload.upload_id)
        return upload
    except PartGone:
        await hs.database.write(resumable_storage.delete_upload, owner, upload.upload_id)
        raise not_found("The content of this upload has been lost. Begin again.") from None
    finally:
        part.close()


async def _on_disk(hs: Resources, work: Callable[[*Ts], T], *args: *Ts) -> T:
    """Runs work on a file in a worker thread. Raises BlobError, PartGone."""
    try:
        return await hs.workers.run(work, *args)
    except OSError as error:
        raise hs.blobs.failure(error) from error


async def _receive(
    hs: Resources,
    upload: Upload,
    part: PartFile,
    chunks: AsyncIterator[bytes],
    checksum: Checksum | None,
    claim: Claim,
) -> Upload:
    """Writes the chunks to the file, and acknowledges what is durable now and then. Returns the upload as it is then.

    With a checksum nothing is acknowledged before the end, because a part with a wrong one must be discarded.
    """
    await _on_disk(hs, part.open)
    waiting: list[bytes] = []
    waiting_bytes = 0
    try:
        async for chunk in chunks:
            claim.moved()
            waiting.append(chunk)
            waiting_bytes += len(chunk)
            if waiting_bytes >= MEDIA_CHUNK_BYTES:
                written, waiting, waiting_bytes = waiting, [], 0
                await _on_disk(hs, part.write, written)
                if checksum is not None:
                    await hs.workers.run(checksum.update, written)
                elif part.offset_bytes - upload.offset_bytes >= RESUMABLE_CHECKPOINT_BYTES:
                    upload = await _acknowledge(hs, upload, part)
    except BaseException:  # the client has gone, or came back on another connection: keep what it has sent
        if checksum is None:
            with trio.CancelScope(shield=True):
                await _on_disk(hs, part.write, waiting)
                await _acknowledge(hs, upload, part)
        raise
    await _on_disk(hs, part.write, waiting)
    if checksum is not None:
        await hs.workers.run(checksum.update, waiting)
        if not checksum.fits:
            raise MatrixError(460, "M_INVALID_PARAM", "The content does not have the checksum that you sent with it.")
    return await _acknowledge(hs, upload, part)


async def _acknowledge(hs: Resources, upload: Upload, part: PartFile) -> Upload:
    """Makes what has been written durable, then its offset, unless it is complete: then `_finish` does that."""
    if part.offset_bytes in (upload.offset_bytes, upload.length_bytes):
        return upload
    await _on_disk(hs, part.sync)
    expires_ms = hs.now_ms() + RESUMABLE_LIFETIME_MS
    await hs.database.write(resumable_storage.store_offset, upload, part.offset_bytes, expires_ms)
    return replace(upload, offset_bytes=part.offset_bytes, expires_ms=expires_ms)


async def _finish(hs: Resources, owner: UserID, upload: Upload, part: PartFile) -> Upload:
    """Makes the complete content a file of the repository. Raises M_USER_LIMIT_EXCEEDED, M_NOT_FOUND, BlobError."""
    digest = new_digest()
    hashed_bytes = 0
    while hashed_bytes < upload.length_bytes:
        hashed_bytes += await _on_disk(hs, hash_slice, part.path, hashed_bytes, digest)
    received = Received(digest.digest(), upload.length_bytes, part.path)
    findings = await examine(hs, received, upload.description)
    media_id = new_media_id()

    def store(tx: Transaction, blob: Blob) -> None:
        resumable_storage.store_finished(tx, upload, media_id, findings.info)
        storage.store_upload(
            tx, blob, hs.server_name, hs.config.blobs, media_id, owner, upload.description,
            is_pending=False, is_public=False,
        )  # fmt: skip

    await keep(hs, received, upload.description.content_type, store)
    hs.metrics.count("homeserver_media_uploads_total")
    start_aside(hs, store_findings, hs, media_id, findings)
    return replace(upload, offset_bytes=upload.length_bytes, media_id=media_id, info=findings.info)
