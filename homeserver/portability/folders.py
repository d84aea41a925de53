"""Folders that are exported and imported.

Theory of operation
- A folder is written under another name beside its place, and gets its name once everything in it is on the disk. So it
  is there whole or not at all. What a killed export has left is removed by the next one with the same place; a lock
  tells it from one that is still at work.
- `manifest.json` is written last. It has the size and the SHA-256 of every other file, and is signed with the server's
  key, so that the server knows what it has exported itself.
- A folder that is read comes from anywhere. Only regular files that the manifest lists are opened, by names that cannot
  leave the folder, never through a symbolic link, and no further than the size in the manifest; lines have a limit.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import re
import shutil
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import msgspec

from homeserver.durable_files import sync_path
from homeserver.federation import canonical_json
from homeserver.federation.identifiers import ServerName
from homeserver.federation.signing import SigningKey, sign_json

FORMAT = "org.homeserver.export"
VERSION = 1
MANIFEST = "manifest.json"
LINE_BYTES_MAX = 256 * 1024  # an event has at most 64 KiB, which JSON can only make longer by escaping
MANIFEST_BYTES_MAX = 256 << 20  # a million files of 200 bytes
FILE_BYTES_MAX = 1 << 40
_NAME = re.compile(r"(?:[a-z0-9][a-z0-9_-]{0,100}/)?[a-z0-9][a-z0-9_-]{0,100}(?:\.[a-z0-9]{1,10})?", re.ASCII)
_CHUNK = 1 << 20


class ExportError(Exception):
    """A folder cannot be written or read. The message is one sentence for the person at the terminal."""


class NewFile(msgspec.Struct):
    """A file that is being written."""

    name: str
    file: BinaryIO
    hash: Any = msgspec.field(default_factory=hashlib.sha256)
    size: int = 0

    def write(self, data: bytes) -> None:
        """Appends to the file. Raises ExportError."""
        try:
            self.file.write(data)
        except OSError as error:
            raise ExportError(f"cannot write {self.name}: {error.strerror}") from error
        self.hash.update(data)
        self.size += len(data)


class NewFolder:
    """A folder that is being written, see the module's docstring. Use it as a context."""

    def __init__(self, target: Path) -> None:
        self.target = target.absolute()
        self._beside = self.target.with_name(f".{self.target.name}.unfinished")
        self._lock = -1
        self._files: dict[str, dict[str, Any]] = {}

    def __enter__(self) -> NewFolder:
        """Raises ExportError if there is something at the place already, or another export is writing there."""
        if self.target.exists() or self.target.is_symlink():
            raise ExportError(f"{self.target} exists already; choose another folder, or remove it first")
        try:
            self._lock = os.open(
                self._beside.with_suffix(".lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600
            )
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if self._beside.exists():
                shutil.rmtree(self._beside)
            self._beside.mkdir(mode=0o700)
        except BlockingIOError:
            os.close(self._lock)
            raise ExportError(f"another export to {self.target} is running") from None
        except OSError as error:
            raise ExportError(f"cannot write to {self.target.parent}: {error.strerror}") from error
        return self

    def __exit__(self, *_: object) -> None:
        if self._beside.exists():
            shutil.rmtree(self._beside, ignore_errors=True)
        self._beside.with_suffix(".lock").unlink(missing_ok=True)
        os.close(self._lock)

    def has(self, name: str) -> bool:
        """Returns whether the file has been written."""
        return name in self._files

    def begin(self, name: str) -> NewFile:
        """Begins a file; `end` ends it. Raises ExportError."""
        assert _NAME.fullmatch(name), name
        path = self._beside / name
        try:
            path.parent.mkdir(mode=0o700, exist_ok=True)
            return NewFile(name, open(path, "xb"))
        except OSError as error:
            raise ExportError(f"cannot write {name}: {error.strerror}") from error

    def end(self, file: NewFile) -> None:
        """Makes a file durable, and lists it. Raises ExportError."""
        try:
            file.file.flush()
            os.fsync(file.file.fileno())
            file.file.close()
        except OSError as error:
            raise ExportError(f"cannot write {file.name}: {error.strerror}") from error
        self._files[file.name] = {"bytes": file.size, "sha256": file.hash.hexdigest()}

    def abandon(self, file: NewFile) -> None:
        """Removes a file whose content cannot be read to its end."""
        file.file.close()
        (self._beside / file.name).unlink(missing_ok=True)

    def add(self, name: str, content: bytes) -> None:
        """Writes a whole file. Raises ExportError."""
        file = self.begin(name)
        file.write(content)
        self.end(file)

    def finish(self, about: Mapping[str, Any], server_name: ServerName, key: SigningKey) -> None:
        """Writes the manifest, and gives the folder its name. Raises ExportError."""
        manifest = {"format": FORMAT, "version": VERSION, "server_name": server_name, **about, "files": self._files}
        signed = sign_json(manifest, server_name, key)
        file = self.begin(MANIFEST)
        file.write(json.dumps(signed, ensure_ascii=False, indent=1).encode())
        self.end(file)
        try:
            for folder in {self._beside, *(path for path in self._beside.iterdir() if path.is_dir())}:
                sync_path(folder)
            os.rename(self._beside, self.target)
            sync_path(self.target.parent)
        except OSError as error:
            raise ExportError(f"cannot write {self.target}: {error.strerror}") from error


class ListedFile(msgspec.Struct, frozen=True):
    """A file as the manifest lists it."""

    bytes: int
    sha256: str


class Manifest(msgspec.Struct, frozen=True):
    """What the manifest says, see docs/export.md."""

    format: str
    version: int
    kind: str
    server_name: str
    files: dict[str, ListedFile]
    room_id: str = ""
    room_version: str = ""
    events: int = 0


class OldFolder:
    """A folder that is read. It may be hostile."""

    def __init__(self, path: Path) -> None:
        """Reads the manifest. Raises ExportError if this is not an export, or not a sound one."""
        self.path = path
        data = self._read_whole(MANIFEST, MANIFEST_BYTES_MAX)
        try:
            self.raw: dict[str, Any] = canonical_json.decode(data)
            self.manifest = msgspec.convert(self.raw, Manifest)
        except (ValueError, msgspec.ValidationError, RecursionError) as error:
            raise ExportError(f"{path}: the manifest is not that of an export: {error}") from error
        if self.manifest.format != FORMAT:
            raise ExportError(f"{path} is not an export: its manifest names another format")
        if self.manifest.version != VERSION:
            raise ExportError(f"{path} was exported by a newer version of the program; upgrade to read it")
        for name, listed in self.manifest.files.items():
            if not _NAME.fullmatch(name):
                raise ExportError(f"{path}: the manifest lists a file of a forbidden name, {name[:100]!r}")
            if not 0 <= listed.bytes <= FILE_BYTES_MAX:
                raise ExportError(f"{path}: the manifest lists an impossible size for {name}")
        self.id = hashlib.sha256(data).hexdigest()

    def lines(self, name: str) -> Iterator[dict[str, Any]]:
        """Yields the objects of a file with one on each line, checked as they are read. Raises ExportError."""
        listed = self._listed(name)
        digest, size, number = hashlib.sha256(), 0, 0
        with self._open(name, listed.bytes) as file:
            while line := file.readline(LINE_BYTES_MAX + 1):
                number += 1
                digest.update(line)
                size += len(line)
                if len(line) > LINE_BYTES_MAX:
                    raise ExportError(f"{name}: line {number} is longer than any event")
                try:
                    value = canonical_json.decode(line)
                except (ValueError, RecursionError) as error:
                    raise ExportError(f"{name}: line {number} is not JSON: {error}") from error
                if not isinstance(value, dict):
                    raise ExportError(f"{name}: line {number} is not an object")
                yield value
        if size != listed.bytes or digest.hexdigest() != listed.sha256:
            raise ExportError(f"{name} is not the file that was exported: its checksum differs")

    def check(self, name: str) -> None:
        """Reads a file once. Raises ExportError unless it is the one that was exported."""
        listed = self._listed(name)
        digest, size = hashlib.sha256(), 0
        for chunk in self.chunks(name):
            digest.update(chunk)
            size += len(chunk)
        if size != listed.bytes or digest.hexdigest() != listed.sha256:
            raise ExportError(f"{name} is not the file that was exported: its checksum differs")

    def chunks(self, name: str) -> Iterator[bytes]:
        """Yields a file in parts, at most as many bytes as the manifest lists. Raises ExportError."""
        listed = self._listed(name)
        with self._open(name, listed.bytes) as file:
            rest = listed.bytes
            while rest and (chunk := file.read(min(_CHUNK, rest))):
                rest -= len(chunk)
                yield chunk

    def _listed(self, name: str) -> ListedFile:
        listed = self.manifest.files.get(name)
        if listed is None:
            raise ExportError(f"{self.path}: the manifest does not list {name[:100]!r}")
        return listed

    def _open(self, name: str, bytes_max: int) -> BinaryIO:
        """Opens a regular file of the folder. No part of its path may be a symbolic link. Raises ExportError."""
        flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK  # a named pipe must not block
        folder = descriptor = -1
        try:
            folder = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            for part in name.split("/")[:-1]:
                inner = os.open(part, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC | os.O_NOFOLLOW, dir_fd=folder)
                os.close(folder)
                folder = inner
            descriptor = os.open(name.rpartition("/")[2], flags, dir_fd=folder)
            status = os.fstat(descriptor)
        except OSError as error:
            if descriptor >= 0:
                os.close(descriptor)
            raise ExportError(f"{self.path}: {name} cannot be read: {error.strerror}") from error
        finally:
            if folder >= 0:
                os.close(folder)
        if not stat.S_ISREG(status.st_mode) or status.st_size > bytes_max:
            os.close(descriptor)
            kind = "larger than the manifest says" if stat.S_ISREG(status.st_mode) else "not a regular file"
            raise ExportError(f"{self.path}: {name} is {kind}")
        return os.fdopen(descriptor, "rb")

    def _read_whole(self, name: str, bytes_max: int) -> bytes:
        with self._open(name, bytes_max) as file:
            return file.read(bytes_max)
