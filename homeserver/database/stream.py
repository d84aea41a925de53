"""Stream: wakes the waiters of a change. Every change that someone may wait for has a position.

Theory of operation. The database calls `notify` after each commit, with the position and the keys (user IDs, room
IDs …) that have news. A waiter names its keys and the position up to which it has read. If a key was notified after
that position, the waiter returns at once, so no change can get lost between reading and waiting. The stream remembers
the last position of recently notified keys. For a key that it may have forgotten it assumes that there is news, so a
wake-up without news is possible, and a missed one is not.

Other nodes announce their commits themselves (`listener.py`), a moment later or never. Each announcement says which
positions it covers. If it does not begin where the last one ended, another node's commit in between is still unknown:
for that gap the stream assumes news of every key until it is announced. Once or twice a second the database is asked
for its position (`confirm`): what should have been announced by then is late, and everyone is woken.
"""

from __future__ import annotations

import math
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Iterable
from contextlib import asynccontextmanager
from itertools import repeat

import trio

from homeserver.limits import FOLLOWER_REST_SECONDS_MAX, STREAM_CONFIRMED_SECONDS_MAX, STREAM_KEYS_REMEMBERED_MAX


class _Waiter:
    __slots__ = ("after", "quiet_upto", "scope")

    def __init__(self, after: int, deadline: float) -> None:
        self.after = after
        self.quiet_upto: int | None = None
        self.scope = trio.CancelScope(deadline=deadline)  # cancelled by news

    def wake(self, quiet_upto: int) -> None:
        if self.quiet_upto is None:
            self.quiet_upto = quiet_upto
            self.scope.cancel()


class Watch:
    """Calls `wake` at news of its keys after a position, without a task that waits. See `Stream.watch`."""

    __slots__ = ("_keys", "_stream", "after", "wake")

    def __init__(self, stream: Stream, wake: Callable[[int], None]) -> None:
        self._stream = stream
        self._keys: Collection[str] = ()
        self.after = 0
        self.wake = wake

    def move(self, keys: Collection[str], after: int) -> None:
        """Watches these keys from now on. Calls `wake` at once if they may have had news after the position."""
        if keys is not self._keys and keys != self._keys:
            self._stream.change_waiter(self, self._keys, keys)
            self._keys = keys
        self.after = after
        if self._stream.has_news(keys, after):
            self.wake(after)

    def close(self) -> None:
        """Ends it."""
        self._stream.change_waiter(self, self._keys, ())
        self._keys = ()


class Stream:
    """Used on the trio thread only."""

    def __init__(self, position: int = 0) -> None:
        self._position = position
        # The last position of each recently notified key, in two maps. When the younger one is full, the older one is
        # dropped. `_floor` is the position up to which changes of a key may have been forgotten.
        self._young: dict[str, int] = {}
        self._old: dict[str, int] = {}
        self._floor = position
        self._young_since = position
        self._gaps: list[tuple[int, int]] = []  # since, upto: positions whose commit was not announced yet
        self._confirmed_at: float | None = None  # None if no other node can commit
        self._waiters: dict[str, set[_Waiter | Watch]] = {}
        self._subscriptions: set[Subscription] = set()
        self._waiting = 0

    @property
    def position(self) -> int:
        """The position of the last committed change."""
        return self._position

    @property
    def waiting(self) -> int:
        """How many tasks wait for news."""
        return self._waiting

    @property
    def is_late(self) -> bool:
        """Whether other nodes may have committed something some seconds ago that is still unknown here."""
        at = self._confirmed_at
        return at is not None and trio.current_time() - at > STREAM_CONFIRMED_SECONDS_MAX

    def notify(self, position: int, keys: Iterable[str], since: int | None = None) -> None:
        """Announces that changes up to `position` are committed, and that `keys` have news. Never blocks.

        since: the position of the commit before; None if nothing was committed in between that is still unknown.
        """
        before = min(self._position, position - 1)
        if position > self._position:
            if since is not None and since > self._position:
                self._gaps.append((self._position, since))
            self._position = position
        elif self._gaps and since is not None:
            self._gaps = [part for gap in self._gaps for part in _parts_outside(gap, since, position)]
        for key in keys:
            self._young[key] = max(position, self._young.get(key, 0))
            for waiter in self._waiters.get(key, ()):
                if position > waiter.after:
                    waiter.wake(max(before, waiter.after))
        for subscription in self._subscriptions:
            subscription.note(self._position)
        if len(self._young) > STREAM_KEYS_REMEMBERED_MAX:
            self._old, self._young = self._young, {}
            self._floor, self._young_since = self._young_since, self._position

    def notify_all(self, position: int) -> None:
        """Wakes everyone, because it is unknown which keys have news up to `position`."""
        self._position = max(position, self._position)
        self._gaps.clear()
        self._young, self._old = {}, {}
        self._floor = self._young_since = self._position
        for waiters in self._waiters.values():
            for waiter in waiters:
                if position > waiter.after:
                    waiter.wake(waiter.after)
        for subscription in self._subscriptions:
            subscription.note(self._position)

    def confirm(self, position: int, at: float) -> None:
        """Wakes everyone if commits up to `position` should have been announced by now, and were not.

        at: the trio time before the database was asked for that position. To be called regularly, from now on.
        """
        self._confirmed_at = at
        if position > self._position or any(upto <= position for _, upto in self._gaps):
            self.notify_all(position)

    def may_have_changed(self, keys: Collection[str], after: int) -> bool:
        """Returns whether something that was read at the position `after` may have changed, as `keys` would tell.

        Unlike `has_news` it does not trust announcements that may be late. For what must take effect everywhere.
        """
        return self.is_late or self.has_news(keys, after)

    def has_news(self, keys: Collection[str], after: int) -> bool:
        """Returns whether there may be news of one of `keys` after the position `after`."""
        if after >= self._position:
            return False
        if after < self._floor or (self._gaps and after < self._gaps[-1][1]):
            return True
        # `max` and `map`, because a user may have hundreds of keys, and this is all that a quiet sync does with them.
        if max(map(self._young.get, keys, repeat(0)), default=0) > after:
            return True
        return bool(self._old) and max(map(self._old.get, keys, repeat(0)), default=0) > after

    async def wait(
        self,
        keys: Collection[str],
        after: int,
        deadline: float,
        until: Callable[[], Awaitable[object]] = trio.sleep_forever,
    ) -> int:
        """Waits for news of one of `keys` after position `after`, until the trio time `deadline`.

        Returns the stream's position, which is > `after`, or `after` if there was no news. Pass as `after` the position
        up to which you have read, not the one you began from. There may be nothing to read after all: then wait again.

        until: awaited meanwhile. If it returns or raises, the wait ends. News and the deadline cancel it.
        """
        position, _ = await self.wait_longer(keys, after, deadline, until)
        return position

    async def wait_longer(
        self, keys: Collection[str], after: int, deadline: float, until: Callable[[], Awaitable[object]]
    ) -> tuple[int, int]:
        """Does the same as `wait`, and also returns up to which position the keys had no news: `after` or later.

        The second holds only if no other node writes to the database, whose changes may be announced too late.
        """
        if self.has_news(keys, after):
            await trio.lowlevel.checkpoint()
            return self._position, after
        waiter = _Waiter(after, deadline)
        self.change_waiter(waiter, (), keys)
        self._waiting += 1
        try:
            with waiter.scope:
                await until()
        finally:
            self._waiting -= 1
            self.change_waiter(waiter, keys, ())
        if not self.has_news(keys, after):
            return after, after
        return self._position, after if waiter.quiet_upto is None else waiter.quiet_upto

    def watch(self, wake: Callable[[int], None]) -> Watch:
        """Returns what calls `wake`, which must not block, at news of the keys that `Watch.move` names.

        For those who would otherwise have a waiting task each. It is called as often as there is news. wake(quiet_upto)
        is told up to which position the keys had no news, as by `wait_longer`.
        """
        return Watch(self, wake)

    def change_waiter(self, waiter: _Waiter | Watch, old: Collection[str], new: Collection[str]) -> None:
        """Replaces the keys at which a waiter is woken."""
        for key in old:
            waiters = self._waiters.get(key)
            if waiters is not None:
                waiters.discard(waiter)
                if not waiters:
                    del self._waiters[key]
        for key in new:
            waiters = self._waiters.get(key)
            if waiters is None:
                self._waiters[key] = {waiter}
            else:
                waiters.add(waiter)

    @asynccontextmanager
    async def subscribe(
        self, keys: Collection[str] = (), *, lag_max: int = 0, rest: float = 0.0
    ) -> AsyncIterator[Subscription]:
        """Yields a Subscription, which is woken by news of these keys, and by changes of any kind: see there."""
        subscription = Subscription(self, keys, lag_max, rest)
        self._subscriptions.add(subscription)
        try:
            yield subscription
        finally:
            self._subscriptions.discard(subscription)
            subscription.close()


def _parts_outside(gap: tuple[int, int], since: int, upto: int) -> list[tuple[int, int]]:
    """Returns what is left of a gap when the positions in since < position ≤ upto are announced."""
    begin, end = gap
    return [(a, b) for a, b in ((begin, min(end, since)), (max(begin, upto), end)) if a < b]


class Subscription:
    """Follows the whole stream. Several changes may be announced as one.

    keys: news of these is announced at once. lag_max: how many other changes may go unannounced: with 0 none, so that
    keys are not needed. rest: for how many times as long as the follower worked between two waits nothing is announced
    to it, so that what is committed meanwhile is announced together. After a quiet time, a change is announced at once.
    """

    __slots__ = ("_due_at", "_event", "_keys", "_lag_max", "_rest", "_resumed_at", "_stream", "_watch")

    def __init__(self, stream: Stream, keys: Collection[str], lag_max: int, rest: float) -> None:
        self._stream = stream
        self._keys = keys
        self._lag_max = lag_max
        self._rest = rest
        self._resumed_at = math.inf
        self._event = trio.Event()
        self._due_at = 0
        self._watch = stream.watch(self._wake)

    async def wait(self, after: int) -> int:
        """Waits until there are changes after the position `after` to be announced. Returns the stream's position."""
        await trio.lowlevel.checkpoint()
        if self._rest:
            worked_s = max(0.0, trio.current_time() - self._resumed_at)
            self._resumed_at = math.inf  # a wait that was cancelled rests no longer
            await trio.sleep(min(self._rest * worked_s, FOLLOWER_REST_SECONDS_MAX))
        self._event = trio.Event()
        self._due_at = after + self._lag_max
        self.note(self._stream.position)
        self._watch.move(self._keys, after)
        await self._event.wait()
        self._resumed_at = trio.current_time()
        return self._stream.position

    def note(self, position: int) -> None:
        """Notes that changes up to a position are committed."""
        if position > self._due_at:
            self._event.set()

    def close(self) -> None:
        """Ends it."""
        self._watch.close()

    def _wake(self, quiet_upto: int) -> None:
        self._event.set()
