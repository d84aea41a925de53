"""Blobs: media and archive segments, stored by key, in a local folder or in S3, Google or Azure storage.

Object stores are accessed through obstore, which also lists and deletes local blobs. Local blobs are written and read
here instead, because obstore does not fsync, and streaming 8 MiB through it costs 32 ms of CPU where reading the file
costs 0.4 ms.
"""

from __future__ import annotations

import errno
import math
import os
import re
import secrets
import shutil
import stat
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from datetime import timedelta
from io import RawIOBase
from pathlib import Path
from typing import Any, TypeVar

import trio

from homeserver.durable_files import sync_path
from homeserver.errors import StorageDamaged, StorageError
from homeserver.limits import (
    BLOB_CHUNK_BYTES,
    BLOB_KEY_CHARACTERS_MAX,
    BLOB_REQUEST_SECONDS_MAX,
    BLOB_RETRIES_MAX,
    BLOB_RETRY_SECONDS_MAX,
    BLOB_THREADS_MAX,
)
from homeserver.process.outages import BLOBS, WRITE_PROVEN_SECONDS, Outages, check_room

# No characters that are special in file systems or URLs, no hidden files, and no way out of the folder.
_KEY = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,127}(/[A-Za-z0-9_-][A-Za-z0-9._-]{0,127})*", re.ASCII)
_INCOMING = ".incoming"
_PROBE = "probe"
_CLIENT_OPTIONS = ("allow_http", "allow_invalid_certificates", "proxy_url", "timeout", "connect_timeout")

T = TypeVar("T")


class BlobError(StorageError):
    """The storage cannot be reached or refuses the operation. A retry may succeed later."""


class BlobDamaged(BlobError, StorageDamaged):
    """The blob is unreadable or has the wrong length. A retry does not help."""


class Blobs:
    """Stores blobs by keys such as `media/ab/cdef`, whose parts consist of letters, digits, `.`, `_` and `-`.

    All methods raise ValueError for any other key, and BlobError if the storage fails. A blob is replaced or removed as
    a whole; a reader that has opened it keeps reading the old content.
    """

    def __init__(self, url: str, *, inline: bool = False, outages: Outages | None = None) -> None:
        """Opens nothing yet: the storage is opened when it is first used.

        url: "file:PATH", "s3://bucket/prefix", "gs://…", "az://…" or "memory:". Object stores read their credentials
        and endpoints from the usual environment variables (AWS_… and so on).
        inline: run on the trio thread itself, for tests with a virtual clock.
        outages: is notified of failures and damage.
        """
        self._url = url
        self._outages = outages or Outages()
        self._outages.add_probe(BLOBS, self._probe)
        self._proven_at = -math.inf  # when a write last succeeded
        self._inline = inline
        self._folder = Path(url.removeprefix("file:")).absolute() if url.startswith("file:") else None
        if self._folder is not None and url.startswith("file://"):
            self._folder = Path(url.removeprefix("file://"))
        self._opened: Any = None
        self._is_made = False  # whether the local folder is known to exist
        self._limiter = trio.CapacityLimiter(BLOB_THREADS_MAX)

    async def prepare(self) -> None:
        """Creates the local folder, if blobs are stored in one. Raises BlobError if it is not writable.

        This is not reported as an outage: a server with an unusable folder does not start.
        """
        if self._folder is not None:
            await self._run(self._prepare_folder, self._folder)

    async def prove_writable(self) -> None:
        """Raises BlobError if the local folder is full or not writable. Object stores are not probed: each request
        costs money.
        """
        if self._folder is not None and trio.current_time() - self._proven_at > WRITE_PROVEN_SECONDS:
            await self._probe()

    def failure(self, error: Exception) -> BlobError:
        """Reports a failure on the way to the storage, and returns the exception to raise."""
        self._outages.failed(BLOBS, str(error))
        return BlobError(f"The blob storage failed: {error}")

    async def put(self, key: str, data: bytes | Path, headers: Mapping[str, str] | None = None) -> None:
        """Stores `data`, or the content of the file at that path, under `key`. The blob is durable when this returns.

        headers: "Content-Type" and "Content-Disposition" with which an object store serves it at its `find_url`.
        The caller may delete the file afterwards but must not write to it: a local folder may hard-link it.
        """
        _check_key(key)
        if self._folder is not None:
            await self._call(self._put_in_folder, key, data)
        else:
            await self._call(self._put_in_store, key, data, headers)

    async def get(self, key: str, *, expected_bytes: int | None = None) -> bytes:
        """Returns the whole blob. Raises KeyError if there is none, BlobDamaged if it is not `expected_bytes` long."""
        return await self._call(self._get, _check_key(key), expected_bytes)

    async def stream(
        self, key: str, start: int = 0, end: int | None = None, *, expected_bytes: int | None = None
    ) -> AsyncIterator[bytes]:
        """Yields the bytes start ≤ i < end in chunks. Raises KeyError if there is no such blob.

        Raises BlobDamaged before the first chunk if the whole blob is not `expected_bytes` long.
        """
        if start < 0 or (end is not None and end < start):
            raise ValueError(f"no such range: {start} to {end}")
        size_bytes = await self._call(self._size_bytes, _check_key(key), expected_bytes)
        end = size_bytes if end is None else min(end, size_bytes)
        if start >= end:
            return
        chunks = await self._call(self._open, key, start, end)
        while (chunk := await self._call(_next_chunk, chunks)) is not None:
            for offset in range(0, len(chunk), BLOB_CHUNK_BYTES):  # some stores return everything at once
                yield chunk[offset : offset + BLOB_CHUNK_BYTES]

    async def find_url(self, key: str, seconds: int) -> str | None:
        """Returns a URL from which anyone can GET the blob for some seconds; None if the storage cannot make one.

        Does not check whether the blob exists.
        """
        if self._folder is not None or self._url.startswith("memory:"):
            return None
        return await self._call(self._sign, _check_key(key), timedelta(seconds=seconds))

    async def size_bytes(self, key: str) -> int:
        """Returns the length of the blob in bytes. Raises KeyError if there is none."""
        return await self._call(self._size_bytes, _check_key(key))

    async def exists(self, key: str) -> bool:
        """Returns whether the blob exists."""
        try:
            await self.size_bytes(key)
        except KeyError:
            return False
        return True

    async def delete(self, key: str) -> None:
        """Removes the blob, if it exists."""
        await self._call(self._delete, _check_key(key))

    async def list(self, folder: str = "") -> AsyncIterator[tuple[str, int]]:
        """Yields (key, size in bytes) of every blob below `folder` ("media/ab"; "" for all), in no particular order."""
        pages = await self._call(self._list, _check_key(folder) if folder else None)
        while (page := await self._call(next, pages, None)) is not None:
            for entry in page:
                if _KEY.fullmatch(entry["path"]):  # skip foreign files and unfinished uploads
                    yield entry["path"], entry["size"]

    async def _call(self, fn: Callable[..., T], *args: Any) -> T:
        """Runs `fn` as `_run` does, and reports its failures as outages or damage."""
        try:
            return await self._run(fn, *args)
        except BlobDamaged as error:
            self._outages.damaged(str(error))
            raise
        except BlobError as error:
            self._outages.failed(BLOBS, str(error))
            raise

    async def _run(self, fn: Callable[..., T], *args: Any) -> T:
        """Runs `fn` in a thread, unless the storage is inline, and returns its result. Raises BlobError."""
        if self._inline:
            await trio.lowlevel.checkpoint()
            return self._translate_errors(fn, *args)
        return await trio.to_thread.run_sync(self._translate_errors, fn, *args, limiter=self._limiter)

    async def _probe(self) -> None:
        if self._folder is not None:
            await self._call(_check_folder, self._folder)
        else:
            await self.put(_PROBE, b"probe")
            await self.delete(_PROBE)
        self._proven_at = trio.current_time()

    # Everything below runs in a thread.

    def _translate_errors(self, fn: Callable[..., T], *args: Any) -> T:
        try:
            return fn(*args)
        except FileNotFoundError as error:
            if self._folder is not None and self._is_made and not (self._folder / _INCOMING).is_dir():
                raise BlobError(f"The folder {self._folder} is gone, or is not mounted.") from error
            raise KeyError(args[0] if args else "") from None
        except OSError as error:
            kind = BlobDamaged if error.errno == errno.EIO and fn in (self._get, _next_chunk) else BlobError
            raise kind(f"The blob storage failed: {error}") from error
        except Exception as error:
            # We can name obstore's exceptions only after importing it, and most derive from Exception directly.
            if type(error).__module__.startswith("obstore"):
                raise BlobError(f"The blob storage failed: {str(error).splitlines()[0]}") from error
            raise

    @property
    def _store(self) -> Any:
        if self._opened is None:
            # Imported late: it takes 6 MB, which a server without media does not need.
            from obstore.store import LocalStore, MemoryStore, from_url

            if self._folder is not None:
                self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
                self._opened = LocalStore(self._folder)
            elif self._url.startswith("memory:"):
                self._opened = MemoryStore()
            else:
                longest = timedelta(seconds=BLOB_RETRY_SECONDS_MAX)
                retry: Any = {"max_retries": BLOB_RETRIES_MAX, "retry_timeout": longest}
                self._opened = from_url(self._url, retry_config=retry, client_options=_client_options(self._url))
        return self._opened

    def _prepare_folder(self, folder: Path) -> None:
        incoming = folder / _INCOMING
        try:
            _make_folder(incoming)
            if not os.access(incoming, os.W_OK | os.X_OK):
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
            self._is_made = True
        except OSError as error:
            raise BlobError(f"nothing can be stored in {folder}: {error.strerror}") from error

    def _put_in_store(self, key: str, data: bytes | Path, headers: Mapping[str, str] | None) -> None:
        self._store.put(key, data, attributes=headers)

    def _sign(self, key: str, duration: timedelta) -> str:
        from obstore import sign  # as late as the store itself

        return sign(self._store, "GET", key, duration)

    def _put_in_folder(self, key: str, data: bytes | Path) -> None:
        """Writes the blob to a temporary file, syncs it to the disk and renames it. obstore would not sync."""
        assert self._folder is not None
        target = self._folder / key
        incoming = self._folder / _INCOMING
        _make_folder(incoming)
        _make_folder(target.parent)
        temporary = incoming / secrets.token_hex(16)
        try:
            if isinstance(data, Path):
                _link_or_copy(data, temporary)
            else:
                temporary.write_bytes(data)
            sync_path(temporary)
            os.replace(temporary, target)
        finally:
            temporary.unlink(missing_ok=True)
        sync_path(target.parent)

    def _get(self, key: str, expected_bytes: int | None) -> bytes:
        """Returns the whole blob. One of another size is not read: it may be larger than the memory."""
        if self._folder is not None:
            self._size_bytes(key, expected_bytes)
            data = (self._folder / key).read_bytes()
        else:
            found = self._store.get(key)
            _check_size(key, int(found.meta["size"]), expected_bytes)
            data = bytes(found.bytes())
        _check_size(key, len(data), expected_bytes)  # the storage may have said anything
        return data

    def _open(self, key: str, start: int, end: int) -> Iterator[bytes]:
        if self._folder is not None:
            return _read_file((self._folder / key).open("rb", buffering=0), start, end)
        return iter(self._store.get(key, options={"range": (start, end)}).stream(min_chunk_size=BLOB_CHUNK_BYTES))

    def _size_bytes(self, key: str, expected_bytes: int | None = None) -> int:
        if self._folder is not None:
            size_bytes = _file_size_bytes(self._folder / key)
        else:
            size_bytes = int(self._store.head(key)["size"])
        _check_size(key, size_bytes, expected_bytes)
        return size_bytes

    def _delete(self, key: str) -> None:
        try:
            self._store.delete(key)
        except FileNotFoundError:
            pass

    def _list(self, folder: str | None) -> Iterator[Any]:
        return iter(self._store.list(folder, chunk_size=1000))


def _client_options(url: str) -> Any:
    """Returns the timeout and connection options, read from the environment because obstore ignores these variables."""
    provider = {"s3": "AWS", "gs": "GOOGLE", "az": "AZURE"}.get(url.partition(":")[0], "")
    given = {name: os.environ.get(f"{provider}_{name.upper()}") for name in _CLIENT_OPTIONS}
    chosen = {name: value for name, value in given.items() if value is not None}
    return {"timeout": f"{BLOB_REQUEST_SECONDS_MAX}s", **chosen}


def _check_key(key: str) -> str:
    if len(key) > BLOB_KEY_CHARACTERS_MAX or not _KEY.fullmatch(key):
        raise ValueError(f"not a blob key: {key[:100]!r}")
    return key


def _check_size(key: str, size_bytes: int, expected_bytes: int | None) -> None:
    if expected_bytes is not None and size_bytes != expected_bytes:
        raise BlobDamaged(f"The blob {key} has {size_bytes} bytes instead of {expected_bytes}.")


def _check_folder(folder: Path) -> None:
    incoming = folder / _INCOMING
    _make_folder(incoming)
    check_room(incoming)


def _next_chunk(chunks: Iterator[Any]) -> bytes | None:
    chunk = next(chunks, None)
    return None if chunk is None else bytes(chunk)


def _file_size_bytes(path: Path) -> int:
    status = path.stat()
    if not stat.S_ISREG(status.st_mode):
        raise FileNotFoundError(path)
    return status.st_size


def _read_file(file: RawIOBase, start: int, end: int) -> Iterator[bytes]:
    with file:
        file.seek(start)
        while start < end and (chunk := file.read(min(BLOB_CHUNK_BYTES, end - start))):
            start += len(chunk)
            yield chunk


def _make_folder(folder: Path) -> None:
    """Creates the folder and its parents, durably."""
    if not folder.is_dir():
        _make_folder(folder.parent)
        folder.mkdir(mode=0o700, exist_ok=True)
        sync_path(folder.parent)


def _link_or_copy(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except FileNotFoundError:
        raise ValueError(f"there is no file {source}") from None
    except OSError:  # different file systems, or one without hard links
        shutil.copyfile(source, target)
