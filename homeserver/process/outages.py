"""Outages: which part of the storage is failing, for the log, the health check, and work that can wait.

Theory of operation. Each part of the storage (reads and writes of the database, blobs) is well, out or damaged.

- An operation that fails because the storage fails (disk full, read-only, unreachable) reports this with `failed`. The
  first report begins an outage and writes one line to the log. Later reports write nothing.
- Only a probe of the part ends its outage, never an operation: a small write may fit where a large one does not, and
  the state must not flap. `watch` probes every part that is out, once a second. The end is one line in the log too.
- Damage is data that cannot be read back. No probe can show that it is repaired, so it is remembered until the process
  ends. Each different damage is one line in the log.

Operations are never refused because of an outage. Each one tries, so nothing depends on a probe being right.
"""

from __future__ import annotations

import logging
import os
import tempfile
from collections.abc import Awaitable, Callable
from pathlib import Path

import trio

from homeserver.errors import StorageDamaged, StorageError

_log = logging.getLogger(__name__)

DATABASE_READS = "database reads"
DATABASE_WRITES = "database writes"
BLOBS = "blobs"

# How often a failing part of the storage is probed. Everything works again a second or two after the cause is gone.
OUTAGE_PROBE_SECONDS = 1.0
# A probe that takes longer has failed, because no client waits that long for a write.
OUTAGE_PROBE_SECONDS_MAX = 5.0
# A write this recent proves that writes work. A later health check does a write of its own.
WRITE_PROVEN_SECONDS = 2.0
# The free space that a probe requires. A server with less would fail at the next upload or checkpoint.
FREE_DISK_BYTES_MIN = 1 << 20
# When clients may repeat requests that failed because of the storage.
STORAGE_RETRY_AFTER_MS = 5_000
# How many different damages the log tells apart. A broken disk has more than anyone reads.
DAMAGES_REMEMBERED_MAX = 100

Probe = Callable[[], Awaitable[None]]


def check_room(folder: Path) -> None:
    """Raises OSError unless a file of FREE_DISK_BYTES_MIN bytes can be created in the folder."""
    with tempfile.TemporaryFile(dir=folder, buffering=0) as file:
        os.posix_fallocate(file.fileno(), 0, FREE_DISK_BYTES_MIN)


def is_outage(error: BaseException) -> bool:
    """Returns whether the storage has failed, so that no item of work is to blame.

    Damage is different: it belongs to an item, and does not go away.
    """
    if isinstance(error, BaseExceptionGroup):
        return any(is_outage(each) for each in error.exceptions)
    return isinstance(error, StorageError) and not isinstance(error, StorageDamaged)


class Outages:
    """Used on the trio thread only."""

    def __init__(self) -> None:
        self._reasons: dict[str, str] = {}
        self._since: dict[str, float] = {}
        self._damages: dict[str, None] = {}
        self._probes: dict[str, Probe] = {}
        self._begun = trio.Event()
        self._over = trio.Event()
        self._over.set()

    @property
    def reasons(self) -> dict[str, str]:
        """Returns what is out and why, in words for an administrator; {} if all is well. Damage is under "damage"."""
        damage = {"damage": next(reversed(self._damages))} if self._damages else {}
        return {**self._reasons, **damage}

    def is_out(self, part: str) -> bool:
        """Returns whether the part is known to be failing."""
        return part in self._reasons

    def add_probe(self, part: str, probe: Probe) -> None:
        """Registers the probe of a part. It raises an exception as long as the part is out."""
        self._probes[part] = probe

    def failed(self, part: str, reason: str) -> None:
        """Reports that an operation on the part failed because of the storage."""
        if part in self._reasons:
            self._reasons[part] = reason
            return
        self._reasons[part] = reason
        self._since[part] = trio.current_time()
        _log.error("storage fails", extra={"part": part, "reason": reason})
        if self._over.is_set():
            self._over = trio.Event()
        self._begun.set()

    def damaged(self, what: str) -> None:
        """Reports that stored data cannot be read back."""
        if what in self._damages:
            return
        if len(self._damages) >= DAMAGES_REMEMBERED_MAX:
            del self._damages[next(iter(self._damages))]
        self._damages[what] = None
        _log.critical("stored data is damaged: restore it from a backup", extra={"damage": what})

    async def wait_over(self) -> None:
        """Returns once nothing is out. Does not wait for damage, which does not go away."""
        await self._over.wait()

    async def watch(self) -> None:
        """Probes the parts that are out, as long as the server runs."""
        while True:
            await self._begun.wait()
            await trio.sleep(OUTAGE_PROBE_SECONDS)
            for part in tuple(self._reasons):
                await self._probe(part)

    async def _probe(self, part: str) -> None:
        try:
            with trio.fail_after(OUTAGE_PROBE_SECONDS_MAX):
                await self._probes[part]()
        except Exception as error:  # whatever the error is, the outage continues
            self._reasons[part] = str(error) or "The probe took too long."
            return
        self._worked(part)

    def _worked(self, part: str) -> None:
        del self._reasons[part]
        seconds = round(trio.current_time() - self._since.pop(part), 1)
        _log.warning("storage works again", extra={"part": part, "after_s": seconds})
        if not self._reasons:
            self._begun = trio.Event()
            self._over.set()
