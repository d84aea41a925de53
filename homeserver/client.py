"""Client: a user of this server in the same process, for programs that embed it.

It calls the same operations as HTTP clients do, by name. Rooms, users and events are referred to by their IDs; contents
are plain dicts.
"""

from __future__ import annotations

import secrets
from collections import deque
from collections.abc import AsyncIterable, AsyncIterator, Mapping
from contextlib import asynccontextmanager
from email.message import Message
from typing import Any, Self

import msgspec

from homeserver.authenticate import Requester, TokenLookup, get_account_flags
from homeserver.calls import Answer, Body, Calls, Headers, Query
from homeserver.database import Transaction
from homeserver.errors import ClosedError, MatrixError, invalid_param
from homeserver.federation.identifiers import EventID, RoomID, UserID
from homeserver.resources import Resources
from homeserver.rooms.membership import list_joined_rooms
from homeserver.rooms.timeline import Tokens
from homeserver.users.accounts import find_user, no_account

SYNC_TIMEOUT_MS = 30_000
PAGE_LIMIT = 100
INVITATIONS_ONLY = '{"room":{"timeline":{"limit":0},"state":{"types":[]}},"presence":{"types":[]}}'


class RoomEvent(msgspec.Struct, frozen=True):
    """An event from `Client.events` or `Client.messages`, in the format of the client-server API, and its room."""

    room_id: RoomID
    event: dict[str, Any]

    @property
    def type(self) -> str:
        """The event type, such as "m.room.message"."""
        return str(self.event["type"])

    @property
    def sender(self) -> UserID:
        """The user who sent the event."""
        return UserID(self.event["sender"])

    @property
    def event_id(self) -> EventID:
        """The event ID; "" for an invite whose sender's server did not include it."""
        return EventID(self.event.get("event_id", ""))

    @property
    def content(self) -> dict[str, Any]:
        """The content of the event."""
        content: dict[str, Any] = self.event["content"]
        return content

    @property
    def body(self) -> str:
        """The text of a message; "" for any other event."""
        body = self.content.get("body")
        return body if isinstance(body, str) else ""


class File(msgspec.Struct, frozen=True):
    """A downloaded file. filename is None if the uploader did not give one."""

    content: bytes
    content_type: str
    filename: str | None


class Client:
    """One device of one user. Created by `Homeserver.register` and `Homeserver.log_in`.

    Every method raises MatrixError if the server refuses the call, and ClosedError once the server is closed.
    """

    def __init__(self, hs: Resources, calls: Calls, opened: _Opened) -> None:
        self._hs = hs
        self._calls = calls
        self._opened = opened
        self._cache_key = f"{opened.requester.user_id} {opened.requester.device_id} in process".encode()
        self._since: str | None = None

    @classmethod
    async def open(cls, hs: Resources, calls: Calls, user_id: UserID, device_id: str) -> Client:
        """Returns a client for an account. Raises MatrixError 404, or 403 M_USER_DEACTIVATED."""
        return cls(hs, calls, await hs.database.read(_open, user_id, device_id, hs.database.generation))

    @property
    def user_id(self) -> UserID:
        """The user that the client acts for, such as "@alice:example.org"."""
        return self._opened.requester.user_id

    @property
    def device_id(self) -> str:
        """The ID of the device that the client acts as."""
        return self._opened.requester.device_id

    async def call(
        self, operation: str, *path: str | int, body: Body = None, query: Query = None, headers: Headers = None
    ) -> Any:
        """Calls any operation by its name in the spec, in snake_case, and returns its answer.

        path: the operation's path parameters, in order.
        body: a mapping for operations that take JSON; bytes or an async iterable of bytes for files.

        Returns a dict or a list if the operation answers JSON, bytes if it answers a file. Raises MatrixError if the
        server refuses the call, TypeError if the arguments do not fit the operation.
        """
        with self._calls.open():
            return await self._calls.call(operation, path, await self._requester(), body, query, headers)

    @asynccontextmanager
    async def stream(
        self, operation: str, *path: str | int, body: Body = None, query: Query = None, headers: Headers = None
    ) -> AsyncIterator[Answer]:
        """Like `call`, for large files: `async with client.stream(…) as answer`, then iterate over `answer.chunks`."""
        with self._calls.open():
            requester = await self._requester()
            async with self._calls.stream(operation, path, requester, body, query, headers) as answer:
                yield answer

    async def upload(
        self,
        data: bytes | AsyncIterable[bytes],
        content_type: str = "application/octet-stream",
        filename: str | None = None,
    ) -> str:
        """Stores a file and returns its `mxc://` URI, for use in messages and avatars. `data` may come in chunks."""
        if not isinstance(data, bytes | bytearray | memoryview | AsyncIterable):
            raise TypeError(f"upload takes bytes or an async iterable of bytes, not {type(data).__name__}.")
        query = {"filename": filename} if filename else None
        answer = await self.call("upload_content", body=data, query=query, headers={"content-type": content_type})
        return str(answer["content_uri"])

    async def download(self, mxc_uri: str) -> File:
        """Returns the file of an `mxc://` URI, of this or any other server."""
        if not isinstance(mxc_uri, str):
            raise TypeError(f"download takes an mxc:// URI, not {type(mxc_uri).__name__}.")
        server_name, slash, media_id = mxc_uri.removeprefix("mxc://").partition("/")
        if not mxc_uri.startswith("mxc://") or not slash:
            raise invalid_param(f"{mxc_uri!r} is not an mxc:// URI.")
        async with self.stream("get_content_authed", server_name, media_id) as answer:
            content = b"".join([chunk async for chunk in answer.chunks])
            return File(content, answer.headers["content-type"], _filename(answer.headers))

    async def create_room(self, **options: Any) -> RoomID:
        """Creates a room and returns its ID. `options` are the fields of POST /createRoom: name, topic, preset, invite,
        …
        """
        self._calls.check_fields("create_room", options)
        return RoomID((await self.call("create_room", body=options))["room_id"])

    async def invite(self, room_id: str, user_id: str) -> None:
        """Invites a user of this or any other server."""
        await self.call("invite_user", room_id, body={"user_id": user_id})

    async def join(self, room_id_or_alias: str, *, via: tuple[str, ...] = ()) -> RoomID:
        """Joins a room of this server, or a room of another one through the servers in `via`. Returns the room ID."""
        return RoomID((await self.call("join_room", room_id_or_alias, body={}, query={"via": via}))["room_id"])

    async def leave(self, room_id: str) -> None:
        """Leaves a room, or declines the invite to it."""
        await self.call("leave_room", room_id, body={})

    async def send(
        self, room_id: str, message: str | Mapping[str, Any], *, event_type: str = "m.room.message"
    ) -> EventID:
        """Sends a text message, or an event of any type with that content. The event is durable when this returns."""
        if not isinstance(message, str | Mapping):
            raise TypeError(f"send takes a str or a mapping, not {type(message).__name__}.")
        content = {"msgtype": "m.text", "body": message} if isinstance(message, str) else dict(message)
        answer = await self.call("send_message", room_id, event_type, secrets.token_hex(8), body=content)
        return EventID(answer["event_id"])

    async def set_state(
        self, room_id: str, event_type: str, content: Mapping[str, Any], *, state_key: str = ""
    ) -> EventID:
        """Sets part of the room's state: its topic, a user's power level, … Returns the ID of the state event."""
        answer = await self.call("set_room_state_with_key", room_id, event_type, state_key, body=content)
        return EventID(answer["event_id"])

    async def messages(self, room_id: str, *, limit: int = 10) -> list[RoomEvent]:
        """Returns the newest events of a room, newest first."""
        answer = await self.call("get_room_events", room_id, query={"dir": "b", "limit": limit})
        return [RoomEvent(RoomID(room_id), event) for event in answer["chunk"]]

    async def read(self, room_id: str, event_id: str) -> None:
        """Sends a read receipt for an event."""
        await self.call("post_receipt", room_id, "m.read", event_id, body={})

    async def sync(self, *, timeout_ms: int = 0) -> dict[str, Any]:
        """Returns the answer of /sync: the changes since the last call, or everything on the first call."""
        query: dict[str, Any] = {"timeout": timeout_ms}
        if self._since is not None:
            query["since"] = self._since
        answer = await self.call("sync_events", query=query)
        self._since = answer["next_batch"]
        return answer

    def events(self) -> AsyncIterator[RoomEvent]:
        """Yields the user's pending invites, then every event since this client was opened.

        The events of a room come in order, from the user's own join on. An invite is the user's member event. The
        iterator ends when the server closes.
        """
        return _Events(self, self._opened)

    async def _requester(self) -> Requester:
        """Returns the requester as of now: the account may have been locked or deactivated since `open`."""
        hs, cache = self._hs, self._hs.token_cache
        found: TokenLookup | None = cache.get(self._cache_key, hs.now_ms(), hs.stream.may_have_changed)
        if found is None:
            position = hs.stream.position
            requester = await hs.database.read(_get_requester, self.user_id, self.device_id)
            found = TokenLookup(requester, expires_ms=None, unused=False)
            cache.put(self._cache_key, self.user_id, found, now_ms=hs.now_ms(), position=position)
        return found.requester


class _Events:
    """The iterator of `Client.events`. It can be abandoned at any time, and a cancelled wait loses nothing."""

    def __init__(self, client: Client, opened: _Opened) -> None:
        self._client = client
        self._since = opened.token
        self._joined: set[str] = set(opened.joined)
        self._invited: frozenset[str] | None = None  # the rooms of the pending invites, once these have been read
        self._waiting: deque[RoomEvent] = deque()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> RoomEvent:
        try:
            while not self._waiting:
                await self._fetch()
        except ClosedError:
            raise StopAsyncIteration from None
        return self._waiting.popleft()

    async def _fetch(self) -> None:
        """Reads the next events, and advances only after reading all of them."""
        if self._invited is None:
            answer = await self._client.call("sync_events", query={"filter": INVITATIONS_ONLY})
            self._waiting.extend(self._invitations(answer))
            self._invited = frozenset(_rooms(answer, "invite"))
            return
        since = self._since
        answer = await self._client.call("sync_events", query={"timeout": SYNC_TIMEOUT_MS, "since": since})
        events = [event for event in self._invitations(answer) if event.room_id not in self._invited]
        for room_id, room in (_rooms(answer, "join") | _rooms(answer, "leave")).items():
            events += await self._news(RoomID(room_id), room.get("timeline"), since)
        self._joined = (self._joined | _rooms(answer, "join").keys()) - _rooms(answer, "leave").keys()
        self._invited = frozenset()
        self._since = answer["next_batch"]
        self._waiting.extend(events)

    async def _news(self, room_id: RoomID, timeline: dict[str, Any] | None, since: str) -> list[RoomEvent]:
        """Returns the room's events since a sync, oldest first; if the user has just joined, from the join on."""
        if timeline is None:
            return []
        events: list[dict[str, Any]] = timeline["events"]
        if room_id not in self._joined:
            joins = [at for at, event in enumerate(events) if self._is_own(event) and "event_id" in event]
            return [RoomEvent(room_id, event) for event in (events[joins[-1] :] if joins else events)]
        start = timeline["prev_batch"] if timeline["limited"] else None
        while start is not None:
            query = {"dir": "b", "from": start, "to": since, "limit": PAGE_LIMIT}
            page = await self._client.call("get_room_events", room_id, query=query)
            events = page["chunk"][::-1] + events
            start = page.get("end")
        return [RoomEvent(room_id, event) for event in events]

    def _invitations(self, answer: Mapping[str, Any]) -> list[RoomEvent]:
        return [
            RoomEvent(RoomID(room_id), event)
            for room_id, room in _rooms(answer, "invite").items()
            for event in room["invite_state"]["events"]
            if self._is_own(event)
        ]

    def _is_own(self, event: Mapping[str, Any]) -> bool:
        return event["type"] == "m.room.member" and event.get("state_key") == self._client.user_id


def _rooms(answer: Mapping[str, Any], membership: str) -> dict[str, Any]:
    found: dict[str, Any] = answer.get("rooms", {}).get(membership, {})
    return found


def _filename(headers: Mapping[str, str]) -> str | None:
    """Returns the file name in the Content-Disposition header, None if it has none."""
    message = Message()
    message["content-disposition"] = headers.get("content-disposition", "")
    return message.get_filename()


class _Opened(msgspec.Struct, frozen=True):
    """The requester that a client acts as, and its state when it was opened: the sync token and the joined rooms."""

    requester: Requester
    token: str
    joined: frozenset[RoomID]


def _open(tx: Transaction, user_id: UserID, device_id: str, generation: str) -> _Opened:
    requester = _get_requester(tx, user_id, device_id)
    token = Tokens(tx.position, generation).stream()
    return _Opened(requester, token, frozenset(list_joined_rooms(tx, user_id)))


def _get_requester(tx: Transaction, user_id: UserID, device_id: str) -> Requester:
    user = find_user(tx, user_id)
    if user is None:
        raise no_account(user_id)
    if user.is_deactivated:
        raise MatrixError(403, "M_USER_DEACTIVATED", f"The account {user_id} has been deactivated.")
    flags = get_account_flags(tx, user_id)
    return Requester(
        user_id=user_id,
        device_id=device_id,
        is_admin=flags.is_admin,
        is_guest=flags.is_guest,
        is_locked=flags.is_locked,
        is_suspended=flags.is_suspended,
        is_shadow_banned=flags.is_shadow_banned,
    )
