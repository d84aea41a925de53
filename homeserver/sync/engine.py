"""The sync engine: computes what has changed for a user since a position, and waits until something has.

Theory of operation. A sync goes through these steps; the first two share one read.

1. Features say whether they have something to write first (`before_sync`), which is rare. If so, all of it is written
   in one transaction, and the answer is read after that.
2. The answer is read from one snapshot: the rooms, then the news of the features, then what every answer includes.
3. If there is news, or the client asked for everything, it gets the answer.
4. Otherwise the engine waits until one of the answer's keys (the user, the rooms) has news, and reads again, together
   with the other clients that wake, if the news is the same for all of them (`together`). The parts that every answer
   includes never end the wait; the client gets them with the next news, or at the timeout.

A quiet sync skips step 2, and step 1 while every feature has said that it will have nothing to write. The engine
remembers the keys of each user, and the parts for every answer of each device, with the position at which they were
read. If none of the keys has had news since, nothing can have changed: every change that affects a sync wakes one of
them.

Spec: client-server-api/#syncing
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from itertools import islice
from typing import Any, NamedTuple, TypeVar

import msgspec
import orjson
import trio

from homeserver.authenticate import check_token
from homeserver.database import DatabaseDamaged, Transaction
from homeserver.database.cache import Cache
from homeserver.feature import JsonObject, SyncStart
from homeserver.federation.identifiers import RoomID
from homeserver.process.token_cache import tokens_key
from homeserver.resources import Resources
from homeserver.sync.answer import SyncAnswer, body_of, compute, counts_in, encode_always
from homeserver.sync.broadcast import Listener, Told, can_listen
from homeserver.sync.lazy_members import DeviceMembers, ToldMembers
from homeserver.sync.request import SyncRequest
from homeserver.sync.sections import Sections, is_due
from homeserver.sync.together import Together
from homeserver.sync.waiting import USERS_REMEMBERED_MAX, Preparation

# Rooms whose unread counts are kept for a device: those with the latest news. 2 KiB at most.
COUNTS_KEPT_MAX = 8


class _Kept(NamedTuple):
    """What is known of a device's last answer, and up to which position it holds. See `SyncAnswer`."""

    upto: int
    always: JsonObject
    ignored: frozenset[str] | None
    counts: Mapping[RoomID, JsonObject]


class Engine:
    """Answers syncs. It remembers the keys of each user, so a client that is up to date costs no read."""

    def __init__(self, sections: Sections) -> None:
        self._sections = sections
        self._preparation = Preparation(sections)
        self.told = ToldMembers()  # which member events each device has received
        self.together = Together(sections, self.told)
        self._no_members = DeviceMembers(self.told, ("", ""), None)  # a quiet answer tells of none
        self._keys = Cache(USERS_REMEMBERED_MAX)  # user ID → (keys, the position at which they were read)
        self._kept = Cache(USERS_REMEMBERED_MAX)  # (user ID, device ID) → _Kept

    async def sync(
        self, hs: Resources, request: SyncRequest, wait_ended: Callable[[], Awaitable[None]] = trio.sleep_forever
    ) -> dict[str, Any] | orjson.Fragment:
        """Returns the answer: at once with news or if all was asked for, else with the next news or at the timeout.

        wait_ended: raises when nobody waits for the answer any more.
        """
        began = trio.current_time() if request.timeout_ms else 0.0
        answer = await self.first_answer(hs, request)
        if answer.has_news or request.is_whole or not request.timeout_ms:
            return body_of(hs, answer)
        return await self._wait(hs, request, answer, began + request.timeout_ms / 1000, wait_ended)

    async def _wait(
        self,
        hs: Resources,
        request: SyncRequest,
        answer: SyncAnswer,
        deadline: float,
        wait_ended: Callable[[], Awaitable[None]],
    ) -> dict[str, Any] | orjson.Fragment:
        """Returns the first answer with news; at the deadline the last one."""
        while trio.current_time() < deadline:
            position, quiet_upto = await hs.stream.wait_longer(answer.keys, answer.upto, deadline, wait_ended)
            if position <= answer.upto:
                break
            told = await self._hear(hs, request, answer, quiet_upto)
            if told is None:
                answer = await self._read(hs, request, _recompute(hs, request))
                if answer.has_news:
                    return body_of(hs, answer)
                continue
            answer = msgspec.structs.replace(
                answer, upto=told.upto, queue_upto=told.upto, counts=_newest(answer.counts, told.counts)
            )
            if told.body:
                self._keep(request, answer)
                return orjson.Fragment(told.body)
        self._keep(request, answer)
        return body_of(hs, answer)

    async def _hear(self, hs: Resources, request: SyncRequest, answer: SyncAnswer, quiet_upto: int) -> Told | None:
        """Returns what a client is told together with others; None if it must be answered alone.

        answer: its last one, which still holds at `quiet_upto`.
        """
        if answer.ignored is None or answer.queue_upto < answer.upto or not can_listen(request):
            return None
        if hs.database.is_shared or hs.stream.has_news((tokens_key(request.user_id),), request.token_position):
            return None  # other nodes' changes may not be announced yet; and the token may have ended
        listener = Listener(
            request, quiet_upto, answer.keys, answer.ignored, encode_always(answer.always), answer.counts
        )
        return await self.together.hear(hs, listener)

    def _keep(self, request: SyncRequest, answer: SyncAnswer) -> None:
        if answer.ignored is None:  # it was read around damage
            self._kept.forget(request.device)
            return
        self._kept.put(request.device, _Kept(answer.upto, answer.always, answer.ignored, answer.counts))

    def _counts_after(self, request: SyncRequest, answer: SyncAnswer) -> Mapping[RoomID, JsonObject]:
        """Returns the counts that the answer tells, and those that the device has been told before."""
        if not can_listen(request):
            return {}
        kept: _Kept | None = self._kept.get(request.device)
        is_next = kept is not None and kept.upto == request.since and kept.ignored == answer.ignored
        return _newest(kept.counts if kept is not None and is_next else {}, counts_in(answer))

    async def prepare(self, hs: Resources, start: SyncStart) -> None:
        """Lets features write what is due, without an answer: the client has everything up to `start.since`."""
        if await self._preparation.is_due(hs, start):
            await self._preparation.write(hs, start)

    async def read(self, hs: Resources, request: SyncRequest) -> SyncAnswer:
        """Returns an answer as of now, for a client that has acknowledged nothing since its last one."""
        quiet = self._quiet_answer(hs, request)
        return await self._read(hs, request, compute) if quiet is None else quiet

    async def read_again(self, hs: Resources, request: SyncRequest) -> SyncAnswer:
        """Does the same as `read`, and raises MatrixError 401 if the request's token has ended meanwhile."""
        return await self._read(hs, request, _recompute(hs, request))

    async def first_answer(self, hs: Resources, request: SyncRequest) -> SyncAnswer:
        """Lets features write what is due, then answers. If nothing is due, one read does both."""
        quiet = self._quiet_answer(hs, request)
        if quiet is None:
            self._preparation.acknowledge(hs, request.start)
            answer = await self._read(hs, request, _compute_unless_due)
        else:
            answer = None if await self._preparation.is_due(hs, request.start) else quiet
        if answer is not None:
            return answer
        await self._preparation.write(hs, request.start)
        quiet = self._quiet_answer(hs, request)
        return await self._read(hs, request, compute) if quiet is None else quiet

    async def _read(self, hs: Resources, request: SyncRequest, compute_: _Compute[_Answer]) -> _Answer:
        known = (self._sections, request, hs.database.generation, self.told)
        around_damage = False
        try:
            answer = await hs.database.read(compute_, *known, around_damage)
        except DatabaseDamaged:
            # One unreadable room must not keep the user from all the others. Reading each room on its own costs more.
            around_damage = True
            answer = await hs.database.read(compute_, *known, around_damage)
        if answer is not None:
            answer.members.remember(answer.upto)
            self._keys.put(request.user_id, (answer.keys, answer.upto))
            if around_damage:  # parts may be missing, so nothing is concluded from this answer
                return msgspec.structs.replace(answer, ignored=None)
            answer = msgspec.structs.replace(answer, counts=self._counts_after(request, answer))
            self._keep(request, answer)
        return answer

    def _quiet_answer(self, hs: Resources, request: SyncRequest) -> SyncAnswer | None:
        """Returns the answer without a read, if none of the user's keys has had news since; otherwise None."""
        if request.since is None or request.full_state or request.queue_begin < request.since:
            return None
        if request.timeout_ms == 0 and hs.database.is_shared:
            return None  # the client asks what is new now, and another node's commit may not be known here yet
        known = self._keys.get(request.user_id)
        kept: _Kept | None = self._kept.get(request.device)
        if known is None or kept is None:
            return None
        keys, position = known
        # The keys are valid as long as the user's own key has no news: every membership change wakes its user.
        if hs.stream.has_news((request.user_id,), position) or hs.stream.has_news(keys, min(request.since, kept.upto)):
            return None
        # never backwards: a client may know of a commit before the stream does
        upto = max(hs.stream.position, request.since)
        return SyncAnswer({}, kept.always, upto, upto, False, keys, self._no_members, kept.ignored, kept.counts)


_Answer = TypeVar("_Answer", bound=SyncAnswer | None)
_Compute = Callable[[Transaction, Sections, SyncRequest, str, ToldMembers, bool], _Answer]


def _compute_unless_due(
    tx: Transaction,
    sections: Sections,
    request: SyncRequest,
    generation: str,
    told: ToldMembers,
    around_damage: bool = False,
) -> SyncAnswer | None:
    """Like `compute`, but returns None if a feature has something to write first. Around damage, nothing is written."""
    if not around_damage and is_due(tx, sections.before, request.start):
        return None
    return compute(tx, sections, request, generation, told, around_damage)


def _recompute(hs: Resources, request: SyncRequest) -> _Compute[SyncAnswer]:
    """Returns what answers a request that has waited: with a look at its token, unless it is known to be valid."""
    key = tokens_key(request.user_id)
    if hs.database.is_shared or hs.stream.has_news((key,), request.token_position):
        return _compute_again
    return compute


def _compute_again(
    tx: Transaction,
    sections: Sections,
    request: SyncRequest,
    generation: str,
    told: ToldMembers,
    around_damage: bool = False,
) -> SyncAnswer:
    """Like `compute`, for a request that has waited. Raises MatrixError 401 if its token was revoked meanwhile."""
    check_token(tx, request.requester)
    return compute(tx, sections, request, generation, told, around_damage)


def _newest(before: Mapping[RoomID, JsonObject], told: Mapping[RoomID, JsonObject]) -> Mapping[RoomID, JsonObject]:
    """Returns the counts of the rooms that had news last."""
    counts = {**{room_id: count for room_id, count in before.items() if room_id not in told}, **told}
    return dict(islice(counts.items(), max(0, len(counts) - COUNTS_KEPT_MAX), None))
