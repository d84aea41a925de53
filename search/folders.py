"""Folders of indexes: their locks, because one process at a time has an index open, and what makes them durable."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path


class IndexInUse(Exception):
    """Another process has the index open."""


def lock_folder(folder: Path) -> int:
    """Returns a descriptor that holds the lock of the folder until it is closed. Raises IndexInUse."""
    descriptor = os.open(folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        raise IndexInUse(f"Another process has the index in {folder} open.") from None
    return descriptor


def is_in_use(folder: Path) -> bool:
    """Returns whether a process has the index open."""
    try:
        os.close(lock_folder(folder))
    except IndexInUse:
        return True
    return False


def synchronise_folder(folder: Path) -> None:
    """Makes sure that what was created and renamed in a folder is on the disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
