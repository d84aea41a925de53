"""A session: what one client does over its WebSocket, from its authentication to the end of the connection.

Theory of operation. The connection's task reads one message after the other. Calls of operations are answered by tasks
of their own, at most REQUESTS_AT_ONCE_MAX at a time, in the order in which they finish. While there are that many, or
too much waits for the client to receive it, nothing is read: TCP holds the client back, and nothing is lost. Each call
goes the way of an HTTP request (`Dispatch.answer`): the same authentication, limits, errors, metrics and log.

`sync` starts the push of sync answers, see `pushes`. `ack` says that the client has everything up to a token. It is
processed by a task that exists only as long as there is one to process, and only the latest one matters.

A session ends when the client closes the connection or loses it, when it does something that it may not do (`Closing`),
when its token ends, and when the server stops: then it reads no more, answers what it is processing, and closes.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Protocol

import msgspec
import trio

from homeserver import limits
from homeserver.api.routes import Request
from homeserver.authenticate import Requester, find_requester
from homeserver.database import DatabaseError
from homeserver.errors import MatrixError, invalid_param, unrecognized
from homeserver.http.dispatch import Dispatch
from homeserver.process.token_cache import tokens_key
from homeserver.sync import SyncQuery
from homeserver.websocket.channel import Channel
from homeserver.websocket.messages import (
    Close,
    Closing,
    Malformed,
    Message,
    answer,
    filter_text,
    parse,
    path_segments,
    query_string,
    refusal,
)
from homeserver.websocket.pushes import Push, Pushes

_JSON = "application/json"
_SYNC = "sync_events"


class Carrier(Protocol):
    """What receives messages: `wire.Wire` or `asgi.AsgiWire`."""

    channel: Channel

    async def receive(self) -> bytes | None: ...


class Session:
    """One client's session. user_id: "" until the client has authenticated itself."""

    __slots__ = (
        "_ack", "_agent", "_allowance", "_allowance_at", "_carrier", "_checked_at", "_client_ip", "_closed",
        "_dispatch", "_groups", "_is_acking", "_is_ending", "_pushes", "_requests", "_resume", "_token", "_watch",
        "channel", "push", "requester",
    )  # fmt: skip

    def __init__(
        self,
        dispatch: Dispatch,
        pushes: Pushes,
        carrier: Carrier,
        client_ip: str,
        agent: str | None,
        groups: Collection[str],
    ) -> None:
        """agent: what the client has called itself when it opened the connection. groups: of operations for it."""
        self._dispatch = dispatch
        self._pushes = pushes
        self._carrier = carrier
        self.channel = carrier.channel
        self._client_ip = client_ip
        self._agent = agent
        self._groups = groups
        self.requester: Requester | None = None
        self._token = ""
        self._requests = 0  # being processed
        self._resume: trio.Event | None = None  # set when reading may go on
        self._closed: trio.Event | None = None
        self._is_ending = False
        self._ack: str | None = None
        self._is_acking = False
        self.push: Push | None = None
        self._watch = dispatch.hs.stream.watch(self._note_tokens)
        self._checked_at = trio.current_time()
        self._allowance: float = limits.websocket.FRAMES_BURST
        self._allowance_at = self._checked_at
        self.channel.on_drained = self._note_drained

    # --- its life ---

    async def run(self) -> None:
        """Processes messages until the end of the connection, which the caller has to finish."""
        try:
            while True:
                data = await self._carrier.receive()
                if data is None:
                    return
                if self._is_ending:  # the client will say it again to the server that it finds next
                    continue
                await self._process(data)
                await self.wait_for_room()
        except Closing as closing:
            self.channel.close(closing.code, closing.reason)
        finally:
            self._watch.close()
            if self.push is not None:
                self._pushes.remove(self.push)
            if self._closed is not None:
                self._closed.set()

    async def receive_token(self) -> bool:
        """Waits for the client's first message, which authenticates it. Returns False if the client is gone.

        Raises Closing if it is anything else.
        """
        data = await self._carrier.receive()
        if data is not None:
            await self._process(data)
        return data is not None

    @property
    def is_held_back(self) -> bool:
        """Whether no more messages are read until something has been answered or received."""
        is_busy = self._requests >= limits.websocket.REQUESTS_AT_ONCE_MAX
        return is_busy or self.channel.unsent > limits.websocket.UNSENT_BYTES_MAX

    async def wait_for_room(self) -> None:
        """Waits until the client is not held back any more, or the connection is closed."""
        while self.is_held_back and self.channel.is_open:
            self._resume = trio.Event()
            await self._resume.wait()

    def end(self) -> None:
        """Closes the connection once the requests that are being processed are answered: the server stops."""
        self._is_ending = True
        if self.push is not None:
            self._pushes.remove(self.push)
            self.push = None
        if not self._requests:
            self.channel.close(Close.RESTART, "This server is restarting. Connect again.")

    def count_frame(self) -> None:
        """Raises Closing if the client sends too many frames."""
        now = trio.current_time()
        refilled = self._allowance + (now - self._allowance_at) * limits.websocket.FRAMES_PER_SECOND
        self._allowance_at = now
        self._allowance = min(refilled, limits.websocket.FRAMES_BURST) - 1
        if self._allowance < 0:
            raise Closing(Close.TOO_MANY, "Too many frames in a short time.")

    def close(self, code: int, reason: str) -> None:
        """Closes the connection now."""
        self.channel.close(code, reason)
        self._note_drained()

    def _note_drained(self) -> None:
        """Continues what waits for room in the channel."""
        if self._resume is not None and (not self.is_held_back or not self.channel.is_open):
            self._resume.set()
            self._resume = None
        if self.push is not None:
            self._pushes.wake(self.push)

    async def _wait_closed(self) -> None:
        if self._closed is None:
            self._closed = trio.Event()
        await self._closed.wait()

    # --- who the client is ---

    def accept(self, token: str, requester: Requester, position: int) -> None:
        """Notes who the client is. position: the position of the stream before the token was looked up."""
        self._token, self.requester = token, requester
        self._watch.move((tokens_key(requester.user_id),), position)

    async def authenticate(self, token: str) -> None:
        """Looks up who the client is. Raises Closing if the token is not valid, or that of another device."""
        before = self.requester
        self._token = token
        position = self._dispatch.hs.stream.position
        requester = await self._find_requester()
        if before is not None and (before.user_id, before.device_id) != (requester.user_id, requester.device_id):
            raise Closing(
                Close.UNAUTHENTICATED, "This is the token of another user or device. Open another connection."
            )
        self.accept(token, requester, position)

    async def _find_requester(self) -> Requester:
        hs, dispatch = self._dispatch.hs, self._dispatch
        request = self._make_request("GET", "/")
        try:
            requester = await find_requester(hs, dispatch.by_name[_SYNC], request, dispatch.find_appservice)
        except MatrixError as error:
            raise Closing(Close.UNAUTHENTICATED, f"{error.errcode}: {error.error}") from None
        assert requester is not None  # the operation needs one
        return requester

    def _note_tokens(self, _: int) -> None:
        """One of the user's tokens has ended, or the account has changed."""
        self._dispatch.hs.nursery.start_soon(self.check)

    async def check(self) -> None:
        """Closes the connection if its token is not valid any more. Otherwise the client is still there."""
        self._checked_at = trio.current_time()
        position = self._dispatch.hs.stream.position
        try:
            requester = await self._find_requester()
        except Closing as closing:
            self.close(closing.code, closing.reason)
            return
        except DatabaseError:  # the connection does not end because storage fails; it is checked again soon
            return
        if self.channel.is_open:
            self._watch.move((tokens_key(requester.user_id),), position)

    # --- what the client says ---

    async def _process(self, data: bytes) -> None:
        """Processes a message. Raises Closing."""
        try:
            message = parse(data)
        except Malformed as malformed:
            if self.requester is None:
                raise _unauthenticated() from None
            self.channel.post(refusal(malformed.id, malformed.error))
            return
        if message.op == "authenticate":
            await self.authenticate(message.token)
            if message.id is not None:
                self.channel.post(answer(message.id, 200, b"{}"))
            return
        if self.requester is None:
            raise _unauthenticated()
        if message.ack is not None:
            self._ack = message.ack
            if not self._is_acking:
                self._is_acking = True
                self._dispatch.hs.nursery.start_soon(self._acknowledge)
            if not message.op:
                return
        if message.op == "ping":
            self.channel.post(answer(message.id, 200, b"{}"))
        elif message.op == "sync":
            await self._start_sync(message)
        else:
            self._requests += 1
            self._dispatch.hs.nursery.start_soon(self._call, message)

    async def _start_sync(self, message: Message) -> None:
        assert self.requester is not None
        dispatch, requester = self._dispatch, self.requester
        position = dispatch.hs.stream.position
        try:
            dispatch.admit(dispatch.by_name[_SYNC], requester)
            query = SyncQuery(
                filter=filter_text(message), since=message.since, full_state=message.full_state,
                set_presence=message.set_presence, use_state_after=message.use_state_after,
            )  # fmt: skip
            request = await self._pushes.syncs.make_request(dispatch.hs, requester, query, position)
        except Exception as error:  # an unexpected one is logged, and must not end the connection
            self.channel.post(refusal(message.id, dispatch.explain(error, _SYNC)))
            return
        if self.push is not None:
            self._pushes.remove(self.push)
        self.push = self._pushes.add(self.channel, request)

    async def _acknowledge(self) -> None:
        """Processes acknowledgements, the latest only."""
        try:
            while self._ack is not None and self.requester is not None:
                token, self._ack = self._ack, None
                try:
                    await self._pushes.acknowledge(self.requester, self.push, token)
                except Exception as error:  # the same
                    self.channel.post(
                        b'{"ack":%b,%b'
                        % (msgspec.json.encode(token), refusal(None, self._dispatch.explain(error, "ack"))[1:])
                    )
        finally:
            self._is_acking = False

    async def _call(self, message: Message) -> None:
        """Answers a call of an operation."""
        try:
            self.channel.post(await self._answer(message))
        except Exception as error:  # an unexpected one is logged, and must not end the server
            self.channel.post(refusal(message.id, self._dispatch.explain(error, message.op)))
        finally:
            self._requests -= 1
            if self._is_ending:
                self.end()
            self._note_drained()

    async def _answer(self, message: Message) -> bytes:
        operation = self._dispatch.by_name.get(message.op)
        if operation is None or operation.plan.origin or operation.group not in self._groups:
            return refusal(message.id, unrecognized())
        try:
            segments = path_segments(message.path)
            if len(segments) != len(operation.plan.path):
                takes = ", ".join(name for name, _ in operation.plan.path) or "nothing"
                raise invalid_param(f"The path of {operation.name} takes {takes}.")
            query = query_string(message.query)
        except MatrixError as error:
            return refusal(message.id, error)
        body = b"" if isinstance(message.body, msgspec.UnsetType) else bytes(message.body)
        request = self._make_request(operation.method, operation.path, query, body)
        response = await self._dispatch.answer(request, self._groups, (operation, segments))
        if response.status == 401:
            await self.check()
        if response.stream is not None or _JSON not in response.headers.get("content-type", _JSON):
            if response.stream is not None and hasattr(response.stream, "aclose"):
                await response.stream.aclose()
            said = "This operation answers a file: call it over HTTP."
            return refusal(message.id, MatrixError(400, "M_UNRECOGNIZED", said))
        if len(response.body) <= limits.http.LARGE_ANSWER_BYTES:
            return answer(message.id, response.status, bytes(response.body) or b"{}")
        with self._dispatch.hold_answer(request, response) as held:  # the channel holds it from then on
            return answer(message.id, held.status, bytes(held.body))

    def _make_request(self, method: str, path: str, query: str = "", body: bytes = b"") -> Request:
        """Returns the request that the same client would send over HTTP."""
        headers = [(b"authorization", b"Bearer " + self._token.encode("utf-8", "surrogatepass"))]
        if self._agent is not None:
            headers.append((b"user-agent", self._agent.encode("latin-1")))
        if body:
            headers += [(b"content-type", _JSON.encode()), (b"content-length", b"%d" % len(body))]
        receive = _Body(body).receive if body else None
        return Request(method, path, query, headers, lambda: self._client_ip, receive, self._wait_closed)

    @property
    def checked_at(self) -> float:
        """When the token was last looked at."""
        return self._checked_at


def _unauthenticated() -> Closing:
    return Closing(Close.UNAUTHENTICATED, "Send an Authorization header, or an authenticate message first.")


class _Body:
    """The body of a request: all of it, then its end."""

    __slots__ = ("_data",)

    def __init__(self, data: bytes) -> None:
        self._data: bytes | None = data

    async def receive(self) -> bytes | None:
        data, self._data = self._data, None
        return data
