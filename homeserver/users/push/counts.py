"""Counts of unread notifications, as they are added up and as clients are told. See `notifications`."""

from __future__ import annotations

from collections import defaultdict

import msgspec

from homeserver.users.push.rules import HIGHLIGHT, NOTIFY

COUNTED_MAX = 1_000
"""Notifications that are read to count the unread ones of a room. Nobody reads on from there."""
TOLD_MAX = COUNTED_MAX // 2
"""Larger counts are told as this: clients show "99+". It is below COUNTED_MAX because not all that are read count."""


class Counts(msgspec.Struct):
    """How many unread events notify a user, and how many of them are highlights."""

    notifications: int = 0
    highlights: int = 0

    def add(self, level: int, number: int = 1) -> None:
        """Adds so many events of one level; a negative number takes them away."""
        if level >= NOTIFY:
            self.notifications += number
        if level >= HIGHLIGHT:
            self.highlights += number

    def body(self) -> dict[str, int]:
        """Returns the counts as in `/sync`."""
        counts = {"notification_count": self.notifications, "highlight_count": self.highlights}
        return {name: min(max(0, count), TOLD_MAX) for name, count in counts.items()}


class RoomCounts(msgspec.Struct):
    """The counts of a room: of its main timeline, and of threads by the position of their root."""

    main: Counts = msgspec.field(default_factory=Counts)
    threads: defaultdict[int, Counts] = msgspec.field(default_factory=lambda: defaultdict(Counts))

    def of(self, thread: int) -> Counts:
        """Returns the counts of a thread, 0 for the main timeline."""
        return self.threads[thread] if thread else self.main

    @property
    def total(self) -> Counts:
        """The sum of all threads."""
        every = [self.main, *self.threads.values()]
        return Counts(sum(each.notifications for each in every), sum(each.highlights for each in every))
