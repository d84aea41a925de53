"""The engine of sliding sync: computes what a connection lacks of the rooms in its view, and waits until there is any.

Theory of operation. A request names its lists and subscriptions; the rooms that these match are its *view*. The client
gets what it lacks of each room in the view; `homeserver.users.sync_connections` stores what it has.

1. Features write what is due first, as in `/v3/sync`.
2. The answer is read from one snapshot: the state of the connection, the view, the rooms, the extensions.
3. Without news, the engine waits for the user's keys, and reads again.
4. Usually the `pos` alone says what the client knows then. Where it does not (rooms that are new to the client, that
   have left the view, or whose config has changed), the change is stored under a new serial before the answer is sent.

A request whose last answer told everything, and whose keys have had no news since, is quiet: it is not computed at all.

Spec: MSC4186
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import msgspec
import trio
from msgspec.structs import replace

from homeserver.api.filters import EVERYTHING
from homeserver.authenticate import check_token
from homeserver.database import DatabaseDamaged, Transaction
from homeserver.database.cache import Cache
from homeserver.errors import MatrixError
from homeserver.feature import JsonObject, RoomSection
from homeserver.federation.identifiers import RoomID
from homeserver.resources import Resources
from homeserver.rooms.timeline import Tokens, after_position
from homeserver.sync.lazy_members import DeviceMembers, ToldMembers
from homeserver.sync.room import Viewer
from homeserver.sync.sections import Sections, is_due
from homeserver.sync.sliding.extensions import extension_bits, read_extensions
from homeserver.sync.sliding.lists import OwnRooms, View, Wanted, find_view
from homeserver.sync.sliding.request import SlidingRequest
from homeserver.sync.sliding.required_state import RequiredState, decode, digest, encode
from homeserver.sync.sliding.room import Known, RoomAnswer, RoomReader
from homeserver.sync.waiting import USERS_REMEMBERED_MAX, Preparation, wait_for_news
from homeserver.users.blocking import ignored_users
from homeserver.users.sync_connections import (
    BEGINNING,
    ConnectionState,
    ToldRoom,
    find_connection_state,
    store_connection_answer,
)

_POSITION_BITS = 64


class SlidingAnswer(msgspec.Struct, frozen=True):
    """An answer, see `homeserver.sync.waiting.Answer`. body: without `pos`.

    changed: the rooms for which more has to be stored than that the client knows them up to `upto`. configs: their
    required states by digest. is_settled: the same request gets nothing more until one of the keys has news.
    """

    body: JsonObject
    upto: int
    queue_upto: int
    has_news: bool
    keys: frozenset[str]
    members: DeviceMembers
    changed: dict[int, ToldRoom]
    configs: dict[bytes, bytes]
    is_settled: bool


class _Remembered(msgspec.Struct, frozen=True):
    """The last answer of a connection, to answer quiet requests that ask for the same."""

    request: SlidingRequest
    answer: SlidingAnswer
    serial: int


def unknown_pos() -> MatrixError:
    """The client has to begin a new connection: 400 M_UNKNOWN_POS."""
    return MatrixError(400, "M_UNKNOWN_POS", "The pos is not known, or not any more. Start again without one.")


class SlidingEngine:
    """Answers requests of sliding sync."""

    def __init__(self, sections: Sections) -> None:
        self._sections = sections
        self._preparation = Preparation(sections)
        self._told = ToldMembers()
        self._remembered = Cache(USERS_REMEMBERED_MAX)  # ConnectionKey → _Remembered
        self._newest = Cache(USERS_REMEMBERED_MAX)  # ConnectionKey → the last SlidingRequest that came

    @property
    def preparation(self) -> Preparation:
        """What features write before an answer."""
        return self._preparation

    async def sync(
        self, hs: Resources, request: SlidingRequest, wait_ended: Callable[[], Awaitable[None]] = trio.sleep_forever
    ) -> JsonObject:
        """Returns the answer: at once with news or in a new connection, else with the next news or at the timeout.

        wait_ended: raises when nobody waits for the answer any more. Raises M_UNKNOWN_POS.

        A client repeats a request when its network has changed, and the server may not notice that at once. Then only
        the newest request stores an answer: an answer of the old one, stored later, would end the client's `pos`.
        """
        self._newest.put(request.key, request)
        deadline = trio.current_time() + request.timeout_ms / 1000
        answer = await self._first_answer(hs, request)
        if request.since is not None:
            answer = await wait_for_news(
                hs, answer, lambda: self._read(hs, request, compute_again), deadline, wait_ended
            )
        serial = request.serial
        if answer.changed or request.since is None:
            newest = self._newest.get(request.key)
            if newest is not None and newest is not request:
                raise unknown_pos()
            stored = await hs.database.write(
                store_connection_answer, request.key, serial, answer.changed, answer.configs, answer.upto
            )
            if stored is None:
                raise unknown_pos()
            serial = stored
        answer.members.remember(_mark(serial, answer.upto))
        if answer.is_settled:
            self._remembered.put(request.key, _Remembered(request, answer, serial))
        pos = f"{Tokens(answer.upto, hs.database.generation).stream()}~{serial}.{extension_bits(request.extensions)}"
        return {"pos": pos, **answer.body}

    async def _first_answer(self, hs: Resources, request: SlidingRequest) -> SlidingAnswer:
        quiet = self._quiet_answer(hs, request)
        if quiet is not None:
            if not await self._preparation.is_due(hs, request.start):
                return quiet
        else:
            self._preparation.acknowledge(hs, request.start)
            answer = await self._read(hs, request, compute_unless_due)
            if answer is not None:
                return answer
        await self._preparation.write(hs, request.start)
        return await self._read(hs, request, compute)

    async def _read(self, hs: Resources, request: SlidingRequest, compute_: Callable[..., Any]) -> Any:
        known = (self._sections, request, hs.database.generation, self._told)
        try:
            return await hs.database.read(compute_, *known, False)
        except DatabaseDamaged:  # one unreadable room must not keep the user from all the others
            return await hs.database.read(compute_, *known, True)

    def _quiet_answer(self, hs: Resources, request: SlidingRequest) -> SlidingAnswer | None:
        """Returns the answer without a read, if the client has everything and nothing has come since."""
        last: _Remembered | None = self._remembered.get(request.key)
        if last is None or request.since is None or (last.serial, last.answer.upto) != (request.serial, request.since):
            return None
        is_same = (
            request.lists == last.request.lists
            and request.subscriptions == last.request.subscriptions
            and request.is_merged == last.request.is_merged
            and replace_since(request) == replace_since(last.request)
            and extension_bits(last.request.extensions) == request.told_extensions
        )
        if not is_same or (request.extensions.to_device.enabled and request.queue_since < last.answer.upto):
            return None
        if hs.stream.has_news(last.answer.keys, last.answer.upto):
            return None
        upto = max(hs.stream.position, request.since)
        return replace(
            last.answer, body=without_news(last.answer.body, request, Tokens(upto, hs.database.generation)),
            upto=upto, queue_upto=upto, has_news=False, changed={}, configs={},
            members=members_of(request, self._told),
        )  # fmt: skip


def replace_since(request: SlidingRequest) -> object:
    """Returns the extensions of a request, without what changes in each request."""
    extensions = request.extensions
    others = (extensions.e2ee, extensions.account_data, extensions.receipts, extensions.typing)
    return (extensions.to_device.enabled, others, extensions.thread_subscriptions)


def without_news(body: JsonObject, request: SlidingRequest, tokens: Tokens) -> JsonObject:
    """Returns what every answer has: the counts of lists, where messages continue, and the counts of keys."""
    extensions: JsonObject = {}
    if request.extensions.to_device.enabled:
        extensions["to_device"] = {"next_batch": tokens.stream(), "events": []}
    if request.extensions.e2ee.enabled:
        e2ee = body["extensions"]["e2ee"]
        extensions["e2ee"] = {name: value for name, value in e2ee.items() if name != "device_lists"}
    return {**body, "rooms": {}, "extensions": extensions}


def members_of(request: SlidingRequest, told: ToldMembers) -> DeviceMembers:
    """Returns the members that the client knows by lazy loading."""
    device = (request.requester.user_id, f"{request.requester.device_id}\n{request.conn_id}")
    return DeviceMembers(told, device, None if request.since is None else _mark(request.serial, request.since))


def _mark(serial: int, upto: int) -> int:
    """Returns a number for an answer that rises from one to the next, also if the stream stands still."""
    return serial << _POSITION_BITS | upto


def compute_unless_due(
    tx: Transaction,
    sections: Sections,
    request: SlidingRequest,
    generation: str,
    told: ToldMembers,
    around_damage: bool = False,
) -> SlidingAnswer | None:
    """Like `compute`, but returns None if a feature has something to write first. Around damage, nothing is written."""
    if not around_damage and is_due(tx, sections.before, request.start):
        return None
    return compute(tx, sections, request, generation, told, around_damage)


def compute_again(
    tx: Transaction,
    sections: Sections,
    request: SlidingRequest,
    generation: str,
    told: ToldMembers,
    around_damage: bool = False,
) -> SlidingAnswer:
    """Like `compute`, for a request that has waited. Raises MatrixError 401 if its token was revoked meanwhile."""
    check_token(tx, request.requester)
    return compute(tx, sections, request, generation, told, around_damage)


def compute(
    tx: Transaction,
    sections: Sections,
    request: SlidingRequest,
    generation: str,
    told: ToldMembers,
    around_damage: bool = False,
) -> SlidingAnswer:
    """Computes an answer as of now. Raises M_UNKNOWN_POS if the connection has no state with the request's serial.

    around_damage: unreadable parts are left out, and an unreadable room is reduced to a gap.
    """
    state = BEGINNING if request.since is None else find_connection_state(tx, request.key, request.serial)
    if state is None:
        raise unknown_pos()
    user_id, tokens = request.requester.user_id, Tokens(tx.position, generation)
    ignored = ignored_users(tx, user_id)
    own = OwnRooms(tx, user_id)
    view = find_view(tx, request, state, ignored, own)
    viewer = Viewer(
        user_id, request.requester.device_id, EVERYTHING, False, True, tokens, members_of(request, told), ignored
    )
    rooms = _Rooms(tx, request, state, RoomReader(tx, viewer, request.since, request.is_merged), own)
    for room_nid, wanted in view.rooms.items():
        rooms.add(room_nid, wanted, around_damage=around_damage)
    rooms.note_gone(view)
    extensions = read_extensions(
        tx, sections, request, tokens, rooms.joined, list(rooms.told), around_damage=around_damage
    )
    has_news = bool(rooms.told) or extensions.has_news
    if not request.is_merged:
        for room_id, counts in extensions.counts.items():
            rooms.told.setdefault(room_id, {}).update(counts)
    body: JsonObject = {
        "lists": {name: {"count": count} for name, count in view.counts.items()},
        "rooms": rooms.told,
        "extensions": extensions.body,
    }
    keys: frozenset[str] = frozenset()
    if request.since is not None:  # the first answer never waits
        names = tx.names([each.room_nid for each in view.activity if each.membership == "join"])
        keys = frozenset((user_id, *names.values()))
    queue_upto = extensions.queue_upto if request.extensions.to_device.enabled else tokens.position
    return SlidingAnswer(
        body=body,
        upto=tokens.position,
        queue_upto=queue_upto,
        has_news=has_news,
        keys=keys,
        members=viewer.members,
        changed=rooms.changed,
        configs=rooms.configs,
        # A room that was left is in its lists until the client has been told.
        is_settled=bool(keys) and queue_upto == tokens.position and not rooms.has_left,
    )


class _Rooms:
    """Collects the rooms of an answer, and what the client knows of them then."""

    def __init__(
        self, tx: Transaction, request: SlidingRequest, state: ConnectionState, reader: RoomReader, own: OwnRooms
    ) -> None:
        self._tx = tx
        self._request = request
        self._state = state
        self._reader = reader
        self._own = own
        self._decoded: dict[bytes, tuple[RequiredState, ...]] = {}
        self._digests: dict[tuple[RequiredState, ...], bytes] = {}
        self.told: dict[RoomID, JsonObject] = {}
        self.joined: dict[RoomID, tuple[Wanted, RoomSection]] = {}
        self.changed: dict[int, ToldRoom] = {}
        self.configs: dict[bytes, bytes] = {}
        self.has_left = False

    def add(self, room_nid: int, wanted: Wanted, *, around_damage: bool) -> None:
        """Adds a room of the view, if there is anything that the client lacks."""
        room_id = RoomID(self._tx.name(room_nid))
        told = self._state.rooms.get(room_nid)
        known = None if told is None else self._known(told)
        if around_damage:
            try:
                answer = self._tx.attempt(self._reader.read, wanted.activity, wanted.config, known)
            except DatabaseDamaged:
                answer = None if known is not None else self._gap()
        else:
            answer = self._reader.read(wanted.activity, wanted.config, known)
        is_dm = room_id in self._own.dms
        if answer is None and (told is None or told.is_dm == is_dm):
            body = None
        else:
            body = {} if answer is None else answer.body
            if (told.is_dm if told is not None and not (answer and answer.is_initial) else False) != is_dm:
                body["is_dm"] = is_dm
            if self._request.is_merged and wanted.lists:
                body["lists"] = wanted.lists
            self.told[room_id] = body
            self.has_left |= wanted.activity.membership in ("leave", "ban")
        if wanted.activity.membership == "join":
            is_known = known is not None and not (answer is not None and answer.is_initial)
            since = known.upto if known is not None and is_known else 0
            has_moved = since > 0 and wanted.activity.members_position > since
            self.joined[room_id] = (wanted, RoomSection(since, members_changed=has_moved))
        self._note(room_nid, wanted, told, answer, is_dm)

    def _known(self, told: ToldRoom) -> Known:
        since = self._request.since
        assert since is not None
        required = self._decoded.get(told.config)
        if required is None:
            required = self._decoded[told.config] = decode(self._state.configs[told.config])
        return Known(since if told.upto is None else told.upto, told.timeline_limit, required)

    def _gap(self) -> RoomAnswer:
        """Returns a damaged room. A client that paginates into it gets an error."""
        prev_batch = self._reader.viewer.tokens.timeline(after_position(self._tx.position))
        return RoomAnswer({"initial": True, "timeline": [], "limited": True, "prev_batch": prev_batch}, True, True)

    def _note(
        self, room_nid: int, wanted: Wanted, told: ToldRoom | None, answer: RoomAnswer | None, is_dm: bool
    ) -> None:
        """Notes what the client knows of a room of the view after this answer."""
        if told is None and answer is None:
            return
        config = wanted.config
        if answer is None and told is not None and wanted.activity.membership != "join":
            new = replace(told, upto=None, is_dm=is_dm)
        else:
            limit = config.timeline_limit
            if told is not None and not (answer is not None and (answer.is_initial or answer.is_gappy)):
                limit = max(limit, told.timeline_limit)
            new = ToldRoom(None, limit, self._digest(config.required), is_dm)
        if new != told:
            self.changed[room_nid] = new

    def _digest(self, required: tuple[RequiredState, ...]) -> bytes:
        name = self._digests.get(required)
        if name is None:
            encoded = encode(required)
            name = self._digests[required] = digest(encoded)
            if name not in self._state.configs:
                self.configs[name] = encoded
        return name

    def note_gone(self, view: View) -> None:
        """Notes that the client knows rooms which have left the view up to its `pos` only."""
        for room_nid, told in self._state.rooms.items():
            if told.upto is None and room_nid not in view.rooms:
                self.changed[room_nid] = replace(told, upto=self._request.since)
