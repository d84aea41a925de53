"""The files of unfinished resumable uploads, in a local folder. Its functions run in worker threads.

A file may be longer than what has been acknowledged: a crash leaves what was written after the last `sync`. Opening it
cuts that off, so the acknowledged offset is always the end of what is durable.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Collection
from contextlib import suppress
from pathlib import Path
from typing import Any

from homeserver.durable_files import sync_path

# How much of a file is hashed in one turn of a worker thread: 50 ms.
HASHED_BYTES = 32 << 20

_PREFIX = "resumable-"


class PartGone(Exception):
    """The file is missing or shorter than what was acknowledged: somebody has deleted it, or restored a database."""


class PartFile:
    """The content of one unfinished upload. One task at a time uses it."""

    def __init__(self, folder: Path, upload_id: str, offset_bytes: int) -> None:
        """offset_bytes: up to where the content is durable."""
        self.path = folder / f"{_PREFIX}{upload_id}"
        self.offset_bytes = offset_bytes
        self._descriptor = -1

    def open(self) -> None:
        """Opens the file for writing at the offset. Raises PartGone, OSError."""
        if self.offset_bytes == 0:
            self.path.parent.mkdir(parents=True, exist_ok=True)
        is_new = not self.path.exists()
        if is_new and self.offset_bytes:
            raise PartGone
        self._descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        if os.fstat(self._descriptor).st_size < self.offset_bytes:
            raise PartGone
        os.ftruncate(self._descriptor, self.offset_bytes)
        os.lseek(self._descriptor, self.offset_bytes, os.SEEK_SET)
        if is_new:
            sync_path(self.path.parent)

    def write(self, parts: list[bytes]) -> None:
        """Writes the parts at the end."""
        for part in parts:
            rest = memoryview(part)
            while rest:
                rest = rest[os.write(self._descriptor, rest) :]
            self.offset_bytes += len(part)

    def sync(self) -> None:
        """Makes everything durable that has been written."""
        os.fdatasync(self._descriptor)

    def close(self) -> None:
        """Closes the file, if it is open."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


def hash_slice(path: Path, start: int, digest: Any) -> int:
    """Adds up to HASHED_BYTES of the file from `start` on to a hash. Returns how many there were."""
    with path.open("rb", buffering=0) as file:
        file.seek(start)
        seen = 0
        while seen < HASHED_BYTES and (data := file.read(min(1 << 20, HASHED_BYTES - seen))):
            digest.update(data)
            seen += len(data)
    return seen


def new_digest() -> Any:
    """Returns the hash by which content is stored."""
    return hashlib.sha256()


def delete_part(folder: Path, upload_id: str) -> None:
    """Deletes the file of an upload, if there is one."""
    with suppress(FileNotFoundError):
        (folder / f"{_PREFIX}{upload_id}").unlink()


def list_parts(folder: Path) -> list[str]:
    """Returns the IDs of the uploads that have a file."""
    return [path.name.removeprefix(_PREFIX) for path in folder.glob(f"{_PREFIX}*")]


def delete_parts(folder: Path, upload_ids: Collection[str]) -> None:
    """Deletes the files of uploads."""
    for upload_id in upload_ids:
        delete_part(folder, upload_id)
