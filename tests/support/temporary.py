"""Where temporary files of tests are: in memory if the machine has room there, so that no commit waits for a disk.

The wait for the disk is most of what a write costs, and tests make tens of thousands of writes. What a process has
written survives its SIGKILL in memory as it does on a disk. `folder_on_disk` is for tests of exactly that, which keep
to what a server is run on.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

MEMORY = "/dev/shm"
ROOM_BYTES_MIN = 2**31
"""The space that the files of a run need at one time, with room to spare."""

_ON_DISK = os.environ.get("TMPDIR_ON_DISK", tempfile.gettempdir())


def has_memory() -> bool:
    """Returns whether files can be in memory. Containers often have only 64 MB there, or cannot run programs."""
    try:
        found = os.statvfs(MEMORY)
    except OSError:
        return False
    may_run = not found.f_flag & os.ST_NOEXEC
    return may_run and os.access(MEMORY, os.W_OK) and found.f_bavail * found.f_frsize >= ROOM_BYTES_MIN


def keep_in_memory() -> None:
    """Puts temporary files into memory from now on: of this process, of pytest, and of programs that are started."""
    if has_memory():
        os.environ["TMPDIR_ON_DISK"] = _ON_DISK  # for a pytest that a test starts
        os.environ["TMPDIR"] = tempfile.tempdir = MEMORY


@pytest.fixture(scope="module")
def folder_on_disk() -> Iterator[Path]:
    """A folder on the disk that temporary files are on by default."""
    with tempfile.TemporaryDirectory(prefix="homeserver-tests-", dir=_ON_DISK) as folder:
        yield Path(folder)
