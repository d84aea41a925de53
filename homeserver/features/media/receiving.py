"""Receiving: content of unknown length becomes a durable blob first, and a row after that.

At most one chunk of it is in memory; longer content goes through a temporary file in `data_dir`, and is hashed on the
way.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import re
import secrets
import tempfile
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TypeVar

import msgspec
import trio
from msgspec.structs import replace

from homeserver.database import Transaction
from homeserver.errors import MatrixError
from homeserver.features.media import sealed_blobs, storage
from homeserver.features.media.content_headers import stored_headers
from homeserver.features.media.storage import Blob, BlobGone
from homeserver.limits import MEDIA_CHUNK_BYTES
from homeserver.resources import Resources

T = TypeVar("T")

_log = logging.getLogger(__name__)

_BLOB_KEY = re.compile(r"media/[0-9a-f]/[0-9a-f]{64}-([0-9a-f]{1,16})-[0-9a-f]{8}(?:-k[0-9a-f]{1,8})?", re.ASCII)


class Received(msgspec.Struct, frozen=True):
    """Content that has arrived completely. `data`: the content itself, or the temporary file that has it."""

    sha256: bytes
    size_bytes: int
    data: bytes | Path


def temporary_folder(hs: Resources) -> Path:
    """Returns the folder of unfinished uploads. Only a crash lets its files outlive their requests."""
    return hs.config.data_path("uploads")


@asynccontextmanager
async def receive(hs: Resources, chunks: AsyncIterator[bytes]) -> AsyncIterator[Received]:
    """Receives all of `chunks`, and raises what they raise. The temporary file is deleted after the `with` block."""
    spool = _Spool(temporary_folder(hs))
    waiting: list[bytes] = []
    waiting_bytes = 0
    try:
        async for chunk in chunks:
            if waiting_bytes + len(chunk) > MEDIA_CHUNK_BYTES and waiting:
                await _run(hs, spool.write, waiting)
                waiting, waiting_bytes = [], 0
            waiting.append(chunk)
            waiting_bytes += len(chunk)
        if spool.path is None:
            data = waiting[0] if len(waiting) == 1 else b"".join(waiting)
            yield Received(hashlib.sha256(data).digest(), len(data), data)
        else:
            await _run(hs, spool.finish, waiting)
            yield Received(spool.hash.digest(), spool.size_bytes, spool.path)
    finally:
        if spool.path is not None:
            with trio.CancelScope(shield=True):
                await hs.workers.run(spool.discard)


async def _run(hs: Resources, write: Callable[[list[bytes]], None], parts: list[bytes]) -> None:
    try:
        await hs.workers.run(write, parts)
    except OSError as error:
        raise hs.blobs.failure(error) from error


class _Spool:
    """The temporary file of one upload. Its methods run in a worker thread, one after the other."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.path: Path | None = None
        self.hash = hashlib.sha256()
        self.size_bytes = 0
        self._descriptor = -1

    def write(self, parts: list[bytes]) -> None:
        if self.path is None:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._descriptor, name = tempfile.mkstemp(dir=self.folder, prefix="upload-")
            self.path = Path(name)
        for part in parts:
            self.hash.update(part)
            self.size_bytes += len(part)
            rest = memoryview(part)
            while rest:
                rest = rest[os.write(self._descriptor, rest) :]

    def finish(self, parts: list[bytes]) -> None:
        self.write(parts)
        os.close(self._descriptor)
        self._descriptor = -1

    def discard(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
        if self.path is not None:
            with contextlib.suppress(FileNotFoundError):  # the blob store may have moved it to its place
                self.path.unlink()


def new_blob_key(sha256: bytes, now_ms: int, number: int | None = None) -> str:
    """Returns a new key: the content's hash, the creation time, and a few random characters.

    number: of the key that seals the blob, see `sealed_blobs.py`.
    """
    digest = sha256.hex()
    return f"{shard_folder(sha256[0] >> 4)}/{digest}-{now_ms:x}-{secrets.token_hex(4)}{sealed_blobs.suffix_of(number)}"


def shard_folder(shard: int) -> str:
    """Returns one of 16 folders, so that no folder has too many entries and each can be listed by itself."""
    return f"media/{shard:x}"


def blob_created_ms(blob_key: str) -> int | None:
    """Returns the creation time in the key; None if the key was not made by `new_blob_key`."""
    match = _BLOB_KEY.fullmatch(blob_key)
    return None if match is None else int(match[1], 16)


async def keep(hs: Resources, received: Received, content_type: str, store: Callable[[Transaction, Blob], T]) -> T:
    """Makes the content durable, then runs `store` in one write. Returns its result, raises its exceptions.

    content_type: what an object store says that it is, if clients fetch it there.

    If the same content is stored already, its blob is shared. If that blob turns out to be lost or truncated, this
    content replaces it for every file that shared it.
    """
    whole_key: str | None = None  # a complete blob with this content
    lost_key: str | None = None  # a lost or truncated one
    if isinstance(received.data, Path):  # small content is cheaper to store in vain than to look up first
        shared_key = await hs.database.read(storage.find_blob_key, received.sha256)
        if shared_key is not None and await _is_whole(hs, shared_key, received.size_bytes):
            try:
                return await hs.database.write(_share, Blob(shared_key, received.sha256, received.size_bytes), store)
            except BlobGone:
                pass  # its last owner has just deleted it
        lost_key = shared_key
    number = await sealed_blobs.new_key(hs)
    blob = Blob(new_blob_key(received.sha256, hs.now_ms(), number), received.sha256, received.size_bytes)
    await sealed_blobs.put(hs, blob.key, received.data, stored_headers(content_type))
    try:
        while True:
            try:
                return await hs.database.write(_share_or_store, blob, store, whole_key, lost_key)
            except _NotChecked as found:
                is_whole = await _is_whole(hs, found.blob_key, blob.size_bytes)
                whole_key, lost_key = (found.blob_key, None) if is_whole else (None, found.blob_key)
    except MatrixError:  # the write was refused, so no row has the key; after any other error the clean-up decides
        await hs.blobs.delete(blob.key)
        raise


class _NotChecked(Exception):
    """A blob with the same content is stored already, but has not been checked for completeness."""

    def __init__(self, blob_key: str) -> None:
        super().__init__(blob_key)
        self.blob_key = blob_key


async def _is_whole(hs: Resources, blob_key: str, size_bytes: int) -> bool:
    """Returns whether the stored blob exists in its full length, which costs one stat."""
    try:
        stored_bytes = await hs.blobs.size_bytes(blob_key)
    except KeyError:
        stored_bytes = None
    is_whole = stored_bytes == sealed_blobs.stored_bytes(blob_key, size_bytes)
    if not is_whole:
        _log.warning("a stored file was lost; it is replaced by a new upload", extra={"blob": blob_key})
    return is_whole


def _share_or_store(
    tx: Transaction, blob: Blob, store: Callable[[Transaction, Blob], T], whole_key: str | None, lost_key: str | None
) -> T:
    shared_key = storage.find_blob_key(tx, blob.sha256)
    if shared_key is None:
        return store(tx, blob)
    if shared_key == lost_key:
        storage.replace_blob(tx, shared_key, blob)
        return store(tx, blob)
    if shared_key != whole_key:
        raise _NotChecked(shared_key)
    storage.note_released(tx, blob.key)
    storage.forget_unused_key(tx, blob.key)
    return store(tx, replace(blob, key=shared_key))


def _share(tx: Transaction, blob: Blob, store: Callable[[Transaction, Blob], T]) -> T:
    storage.check_shared(tx, blob.key)
    return store(tx, blob)


async def limited(chunks: AsyncIterator[bytes], bytes_max: int, error: Exception) -> AsyncGenerator[bytes]:
    """Yields the chunks. Raises `error` once they are longer than `bytes_max`."""
    size_bytes = 0
    async for chunk in chunks:
        size_bytes += len(chunk)
        if size_bytes > bytes_max:
            raise error
        yield chunk


async def whole(data: bytes) -> AsyncIterator[bytes]:
    """Yields content that is in memory as chunks."""
    if data:
        yield data
