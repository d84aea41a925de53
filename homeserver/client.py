"""Client: a user of this server in the same process, for programs that embed it.

It calls the operations that HTTP clients call, by their names; there is no second door. Rooms, users and events are
named by their ids; contents are plain dicts.
"""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlencode

import orjson

from homeserver.api import Request
from homeserver.authenticate import Requester, get_account_flags
from homeserver.database import Transaction
from homeserver.dispatch import Dispatch
from homeserver.encoding import to_json
from homeserver.errors import not_found
from homeserver.federation.identifiers import EventID, RoomID, UserID
from homeserver.resources import Resources
from homeserver.rooms.membership import list_joined_rooms
from homeserver.rooms.timeline import sync_token
from homeserver.users.accounts import exists

SYNC_TIMEOUT_MS = 30_000
PAGE_LIMIT = 100
INVITATIONS_ONLY = '{"room":{"timeline":{"limit":0},"state":{"types":[]}},"presence":{"types":[]}}'


@dataclass(frozen=True, slots=True)
class RoomEvent:
    """An event as `events` gives it: the event as clients get it, and the room that it is in."""

    room_id: RoomID
    event: dict[str, Any]

    @property
    def type(self) -> str:
        return str(self.event["type"])

    @property
    def sender(self) -> UserID:
        return UserID(self.event["sender"])

    @property
    def event_id(self) -> EventID:
        return EventID(self.event["event_id"])

    @property
    def content(self) -> dict[str, Any]:
        content: dict[str, Any] = self.event["content"]
        return content

    @property
    def body(self) -> str:
        """The text of a message; "" of any other event."""
        body = self.content.get("body")
        return body if isinstance(body, str) else ""


class Client:
    """One device of one user. Every method raises MatrixError as the server answers it."""

    def __init__(self, dispatch: Dispatch, opened: _Opened) -> None:
        self._dispatch = dispatch
        self._requester = opened.requester
        self._opened = opened
        self._since: str | None = None

    @classmethod
    async def open(cls, hs: Resources, dispatch: Dispatch, user_id: UserID, device_id: str) -> Client:
        """A client of an account; MatrixError 404 if there is none."""
        return cls(dispatch, await hs.database.read(_open, user_id, device_id))

    @property
    def user_id(self) -> UserID:
        return self._requester.user_id

    async def call(
        self, operation: str, *path: Any, body: Mapping[str, Any] | None = None, query: Mapping[str, Any] | None = None
    ) -> dict[str, Any]:
        """The answer of an operation, by its name in the spec in snake_case; `path` holds its path parameters."""
        found = self._dispatch.by_name.get(operation)
        if found is None:
            raise not_found(f"There is no operation {operation}.")
        request = Request(found.method, found.path, urlencode(query or {}, doseq=True))
        request.content = None if body is None else dict(body)
        result = await self._dispatch.call(found, request, self._requester, list(path))
        answer = orjson.loads(to_json(result)) if result is not None else {}
        return answer if isinstance(answer, dict) else {"result": answer}

    async def create_room(self, **options: Any) -> RoomID:
        """A new room; `options` are the fields of POST /createRoom: name, topic, preset, invite …"""
        return RoomID((await self.call("create_room", body=options))["room_id"])

    async def invite(self, room_id: str, user_id: str) -> None:
        await self.call("invite_user", room_id, body={"user_id": user_id})

    async def join(self, room_id_or_alias: str, *, via: tuple[str, ...] = ()) -> RoomID:
        """Joins a room of this server or, through the servers `via`, of any other."""
        return RoomID((await self.call("join_room", room_id_or_alias, body={}, query={"via": via}))["room_id"])

    async def leave(self, room_id: str) -> None:
        await self.call("leave_room", room_id, body={})

    async def send(
        self, room_id: str, message: str | Mapping[str, Any], *, event_type: str = "m.room.message"
    ) -> EventID:
        """Sends a text, or the content of an event of any type. The event is durable when this answers."""
        content = {"msgtype": "m.text", "body": message} if isinstance(message, str) else dict(message)
        answer = await self.call("send_message", room_id, event_type, secrets.token_hex(8), body=content)
        return EventID(answer["event_id"])

    async def set_state(
        self, room_id: str, event_type: str, content: Mapping[str, Any], *, state_key: str = ""
    ) -> EventID:
        answer = await self.call("set_room_state_with_key", room_id, event_type, state_key, body=content)
        return EventID(answer["event_id"])

    async def messages(self, room_id: str, *, limit: int = 10) -> list[RoomEvent]:
        """The newest events of a room, newest first."""
        answer = await self.call("get_room_events", room_id, query={"dir": "b", "limit": limit})
        return [RoomEvent(RoomID(room_id), event) for event in answer["chunk"]]

    async def read(self, room_id: str, event_id: str) -> None:
        """Tells the room that the user has read it up to an event."""
        await self.call("post_receipt", room_id, "m.read", event_id, body={})

    async def sync(self, *, timeout_ms: int = 0) -> dict[str, Any]:
        """What has changed since the last call; the first time, everything."""
        query: dict[str, Any] = {"timeout": timeout_ms}
        if self._since is not None:
            query["since"] = self._since
        answer = await self.call("sync_events", query=query)
        self._since = answer["next_batch"]
        return answer

    async def events(self) -> AsyncIterator[RoomEvent]:
        """The invitations that wait for the user, then every event since this client was opened. Never ends.

        Each room's events come in their order, from the user's own join on. An invitation is the user's member event,
        without an id: the room is not the user's to look into yet.
        """
        answer = await self.call("sync_events", query={"filter": INVITATIONS_ONLY})
        for event in self._invitations(answer):
            yield event
        joined: set[str] = set(self._opened.joined)
        invited = frozenset(_rooms(answer, "invite"))
        since = self._opened.token
        while True:
            answer = await self.call("sync_events", query={"timeout": SYNC_TIMEOUT_MS, "since": since})
            for event in self._invitations(answer):
                if event.room_id not in invited:
                    yield event
            for room_id, room in (_rooms(answer, "join") | _rooms(answer, "leave")).items():
                for news in await self._news(room_id, room.get("timeline"), since, was_joined=room_id in joined):
                    yield RoomEvent(RoomID(room_id), news)
            joined = (joined | _rooms(answer, "join").keys()) - _rooms(answer, "leave").keys()
            invited = frozenset()
            since = answer["next_batch"]

    async def _news(
        self, room_id: str, timeline: dict[str, Any] | None, since: str, *, was_joined: bool
    ) -> list[dict[str, Any]]:
        """The room's events since a sync, oldest first: of one just joined without what was before."""
        if timeline is None:
            return []
        events: list[dict[str, Any]] = timeline["events"]
        if not was_joined:
            joins = [at for at, event in enumerate(events) if self._is_own(event) and "event_id" in event]
            return events[joins[-1] :] if joins else events
        start = timeline["prev_batch"] if timeline["limited"] else None
        while start is not None:
            query = {"dir": "b", "from": start, "to": since, "limit": PAGE_LIMIT}
            page = await self.call("get_room_events", room_id, query=query)
            events = page["chunk"][::-1] + events
            start = page.get("end")
        return events

    def _invitations(self, answer: Mapping[str, Any]) -> list[RoomEvent]:
        return [
            RoomEvent(RoomID(room_id), event)
            for room_id, room in _rooms(answer, "invite").items()
            for event in room["invite_state"]["events"]
            if self._is_own(event)
        ]

    def _is_own(self, event: Mapping[str, Any]) -> bool:
        return event["type"] == "m.room.member" and event.get("state_key") == self.user_id


def _rooms(answer: Mapping[str, Any], membership: str) -> dict[str, Any]:
    found: dict[str, Any] = answer.get("rooms", {}).get(membership, {})
    return found


@dataclass(frozen=True, slots=True)
class _Opened:
    """Who has opened a client, and what there was at that moment: where the stream stood, the rooms they were in."""

    requester: Requester
    token: str
    joined: frozenset[RoomID]


def _open(tx: Transaction, user_id: UserID, device_id: str) -> _Opened:
    if not exists(tx, user_id):
        raise not_found(f"There is no account {user_id} on this server.")
    flags = get_account_flags(tx, user_id)
    requester = Requester(user_id=user_id, device_id=device_id, is_admin=flags.is_admin, is_guest=flags.is_guest)
    return _Opened(requester, sync_token(tx.position), frozenset(list_joined_rooms(tx, user_id)))
