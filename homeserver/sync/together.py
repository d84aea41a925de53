"""Long polls that wake at the same moment are answered together: with one read, in which news is encoded once.

Theory of operation. A message wakes all tasks that wait for its room in the same step of the scheduler. The first one
that asks opens a group and lets the others run, which join it. Then it reads for the whole group. A task that wakes
while that read runs is in the next group, which does not wait for it.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

import trio

from homeserver.database import DatabaseError
from homeserver.limits.users import SYNCS_PER_READ_MAX
from homeserver.resources import Resources
from homeserver.sync.broadcast import Listener, Told, broadcast
from homeserver.sync.lazy_members import ToldMembers
from homeserver.sync.sections import Sections

_log = logging.getLogger(__name__)


class _Group:
    """Those that are answered by one read. answers: in the order of the listeners, empty until they are there."""

    def __init__(self) -> None:
        self.listeners: list[Listener] = []
        self.answers: Sequence[Told | None] = ()
        self.is_answered = trio.Event()


class Together:
    """Reads for clients that wake at the same moment. Used on the trio thread only."""

    def __init__(self, sections: Sections, told: ToldMembers) -> None:
        self._sections = sections
        self._told = told
        self._group: _Group | None = None

    async def hear(self, hs: Resources, listener: Listener) -> Told | None:
        """Returns what a client is told, see `broadcast`; None if it must be answered alone."""
        group = self._group
        if group is not None and len(group.listeners) < SYNCS_PER_READ_MAX:
            number = len(group.listeners)
            group.listeners.append(listener)
            await group.is_answered.wait()
            return group.answers[number]
        group = self._group = _Group()
        group.listeners.append(listener)
        with trio.CancelScope(shield=True):  # the others need the answer even if this client has gone
            await trio.lowlevel.checkpoint()
            if self._group is group:
                self._group = None
            group.answers = await self.read(hs, group.listeners)
        group.is_answered.set()
        return group.answers[0]

    async def read(self, hs: Resources, listeners: Sequence[Listener]) -> Sequence[Told | None]:
        """Returns what each of them is told, in the same order."""
        try:
            return await hs.database.read(broadcast, self._sections, self._told, hs.database.generation, listeners)
        except Exception as error:  # of one client's data, perhaps: each is answered alone, and fails alone
            if not isinstance(error, DatabaseError):
                _log.error("news could not be read together", exc_info=error)
            return [None] * len(listeners)
