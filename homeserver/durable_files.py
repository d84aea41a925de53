"""Files that appear or change as a whole, durably. Those that are written here hold secrets: only their owner may read
them.
"""

from __future__ import annotations

import os
import secrets
from pathlib import Path


def write_aside(path: Path, text: str) -> Path:
    """Writes text to a new file next to `path`, which is on the disk and which only its owner may read."""
    unfinished = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    descriptor = os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with open(descriptor, "w", encoding="ascii") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    return unfinished


def create_file(path: Path, text: str) -> None:
    """Creates the file, and its folder. Raises FileExistsError if another process was faster, and other OSErrors."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    unfinished = write_aside(path, text)
    try:
        os.link(unfinished, path)
    finally:
        unfinished.unlink()
    sync_path(path.parent)


def replace_file(path: Path, text: str) -> None:
    """Replaces the file. After a crash there is the old one or the new one. Raises OSError."""
    unfinished = write_aside(path, text)
    try:
        os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)
    sync_path(path.parent)


def sync_path(path: Path) -> None:
    """Makes the content of a file durable, or what was created and renamed in a folder. Raises OSError."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
