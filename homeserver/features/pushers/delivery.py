"""Delivery: tells the push gateways what waits in the queues of pushers. Spec: push-gateway-api/#homeserver-behaviour

Theory of operation
- One task works for each pusher that has something to tell: it tells the gateway one thing after the other, and deletes
  the row of each that the gateway has taken, or that came to nothing. Where several nodes share the database, one of
  them delivers. Since the queue is a table, a restart goes on where the last one ended.
- A gateway that fails is left alone by all its pushers, for longer each time (`homeserver/process/back_off.py`). The
  tasks wait, so no other gateway notices. PUSH_AT_ONCE_MAX requests at most are under way to one gateway.
- What a gateway refuses (400 and the like) it would refuse again, so that is dropped. A pusher whose key it rejects is
  deleted.
- `Badges` remembers the counts of each user's rooms, so that a notification reads only the rooms that have had news.
"""

from __future__ import annotations

import logging
import math
from collections import OrderedDict
from collections.abc import Collection
from typing import Any
from urllib.parse import urlsplit

import msgspec
import orjson
import trio

from homeserver import limits
from homeserver.database import DatabaseDamaged, Transaction
from homeserver.encoding import to_json
from homeserver.feature import JsonObject
from homeserver.features.pushers.messages import Due, find_due, list_unusable
from homeserver.federation.identifiers import RoomID, UserID
from homeserver.federation.wire import WireError
from homeserver.process.back_off import BackOff, after_failure
from homeserver.process.outages import is_outage
from homeserver.resources import Resources
from homeserver.rooms.membership import list_joined_rooms
from homeserver.users.push.notifications import count_unread
from homeserver.users.push.pushers import WAKE_KEY, delete_all_queued, delete_queued, delete_rejected, list_waiting

_log = logging.getLogger("homeserver.push")

SENT_COUNTER = "homeserver_push_requests_total"
BADGES_REMEMBERED_MAX = 2_000
PAUSE_S_MIN = 0.1

# The gateway does not take what is in this request, and will not take it next time.
_REFUSALS = frozenset({400, 413, 422})


async def deliver(hs: Resources) -> None:
    """Delivers, for ever."""
    async with hs.database.hold("pushers"):
        await _Delivery(hs).run()


class _Gateway(msgspec.Struct):
    """The state of a gateway: its back-off, and how many requests are under way."""

    back_off: BackOff | None = None
    at_once: trio.CapacityLimiter = msgspec.field(
        default_factory=lambda: trio.CapacityLimiter(limits.users.PUSH_AT_ONCE_MAX)
    )
    users: int = 0


class Badges:
    """How many unread events notify a user in all rooms."""

    def __init__(self, hs: Resources) -> None:
        self._hs = hs
        self._known: OrderedDict[UserID, tuple[int, dict[RoomID, int]]] = OrderedDict()

    async def count(self, user_id: UserID) -> int:
        """Returns the number as of now. Reads only the rooms that have had news since it was last asked."""
        hs = self._hs
        position, rooms = self._known.get(user_id, (0, {}))
        stale: Collection[RoomID] | None = None  # all
        if position and not hs.stream.has_news((user_id,), position):
            stale = [room_id for room_id in rooms if hs.stream.has_news((room_id,), position)]
        read_at, counts = await hs.database.read(_count, user_id, stale)
        rooms = {**rooms, **counts} if stale is not None else counts
        self._known[user_id] = (read_at, rooms)
        self._known.move_to_end(user_id)
        while len(self._known) > BADGES_REMEMBERED_MAX:
            self._known.popitem(last=False)
        return sum(rooms.values())


def _count(tx: Transaction, user_id: UserID, room_ids: Collection[RoomID] | None) -> tuple[int, dict[RoomID, int]]:
    counts = count_unread(tx, user_id, list_joined_rooms(tx, user_id) if room_ids is None else room_ids)
    return tx.position, {room_id: max(0, each.total.notifications) for room_id, each in counts.items()}


class _Delivery:
    """One for as long as this node is the one that delivers."""

    _nursery: trio.Nursery

    def __init__(self, hs: Resources) -> None:
        self._hs = hs
        self._badges = Badges(hs)
        self._gateways: dict[str, _Gateway] = {}
        self._busy: set[int] = set()  # pushers that a task works for
        self._more: set[int] = set()  # those of them that were given more meanwhile
        hs.metrics.describe(SENT_COUNTER, "Requests to push gateways, and what became of them.")

    async def run(self) -> None:
        since = 0
        async with trio.open_nursery() as self._nursery:
            while True:
                numbers, position = await self._hs.database.read(_list_waiting, since)
                for number in numbers:
                    if number in self._busy:
                        self._more.add(number)
                    else:
                        self._busy.add(number)
                        self._nursery.start_soon(self._work, number)
                since = position
                await self._hs.stream.wait((WAKE_KEY,), since, math.inf)

    async def _work(self, number: int) -> None:
        """Tells everything that waits for one pusher."""
        while True:
            self._more.discard(number)
            try:
                due = await self._hs.database.read(find_due, number)
            except DatabaseDamaged:
                _log.exception("push notifications are dropped", extra={"pusher": number})
                unusable = await self._hs.database.read(list_unusable, number)
                await self._hs.database.write(delete_all_queued, unusable)
                continue
            if due is not None:
                await self._tell_carefully(due)
            elif number not in self._more:
                self._busy.discard(number)
                return

    async def _tell_carefully(self, due: Due) -> None:
        try:
            await self._tell(due)
        except Exception as error:  # whatever is wrong with one notification, all others are delivered
            if is_outage(error):
                raise
            _log.exception("a push notification is dropped", extra={"pusher": due.pusher.number})
            await self._hs.database.write(delete_queued, due.queued)

    async def _tell(self, due: Due) -> None:
        if due.notification is not None:
            name = urlsplit(due.pusher.url).netloc.lower()
            gateway = self._gateways.setdefault(name, _Gateway())
            gateway.users += 1
            try:
                if not await self._send(name, gateway, due):
                    return
            finally:
                gateway.users -= 1
                if not gateway.users and gateway.back_off is None:
                    self._gateways.pop(name, None)
        await self._hs.database.write(delete_queued, due.queued)

    async def _send(self, name: str, gateway: _Gateway, due: Due) -> bool:
        """Sends a notification once the gateway may be asked. Returns whether the row is dealt with."""
        async with gateway.at_once:
            wait_s = self._wait_s(gateway)
            outcome = "" if wait_s else await self._request(due)
        if wait_s:
            await trio.sleep(wait_s)
            return False  # it is read again, because it may be read or redacted by then
        self._hs.metrics.count(SENT_COUNTER, (("outcome", outcome),))
        if outcome == "failed":
            gateway.back_off = after_failure(gateway.back_off, self._hs.server_name, name, self._hs.now_ms())
            return False
        gateway.back_off = None
        return True

    def _wait_s(self, gateway: _Gateway) -> float:
        """Returns for how long a gateway is to be left alone."""
        now_ms = self._hs.now_ms()
        if gateway.back_off is None or gateway.back_off.is_over(now_ms):
            return 0.0
        return max(PAUSE_S_MIN, (gateway.back_off.retry_after_ms - now_ms) / 1000)

    async def _request(self, due: Due) -> str:
        """Makes one request. Returns what became of it: "taken", "refused" or "failed"."""
        pusher = due.pusher
        unread = await self._badges.count(pusher.user_id)
        notification = {**(due.notification or {}), "counts": {"unread": unread}}
        about = {"gateway": urlsplit(pusher.url).netloc, "app": pusher.app_id}
        try:
            response = await self._hs.wire.request_url(
                "POST",
                pusher.url,
                headers={"Content-Type": "application/json"},
                body=to_json({"notification": notification}),
                timeout_s=limits.users.PUSH_TIMEOUT_S,
                max_bytes=limits.users.PUSH_ANSWER_BYTES_MAX,
            )
        except WireError as error:
            _log.info("push gateway not reached", extra={**about, "reason": str(error)})
            return "failed"
        if response.status == 200:
            if pusher.pushkey in _rejected(response.body):
                _log.info("push key rejected by its gateway", extra=about)
                await self._hs.database.write(delete_rejected, [pusher.number])
            return "taken"
        _log.info("push gateway does not take a notification", extra={**about, "status": response.status})
        return "refused" if response.status in _REFUSALS else "failed"


def _list_waiting(tx: Transaction, since: int) -> tuple[list[int], int]:
    return list_waiting(tx, since), tx.position


def _rejected(body: bytes) -> list[Any]:
    """Returns the push keys that an answer rejects."""
    try:
        answer: JsonObject = orjson.loads(body)
    except orjson.JSONDecodeError:
        return []
    rejected = answer.get("rejected") if isinstance(answer, dict) else None
    return rejected if isinstance(rejected, list) else []
