"""SocketClient: a user's connection to a homeserver over its WebSocket, for programs on any machine.

    async with open_socket_client("https://matrix.example.org", token) as client:
        await client.send(room_id, "Hello")
        async for event in client.events():
            print(event.sender, event.body)

Theory of operation. One task keeps a connection open: it connects, starts the push of sync answers, and hands out what
arrives. When the connection ends, it connects again after a pause that grows with each failure and has a random length,
so that the clients of a server that restarts do not all come at once. It then goes on from the last answer that the
program has taken: answers that arrived but were not taken are dropped, and come again. So no answer is seen twice, none
is missed, and a program that stores `since` with its own data can go on from there in another process. The same happens
if ANSWERS_WAITING_MAX of them wait for the program: the rest is dropped, and when it has taken those, the client
connects again. So news that nobody takes cannot fill memory.

A call that is under way when the connection ends is sent again if it may be repeated: messages have a transaction ID,
so the server recognises the second one. Otherwise it raises ConnectionLost, because nobody knows whether it was
processed.

The protocol is in docs/websocket.md.
"""

from __future__ import annotations

import random
import secrets
import ssl
from collections import deque
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

import orjson
import trio
from trio_websocket import (
    ConnectionClosed,
    ConnectionRejected,
    HandshakeError,
    WebSocketConnection,
    open_websocket_url,
)

from homeserver.client import PAGE_LIMIT, RoomEvent
from homeserver.errors import MatrixError
from homeserver.federation.identifiers import EventID, RoomID

Connect = Callable[[], AbstractAsyncContextManager[WebSocketConnection]]

PATH = "/_homeserver/client/v1/ws"
CONNECT_SECONDS_MAX = 20
# A message as large as the first sync of a user in very many rooms.
MESSAGE_BYTES_MAX = 256 << 20
# Some seconds of a very busy account. A program that is further behind gets one answer that has everything.
ANSWERS_WAITING_MAX = 100
PING_SECONDS = 30
PAUSE_SECONDS = 0.5
PAUSE_SECONDS_MAX = 30
_LOGGED_OUT = 4001
# How a connection fails, or ends: the client connects again.
_LOST = (OSError, HandshakeError, ConnectionClosed, trio.TooSlowError)


class ConnectionLost(Exception):
    """The connection ended before a call was answered, and nobody knows whether it was processed."""

    def __init__(self) -> None:
        super().__init__("The connection ended before the call was answered. It may have been processed.")


class _Call:
    """A call under way: the message, and its answer once there is one."""

    __slots__ = ("answer", "done", "is_lost", "is_repeatable", "is_sent", "message")

    def __init__(self, message: dict[str, Any], *, is_repeatable: bool) -> None:
        self.message = message
        self.is_repeatable = is_repeatable
        self.is_sent = False
        self.is_lost = False
        self.answer: dict[str, Any] | None = None
        self.done = trio.Event()


class SocketClient:
    """Created by `open_socket_client`. since: the token of the last answer that the program has taken."""

    def __init__(self, connect: Connect, sync: Mapping[str, Any], since: str | None) -> None:
        self.since = since
        self._connect = connect
        self._sync = dict(sync)
        self._is_syncing = False
        self._websocket: WebSocketConnection | None = None
        self._calls: dict[int, _Call] = {}
        self._number = 0
        self._answers: deque[dict[str, Any]] = deque()
        self._is_behind = False  # answers were dropped
        self._leave: Callable[[], None] = _nothing  # ends the connection
        self._news = trio.Event()
        self.connections = 0  # how often it has connected

    @property
    def waiting(self) -> int:
        """How many sync answers have arrived that the program has not taken."""
        return len(self._answers)

    # --- what programs call ---

    async def call(
        self,
        operation: str,
        *path: str | int,
        body: Mapping[str, Any] | None = None,
        query: Mapping[str, Any] | None = None,
        repeat: bool = False,
    ) -> Any:
        """Calls any operation by its name in the spec, in snake_case, and returns its answer.

        path: the operation's path parameters, in order. repeat: whether to call it again if the connection ends before
        there is an answer. Raises MatrixError if the server refuses the call, ConnectionLost without `repeat`.
        """
        self._number += 1
        message: dict[str, Any] = {"id": self._number, "op": operation, "path": list(path)}
        if body is not None:
            message["body"] = dict(body)
        if query:
            message["query"] = dict(query)
        call = self._calls[self._number] = _Call(message, is_repeatable=repeat)
        try:
            await self._say(call)
            await call.done.wait()
        finally:
            self._calls.pop(message["id"], None)
        if call.answer is None:
            raise ConnectionLost
        if call.answer["status"] >= 400:
            extra = dict(call.answer["body"])
            raise MatrixError(call.answer["status"], extra.pop("errcode", "M_UNKNOWN"), extra.pop("error", ""), **extra)
        return call.answer["body"]

    async def send(
        self, room_id: str, message: str | Mapping[str, Any], *, event_type: str = "m.room.message"
    ) -> EventID:
        """Sends a text message, or an event of any type with that content: once, however often it has to connect."""
        content = {"msgtype": "m.text", "body": message} if isinstance(message, str) else message
        answer = await self.call("send_message", room_id, event_type, secrets.token_hex(8), body=content, repeat=True)
        return EventID(answer["event_id"])

    async def syncs(self) -> AsyncIterator[dict[str, Any]]:
        """Yields sync answers, beginning after `since`. Asking for the next one acknowledges the last one."""
        if not self._is_syncing:
            self._is_syncing = True
            await self._start_sync()
        while True:
            while not self._answers:
                self._news = trio.Event()
                if self._is_behind:
                    self._leave()
                await self._news.wait()
            answer = self._answers.popleft()
            self.since = answer["next_batch"]
            yield answer
            await self._post({"ack": answer["next_batch"]})

    async def events(self) -> AsyncIterator[RoomEvent]:
        """Yields the events of the rooms that the user is in, oldest first: those after `since`, without gaps.

        Without `since` it begins with the newest events of each room.
        """
        joined: set[str] = set()
        if self.since is not None:
            joined = set((await self.call("get_joined_rooms", repeat=True))["joined_rooms"])
        before = self.since
        async for answer in self.syncs():
            rooms = answer.get("rooms", {})
            found: list[RoomEvent] = []
            for room_id, room in {**rooms.get("join", {}), **rooms.get("leave", {})}.items():
                found += await self._events_of(room_id, room.get("timeline", {}), before if room_id in joined else None)
            joined |= rooms.get("join", {}).keys()
            joined -= rooms.get("leave", {}).keys()
            before = answer["next_batch"]
            for event in found:
                yield event

    async def _events_of(self, room_id: str, timeline: Mapping[str, Any], since: str | None) -> list[RoomEvent]:
        """Returns the events of a timeline, and those that it leaves out since a token."""
        events: list[dict[str, Any]] = list(timeline.get("events", ()))
        start = timeline.get("prev_batch") if timeline.get("limited") and since is not None else None
        while start is not None:
            query = {"dir": "b", "from": start, "to": since, "limit": PAGE_LIMIT}
            page = await self.call("get_room_events", room_id, query=query, repeat=True)
            events = page["chunk"][::-1] + events
            start = page.get("end")
        return [RoomEvent(RoomID(room_id), event) for event in events]

    # --- the connection ---

    async def run(self) -> None:
        """Keeps a connection open. Raises MatrixError when the server does not accept the token any more."""
        failures = 0
        while True:
            connections = self.connections
            try:
                async with self._connect() as websocket:
                    self.connections += 1
                    await self._use(websocket)
            except _LOST as error:
                _check_accepted(error)
            except BaseExceptionGroup as group:
                lost, others = group.split(_LOST)
                if others is not None:
                    raise
                assert lost is not None
                for each in _leaves(lost):
                    _check_accepted(each)
            finally:
                self._forget_connection()
            failures = 0 if self.connections > connections else failures + 1
            await trio.sleep(random.uniform(0, min(PAUSE_SECONDS_MAX, PAUSE_SECONDS * 2**failures)))

    def _forget_connection(self) -> None:
        """Fails the calls that cannot be repeated, and drops the answers that were not taken: they come again."""
        self._websocket = None
        self._answers.clear()
        self._is_behind, self._leave = False, _nothing
        for call in self._calls.values():
            if call.is_sent and not call.is_repeatable:
                call.done.set()
            call.is_sent = False

    async def _use(self, websocket: WebSocketConnection) -> None:
        self._websocket = websocket
        async with trio.open_nursery() as nursery:
            self._leave = nursery.cancel_scope.cancel
            nursery.start_soon(_keep_alive, websocket)
            nursery.start_soon(self._begin)
            while True:
                message = orjson.loads(await websocket.get_message())
                if "sync" in message:
                    self._keep(message["sync"])
                elif (call := self._calls.get(message.get("id"))) is not None:
                    call.answer = message
                    call.done.set()

    def _keep(self, answer: dict[str, Any]) -> None:
        self._is_behind |= len(self._answers) == ANSWERS_WAITING_MAX
        if not self._is_behind:
            self._answers.append(answer)
            self._news.set()

    async def _begin(self) -> None:
        """Says again, on a new connection, what the last one has not finished."""
        if self._is_syncing:
            await self._start_sync()
        for call in tuple(self._calls.values()):
            if not call.is_sent:
                await self._say(call)

    async def _start_sync(self) -> None:
        since = {} if self.since is None else {"since": self.since}
        await self._post({"op": "sync", **self._sync, **since})

    async def _say(self, call: _Call) -> None:
        if self._websocket is not None:
            call.is_sent = True
            await self._post(call.message)

    async def _post(self, message: Mapping[str, Any]) -> None:
        """Sends a message, unless there is no connection: `_begin` says on the next one what matters."""
        if self._websocket is not None:
            try:
                await self._websocket.send_message(orjson.dumps(message).decode())
            except ConnectionClosed:
                pass  # its reader notices it too


def _nothing() -> None:
    pass


def _leaves(group: BaseExceptionGroup[Any]) -> list[BaseException]:
    found: list[BaseException] = []
    for each in group.exceptions:
        found += _leaves(each) if isinstance(each, BaseExceptionGroup) else [each]
    return found


def _check_accepted(error: BaseException) -> None:
    """Raises MatrixError if the server has refused the client for a reason that another try does not change."""
    if isinstance(error, ConnectionClosed) and error.reason is not None and error.reason.code == _LOGGED_OUT:
        code, _, said = (error.reason.reason or "").partition(": ")
        raise MatrixError(401, code if said else "M_UNKNOWN_TOKEN", said or code) from None
    if isinstance(error, ConnectionRejected) and error.status_code in (401, 403, 404, 426):
        try:
            body = orjson.loads(error.body or b"{}")
        except orjson.JSONDecodeError:
            body = {}
        said = body.get("error", f"The server answered {error.status_code}.")
        raise MatrixError(error.status_code, body.get("errcode", "M_UNKNOWN"), said) from None


async def _keep_alive(websocket: WebSocketConnection) -> None:
    """Notices that the network has lost the connection."""
    while True:
        await trio.sleep(PING_SECONDS)
        with trio.fail_after(PING_SECONDS):
            await websocket.ping()


@asynccontextmanager
async def open_socket_client(
    base_url: str,
    token: str,
    *,
    since: str | None = None,
    filter: Mapping[str, Any] | str | None = None,
    set_presence: str = "online",
    ssl_context: ssl.SSLContext | None = None,
    connect: Connect | None = None,
) -> AsyncIterator[SocketClient]:
    """Yields a client that is connected, or connecting, until the end of the context.

    base_url: of the homeserver, such as "https://matrix.example.org". since: the token to go on from. filter: of the
    sync answers, in full or by ID. connect: opens a connection, instead of a real one. Raises MatrixError, in the body
    of the context too, if the server does not accept the token, or not any more.
    """
    url = "ws" + base_url.removeprefix("http").rstrip("/") + PATH
    headers = [(b"authorization", b"Bearer " + token.encode())]

    def connect_really() -> AbstractAsyncContextManager[WebSocketConnection]:
        return open_websocket_url(
            url, ssl_context, extra_headers=headers, connect_timeout=CONNECT_SECONDS_MAX,
            disconnect_timeout=PAUSE_SECONDS, max_message_size=MESSAGE_BYTES_MAX,
        )  # fmt: skip

    sync = {"set_presence": set_presence, **({} if filter is None else {"filter": filter})}
    client = SocketClient(connect or connect_really, sync, since)
    refused: list[MatrixError] = []
    async with trio.open_nursery() as nursery:

        async def run() -> None:
            try:
                await client.run()
            except MatrixError as error:
                refused.append(error)
                nursery.cancel_scope.cancel()

        nursery.start_soon(run)
        yield client
        nursery.cancel_scope.cancel()
    if refused:
        raise refused[0]
