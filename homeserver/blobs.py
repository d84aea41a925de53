"""Blobs: media and archive segments, by key. A local folder by default; S3, Google or Azure storage by URL.

obstore does the work, but for writing and reading blobs of a local folder: it does not wait for the disk, and streaming
8 MiB through it costs 32 ms of CPU where reading the file costs 0.4.
"""

from __future__ import annotations

import errno
import math
import os
import re
import secrets
import shutil
import stat
from collections.abc import AsyncIterator, Callable, Iterator
from datetime import timedelta
from io import RawIOBase
from pathlib import Path
from typing import Any, TypeVar

import trio

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

# Nothing that a file system or a URL treats in a special way, no hidden file, nothing that climbs out of the folder.
_KEY = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,127}(/[A-Za-z0-9_-][A-Za-z0-9._-]{0,127})*", re.ASCII)
_INCOMING = ".incoming"
_PROBE = "probe"
_CLIENT_OPTIONS = ("allow_http", "allow_invalid_certificates", "proxy_url", "timeout", "connect_timeout")

T = TypeVar("T")


class BlobError(StorageError):
    """The storage cannot be reached, or refuses. The same call may work later."""


class BlobDamaged(BlobError, StorageDamaged):
    """The blob cannot be read back, or is not as long as it was. That does not pass."""


class Blobs:
    """Keys are like `media/ab/cdef`: parts of letters, digits, `.`, `_` and `-`. ValueError for any other key.

    All methods: BlobError if the storage fails. A blob is replaced or removed whole; who is reading it reads on.
    """

    def __init__(self, url: str, *, inline: bool = False, outages: Outages | None = None) -> None:
        """url: "file:PATH", "s3://bucket/prefix", "gs://…", "az://…", "memory:". Nothing is opened before it is used.

        Credentials and endpoints of object stores come from their usual environment variables (AWS_… and the like).
        inline: works on the trio thread itself (tests under a virtual clock). outages: what is told of failures.
        """
        self._url = url
        self._outages = outages or Outages()
        self._outages.add_probe(BLOBS, self._probe)
        self._proven_at = -math.inf  # when it was last proven that blobs can be stored
        self._inline = inline
        self._folder = Path(url.removeprefix("file:")).absolute() if url.startswith("file:") else None
        if self._folder is not None and url.startswith("file://"):
            self._folder = Path(url.removeprefix("file://"))
        self._opened: Any = None
        self._is_made = False  # whether the local folder was seen to be there
        self._limiter = trio.CapacityLimiter(BLOB_THREADS_MAX)

    async def prepare(self) -> None:
        """Makes the local folder, if blobs are kept in one. Raises BlobError if nothing can be stored in it.

        That is not an outage: a server whose folder cannot be used does not start.
        """
        if self._folder is not None:
            await self._run(self._prepare_folder, self._folder)

    async def prove_writable(self) -> None:
        """Raises BlobError if the local folder takes no more. An object store is not asked: each request costs."""
        if self._folder is not None and trio.current_time() - self._proven_at > WRITE_PROVEN_SECONDS:
            await self._probe()

    def failure(self, error: Exception) -> BlobError:
        """Reports that something on the way to the storage failed by `error`; returns the exception to raise."""
        self._outages.failed(BLOBS, str(error))
        return BlobError(f"The storage of blobs fails: {error}")

    async def put(self, key: str, data: bytes | Path) -> None:
        """Stores `data`, or the content of the file at that path, under `key`; durable when this returns.

        The file may be deleted afterwards, but must not be written to: a local folder shares it.
        """
        _check_key(key)
        await self._call(self._put_in_folder if self._folder is not None else self._put_in_store, key, data)

    async def get(self, key: str, *, expected_bytes: int | None = None) -> bytes:
        """The whole blob. KeyError if there is none, BlobDamaged if it is not `expected_bytes` long."""
        data = await self._call(self._get, _check_key(key))
        self._check_size(key, len(data), expected_bytes)
        return data

    async def stream(
        self, key: str, start: int = 0, end: int | None = None, *, expected_bytes: int | None = None
    ) -> AsyncIterator[bytes]:
        """The bytes start ≤ i < end, in chunks. KeyError if there is no such blob.

        BlobDamaged before the first chunk if the whole blob is not `expected_bytes` long.
        """
        if start < 0 or (end is not None and end < start):
            raise ValueError(f"no such range: {start} to {end}")
        size_bytes = await self.size_bytes(key)
        self._check_size(key, size_bytes, expected_bytes)
        end = size_bytes if end is None else min(end, size_bytes)
        if start >= end:
            return
        chunks = await self._call(self._open, key, start, end)
        while (chunk := await self._call(_next_chunk, chunks)) is not None:
            for offset in range(0, len(chunk), BLOB_CHUNK_BYTES):  # some stores give everything at once
                yield chunk[offset : offset + BLOB_CHUNK_BYTES]

    async def size_bytes(self, key: str) -> int:
        """How long the blob is. KeyError if there is none."""
        return await self._call(self._size_bytes, _check_key(key))

    async def exists(self, key: str) -> bool:
        """Whether there is such a blob."""
        try:
            await self.size_bytes(key)
        except KeyError:
            return False
        return True

    async def delete(self, key: str) -> None:
        """Removes the blob; nothing happens if there is none."""
        await self._call(self._delete, _check_key(key))

    async def list(self, folder: str = "") -> AsyncIterator[tuple[str, int]]:
        """Every (key, size in bytes) below `folder` ("media/ab"; "" is everything), in no order."""
        pages = await self._call(self._list, _check_key(folder) if folder else None)
        while (page := await self._call(next, pages, None)) is not None:
            for entry in page:
                if _KEY.fullmatch(entry["path"]):  # else it is none of ours, or is still being written
                    yield entry["path"], entry["size"]

    async def _call(self, fn: Callable[..., T], *args: Any) -> T:
        """What `fn` returns, run as `_run` does. Its failures are reported as outages or damage."""
        try:
            return await self._run(fn, *args)
        except BlobDamaged as error:
            self._outages.damaged(str(error))
            raise
        except BlobError as error:
            self._outages.failed(BLOBS, str(error))
            raise

    async def _run(self, fn: Callable[..., T], *args: Any) -> T:
        """What `fn` returns, in a thread unless the storage is inline. Raises BlobError."""
        if self._inline:
            await trio.lowlevel.checkpoint()
            return self._translate_errors(fn, *args)
        return await trio.to_thread.run_sync(self._translate_errors, fn, *args, limiter=self._limiter)

    def _check_size(self, key: str, size_bytes: int, expected_bytes: int | None) -> None:
        if expected_bytes is not None and size_bytes != expected_bytes:
            damage = f"The blob {key} has {size_bytes} bytes instead of {expected_bytes}."
            self._outages.damaged(damage)
            raise BlobDamaged(damage)

    async def _probe(self) -> None:
        if self._folder is not None:
            await self._call(_check_folder, self._folder)
        else:
            await self.put(_PROBE, b"probe")
            await self.delete(_PROBE)
        self._proven_at = trio.current_time()

    # In a thread

    def _translate_errors(self, fn: Callable[..., T], *args: Any) -> T:
        try:
            return fn(*args)
        except FileNotFoundError as error:
            if self._folder is not None and self._is_made and not (self._folder / _INCOMING).is_dir():
                raise BlobError(f"The folder {self._folder} is gone, or is not mounted.") from error
            raise KeyError(args[0] if args else "") from None
        except OSError as error:
            kind = BlobDamaged if error.errno == errno.EIO and fn in (self._get, _next_chunk) else BlobError
            raise kind(f"The storage of blobs fails: {error}") from error
        except Exception as error:
            # obstore's errors can be named only after its import, and most derive from Exception directly
            if type(error).__module__.startswith("obstore"):
                raise BlobError(f"The storage of blobs fails: {str(error).splitlines()[0]}") from error
            raise

    @property
    def _store(self) -> Any:
        if self._opened is None:
            # Imported here: 6 MB that a server without media need not hold.
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

    def _put_in_store(self, key: str, data: bytes | Path) -> None:
        self._store.put(key, data)

    def _put_in_folder(self, key: str, data: bytes | Path) -> None:
        """obstore does not wait for the disk, so that the folder is written here: aside, to the disk, then in place."""
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
            _sync(temporary)
            os.replace(temporary, target)
        finally:
            temporary.unlink(missing_ok=True)
        _sync(target.parent)

    def _get(self, key: str) -> bytes:
        if self._folder is not None:
            return (self._folder / key).read_bytes()
        return bytes(self._store.get(key).bytes())

    def _open(self, key: str, start: int, end: int) -> Iterator[bytes]:
        if self._folder is not None:
            return _read_file((self._folder / key).open("rb", buffering=0), start, end)
        return iter(self._store.get(key, options={"range": (start, end)}).stream(min_chunk_size=BLOB_CHUNK_BYTES))

    def _size_bytes(self, key: str) -> int:
        if self._folder is not None:
            return _file_size_bytes(self._folder / key)
        return int(self._store.head(key)["size"])

    def _delete(self, key: str) -> None:
        try:
            self._store.delete(key)
        except FileNotFoundError:
            pass

    def _list(self, folder: str | None) -> Iterator[Any]:
        return iter(self._store.list(folder, chunk_size=1000))


def _client_options(url: str) -> Any:
    """How long a request may take, and what the environment says of the connection, which obstore else forgets."""
    provider = {"s3": "AWS", "gs": "GOOGLE", "az": "AZURE"}.get(url.partition(":")[0], "")
    given = {name: os.environ.get(f"{provider}_{name.upper()}") for name in _CLIENT_OPTIONS}
    chosen = {name: value for name, value in given.items() if value is not None}
    return {"timeout": f"{BLOB_REQUEST_SECONDS_MAX}s", **chosen}


def _check_key(key: str) -> str:
    if len(key) > BLOB_KEY_CHARACTERS_MAX or not _KEY.fullmatch(key):
        raise ValueError(f"not a blob key: {key[:100]!r}")
    return key


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
    """Makes the folder and those above it, durably."""
    if not folder.is_dir():
        _make_folder(folder.parent)
        folder.mkdir(mode=0o700, exist_ok=True)
        _sync(folder.parent)


def _link_or_copy(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except FileNotFoundError:
        raise ValueError(f"there is no file {source}") from None
    except OSError:  # another file system, or one without links
        shutil.copyfile(source, target)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
