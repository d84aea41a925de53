"""Pushes: sync answers are sent to all connections the moment that there is news.

Theory of operation. A `Push` is the sync of one connection: its request, the position up to which its client has been
told, and the keys at which it may have news (`Stream.watch`). A push with news is *due*; one task takes all that are
due and whose channel has nothing unsent. So a client that does not receive holds up nobody, and gets all its news in
one answer later. The news of rooms is read for all of them together, and encoded once (`sync.broadcast`). Whatever
else is new is read for each push by a task of its own, at most PUSHES_AT_ONCE_MAX at a time.

    idle -> due -> reading -> idle          due again, if there was news meanwhile or the client's queue has more

Telling is not acknowledging. The position moves with each answer that is sent, but features hear that the client has it
(`BeforeSync`) only from `acknowledge` and from the next `sync`. So a to-device message stays stored until then, and if
the connection breaks, the client names its last token and misses nothing.

Invariant: what a client gets over its connection, starting from a token, is what repeated calls of `/sync` would tell.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from functools import partial

import msgspec
import trio

from homeserver import limits
from homeserver.authenticate import Requester, note_heartbeat
from homeserver.database import DatabaseError
from homeserver.database.stream import Stream
from homeserver.encoding import to_json
from homeserver.errors import MatrixError
from homeserver.feature import JsonObject, SyncStart
from homeserver.federation.identifiers import RoomID
from homeserver.resources import Resources
from homeserver.rooms.timeline import parse_sync_token
from homeserver.sync import Syncs, read_since
from homeserver.sync.answer import SyncAnswer, body_of, counts_in, encode_always
from homeserver.sync.broadcast import Listener, can_listen
from homeserver.sync.request import SyncRequest
from homeserver.websocket.channel import Channel

_log = logging.getLogger(__name__)

_NOBODY: frozenset[str] = frozenset()
# Rooms whose counts are kept for each connection: those with the latest news.
_COUNTS_MAX = 20
_RETRY_SECONDS = 1.0  # after which news that could not be read is read again


class Push:
    """The sync of one connection. request: with the position up to which the client has been told."""

    __slots__ = (
        "always", "can_listen", "channel", "counts", "ignored", "is_due", "is_first", "is_removed", "is_started",
        "keys", "quiet_upto", "request", "watch",
    )  # fmt: skip

    def __init__(self, pushes: Pushes, stream: Stream, channel: Channel, request: SyncRequest) -> None:
        self.channel = channel
        self.watch = stream.watch(partial(pushes.wake, self))
        self.request = request
        self.is_first = True  # nothing has been told yet
        self.is_due = False  # it is in the list of those to be read
        self.is_started = False  # it is being read
        self.is_removed = False
        self.quiet_upto: int | None = None  # if it is due: up to which position its keys had no news
        # What the last answer was made of, see `homeserver.sync.broadcast`
        self.can_listen = can_listen(request)
        self.keys: frozenset[str] = frozenset()
        self.ignored: frozenset[str] | None = None
        self.always = b""
        self.counts: dict[RoomID, JsonObject] = {}

    @property
    def told_upto(self) -> int:
        """The position up to which its client has been told."""
        return self.request.since or 0

    @property
    def is_listener(self) -> bool:
        """Whether new messages can be told to it together with others."""
        request = self.request
        return self.can_listen and self.ignored is not None and request.queue_begin == request.since


class Pushes:
    """The pushes of all connections. Used on the trio thread only."""

    def __init__(self, hs: Resources, syncs: Syncs) -> None:
        self._hs = hs
        self.syncs = syncs
        self._due: dict[Push, None] = {}
        self._is_due = trio.Event()
        self._limit = trio.CapacityLimiter(limits.websocket.PUSHES_AT_ONCE_MAX)
        self._told = hs.metrics.counter("homeserver_websocket_pushes_total")
        hs.metrics.describe("homeserver_websocket_pushes_total", "Sync answers sent over WebSockets.")

    def add(self, channel: Channel, request: SyncRequest) -> Push:
        """Starts to push answers from the request's `since` on."""
        push = Push(self, self._hs.stream, channel, request)
        self.wake(push)
        return push

    def remove(self, push: Push) -> None:
        """Ends a push."""
        push.is_removed = True
        push.watch.close()
        self._due.pop(push, None)

    def wake(self, push: Push, quiet_upto: int | None = None) -> None:
        """Notes that there may be news, of its keys after a position."""
        if not push.is_due:
            push.is_due, push.quiet_upto = True, quiet_upto
        if not push.is_started and not push.is_removed and not push.channel.unsent:
            self._due[push] = None
            self._is_due.set()

    async def run(self) -> None:
        """Reads and sends what is due, forever."""
        while True:
            await self._is_due.wait()
            self._is_due = trio.Event()
            due, self._due = self._due, {}
            listeners: list[Push] = []
            for push in due:
                push.is_started, push.is_due = True, False
                if push.is_listener:
                    listeners.append(push)
                else:
                    self._hs.nursery.start_soon(self._tell, push)
            size = limits.websocket.PUSHES_PER_READ_MAX
            for start in range(0, len(listeners), size):
                await self._broadcast(listeners[start : start + size])

    async def _broadcast(self, pushes: Sequence[Push]) -> None:
        """Tells many connections of the news of rooms. Those with other news are read one by one."""
        is_shared = self._hs.database.is_shared  # then another node's changes may not be announced yet
        listeners = [
            Listener(
                push.request, push.told_upto if is_shared else max(push.told_upto, push.quiet_upto or 0), push.keys,
                push.ignored or _NOBODY, push.always, push.counts,
            )
            for push in pushes
        ]  # fmt: skip
        answers = await self.syncs.engine.together.read(self._hs, listeners)
        for push, told in zip(pushes, answers, strict=True):
            if told is None:
                self._hs.nursery.start_soon(self._tell, push)
                continue
            push.is_started = False
            if push.is_removed:
                continue
            if told.body:
                push.channel.post(b'{"sync":' + told.body + b"}")
                self._told.value += 1
            push.counts.update(told.counts)
            push.request = msgspec.structs.replace(push.request, since=told.upto, queue_since=told.upto)
            push.watch.move(push.keys, told.upto)
            if push.is_due:
                self.wake(push)

    async def _tell(self, push: Push) -> None:
        """Reads what is new for one connection, and sends it."""
        try:
            async with self._limit:
                if push.is_removed or not push.channel.is_open:
                    return
                if self._hs.budgets.answers.has_room_for_one(push.request.user_id, 0):
                    await self._read(push)
                    return
            await self._try_again(push)  # the user's other connections have yet to receive what they were told
        except DatabaseError:  # an outage is logged once; the news is still there when it ends
            await self._try_again(push)
        except Exception as error:  # it must not affect the other connections
            _log.error("news could not be read", exc_info=error, extra={"user_id": push.request.user_id})
            await self._try_again(push)
        finally:
            push.is_started = False
            if push.is_due:
                self.wake(push)

    async def _try_again(self, push: Push) -> None:
        await trio.sleep(_RETRY_SECONDS)
        push.is_due = True

    async def _read(self, push: Push) -> None:
        engine, hs, request = self.syncs.engine, self._hs, push.request
        answer = await (engine.first_answer(hs, request) if push.is_first else engine.read(hs, request))
        if push.is_removed or not push.channel.is_open:
            return
        if answer.has_news or request.is_whole:
            push.channel.post(b'{"sync":%b}' % to_json(body_of(hs, answer)))
            self._told.value += 1
        self._advance(push, answer)

    def _advance(self, push: Push, answer: SyncAnswer) -> None:
        """Notes up to where the client has been told."""
        push.is_first = False
        push.request = msgspec.structs.replace(
            push.request, since=answer.upto, queue_since=answer.queue_upto, full_state=False, is_anew=False
        )
        if answer.queue_upto < answer.upto:
            push.is_due = True
        push.keys = answer.keys
        if answer.ignored is not None:
            if push.ignored != answer.ignored:
                push.counts.clear()  # their messages count, or do not
            push.ignored = answer.ignored
        push.always = encode_always(answer.always)
        push.counts.update(counts_in(answer))
        while len(push.counts) > _COUNTS_MAX:
            del push.counts[next(iter(push.counts))]
        push.watch.move(answer.keys, answer.upto)

    async def acknowledge(self, requester: Requester, push: Push | None, text: str) -> None:
        """Notes that the client has everything up to a token. Raises MatrixError if it is not one of our tokens.

        A token of another history says nothing, and none says more than the client has been told.
        """
        token = parse_sync_token(text)
        since = await read_since(self._hs, token)
        if since is None:
            return
        queue, state = token.queue, push.request.set_presence if push is not None else "online"
        if push is not None and not push.is_first:
            told = push.request
            since, queue = min(since, told.since or 0), min(queue, told.queue_begin)
        note_heartbeat(self._hs, requester.user_id)
        start = SyncStart(requester.user_id, requester.device_id, since, min(queue, since), state)
        await self.syncs.engine.prepare(self._hs, start)

    async def heartbeat(self, push: Push) -> None:
        """Notes that the client of a push is still there, without acknowledging anything new."""
        request = push.request
        note_heartbeat(self._hs, request.user_id)
        if request.set_presence != "offline" and not push.is_first:
            start = SyncStart(*request.device, 0, 0, request.set_presence)
            try:
                await self.syncs.engine.prepare(self._hs, start)
            except (MatrixError, DatabaseError):
                return
