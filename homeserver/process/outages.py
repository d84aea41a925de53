"""Outages: which part of the storage fails at the moment, for the log, the health check, and work that can wait.

Each part of the storage (reads and writes of the database, blobs) is well, out or damaged.

- An operation that fails because storage does (disk full, read-only, out of reach) reports it with `failed`. The first
  report begins an outage and is one line in the log; further ones say nothing.
- Only a probe of that part ends an outage, never an operation: a small write may fit where a large one does not, and
  the state must not flap. `watch` probes every part that is out, once a second; the end is one line in the log too.
- Damage is data that cannot be read back. No probe can show that it is mended, so it is remembered until the process
  ends; each different damage is one line in the log.

Operations are never refused because of an outage: each one tries, so that nothing depends on a probe being right.
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

# How often a part of the storage that fails is probed: everything works again within a second or two of the cause.
OUTAGE_PROBE_SECONDS = 1.0
# A probe that takes longer has failed: no client waits that long for a write.
OUTAGE_PROBE_SECONDS_MAX = 5.0
# A write this recent proves that writes work: a health check that comes later costs a write of its own.
WRITE_PROVEN_SECONDS = 2.0
# Room that a probe demands on the disk: a server that has less will fail at the next upload or checkpoint.
FREE_DISK_BYTES_MIN = 1 << 20
# When clients may try again what storage has refused.
STORAGE_RETRY_AFTER_MS = 5_000
# Different damages that are told apart in the log; a broken disk has more than anyone reads.
DAMAGES_REMEMBERED_MAX = 100

Probe = Callable[[], Awaitable[None]]


def check_room(folder: Path) -> None:
    """Raises OSError unless a file of FREE_DISK_BYTES_MIN bytes can be made in the folder."""
    with tempfile.TemporaryFile(dir=folder, buffering=0) as file:
        os.posix_fallocate(file.fileno(), 0, FREE_DISK_BYTES_MIN)


def is_outage(error: BaseException) -> bool:
    """Whether the storage has failed, so that no item of work is to blame. Damage is of an item, and does not pass."""
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
        """What is out, and why, in words for an administrator. Damage is named "damage". Empty if all is well."""
        damage = {"damage": next(reversed(self._damages))} if self._damages else {}
        return {**self._reasons, **damage}

    def is_out(self, part: str) -> bool:
        """Whether that part fails at the moment, as far as is known."""
        return part in self._reasons

    def add_probe(self, part: str, probe: Probe) -> None:
        """`probe` raises an exception for as long as the part is out."""
        self._probes[part] = probe

    def failed(self, part: str, reason: str) -> None:
        """An operation of that part failed because storage did."""
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
        """Something stored cannot be read back."""
        if what in self._damages:
            return
        if len(self._damages) >= DAMAGES_REMEMBERED_MAX:
            del self._damages[next(iter(self._damages))]
        self._damages[what] = None
        _log.critical("stored data is damaged: restore it from a backup", extra={"damage": what})

    async def wait_over(self) -> None:
        """Returns once nothing is out. Damage is not waited for: it does not pass."""
        await self._over.wait()

    async def watch(self) -> None:
        """Probes what is out, for as long as the server runs."""
        while True:
            await self._begun.wait()
            await trio.sleep(OUTAGE_PROBE_SECONDS)
            for part in tuple(self._reasons):
                await self._probe(part)

    async def _probe(self, part: str) -> None:
        try:
            with trio.fail_after(OUTAGE_PROBE_SECONDS_MAX):
                await self._probes[part]()
        except Exception as error:  # whatever it is, the outage goes on
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
