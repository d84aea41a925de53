"""The ASGI application: adapts `homeserver.http.dispatch` to any ASGI server, without knowing any of them.

Operations answer the paths of the protocol; the pages for people answer everything else.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Iterable, MutableMapping
from typing import Any
from urllib.parse import quote

import msgspec
import trio

from homeserver import limits
from homeserver.api.routes import Request, Response, UpgradeRequest
from homeserver.config import SERVE_GROUPS
from homeserver.errors import MatrixError, unrecognized
from homeserver.http.addresses import Proxies
from homeserver.http.connection import Connection
from homeserver.http.dispatch import Dispatch, error_response

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
AsgiApp = Callable[[Scope, Receive, Send], Awaitable[None]]

# What serves a connection that has agreed to another protocol, until its end.
Continue = Callable[[], Awaitable[None]]
Upgrade = Callable[[UpgradeRequest, Connection, bytes, Collection[str]], Continue]
"""Continues a connection as a WebSocket: the request, the bytes received after it, and the groups of operations."""

OpenSocket = Callable[[UpgradeRequest, Receive, Send, Collection[str]], Awaitable[None]]
"""Serves a WebSocket that an ASGI server has accepted."""

API_PREFIXES = ("/_matrix", "/_homeserver", "/_synapse", "/.well-known")
WEBSOCKET_PATH = "/_homeserver/client/v1/ws"
# The pages below these prefixes: the page to talk in and its files, and those of the account.
PAGES = ("/_homeserver/chat", "/_homeserver/account")
_BELOW_PAGES = tuple(f"{page}/" for page in PAGES)


class App(msgspec.Struct):
    """An ASGI application. `groups`: the groups of operations that it serves. The optional parts are passed in.

    proxies: the proxies whose X-Forwarded-For is trusted. websocket: serves WebSockets of ASGI servers. upgrade: the
    same for our own listeners. Both after the operation at WEBSOCKET_PATH has agreed. pages: creates the ASGI
    application for people at its first request.
    """

    dispatch: Dispatch
    groups: Collection[str] = frozenset(SERVE_GROUPS)
    proxies: Proxies = msgspec.field(default_factory=Proxies)
    websocket: OpenSocket | None = None
    upgrade: Upgrade | None = None
    pages: Callable[[], AsgiApp] | None = None
    _pages: AsgiApp | None = None

    def serving(self, groups: Collection[str], proxies: Proxies | None = None) -> App:
        """Returns the same application for a listener that serves only these groups, perhaps behind other proxies."""
        return App(self.dispatch, frozenset(groups), proxies or self.proxies, self.websocket, self.upgrade, self.pages)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            path = raw_path(scope)
            if is_page(path):
                await self._show_page(scope, receive, send)
            else:
                await self._answer(scope, path, receive, send)
        elif scope["type"] == "websocket":
            await self._open_socket(scope, receive, send)
        elif scope["type"] == "lifespan":
            await lifespan(receive, send)

    async def _open_socket(self, scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        path = raw_path(scope)
        request = UpgradeRequest(
            "GET", path, scope["query_string"].decode("latin-1"), scope["headers"],
            lambda: client_address(scope, self.proxies),
        )  # fmt: skip
        request.is_raw = False
        if self.websocket is None or path != WEBSOCKET_PATH:
            response = error_response(unrecognized())
        else:
            response = await self.dispatch.answer(request, self.groups)
        if response.status == 101 and self.websocket is not None:
            await send({"type": "websocket.accept"})
            await self.websocket(request, receive, send, self.groups)
        elif "websocket.http.response" in scope.get("extensions", {}):
            headers = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in response.headers.items()]
            await send({"type": "websocket.http.response.start", "status": response.status, "headers": headers})
            await send({"type": "websocket.http.response.body", "body": response.body})
        else:  # the ASGI server answers 403
            await send({"type": "websocket.close", "code": 1008})

    async def _answer(self, scope: Scope, path: str, receive: Receive, send: Send) -> None:
        body = _Body(receive)
        request = Request(
            scope["method"],
            path,
            scope["query_string"].decode("latin-1"),
            scope["headers"],
            lambda: client_address(scope, self.proxies),
            body.next_chunk,
            body.wait_gone,
        )
        if has_two_lengths(scope["headers"]):
            response = _closing(
                error_response(MatrixError(400, "M_UNKNOWN", "The length of the request is ambiguous."))
            )
        else:
            response = await self.dispatch.answer(request, self.groups)
        if len(response.body or b"") <= limits.http.LARGE_ANSWER_BYTES:
            await self._send(scope, request, body, response, send)
            return
        with self.dispatch.hold_answer(request, response) as held:
            await self._send(scope, request, body, held, send)

    async def _send(self, scope: Scope, request: Request, body: _Body, response: Response, send: Send) -> None:
        head = scope["method"] == "HEAD"
        if not body.expected(scope) or await body.skip_small(request):
            await send_response(response, send, head=head)
            return
        if scope.get("http_version", "1.1").startswith("1"):
            response = _closing(response)
        if response.stream is not None or body.is_held_back(request):
            await send_response(response, send, head=head)
        else:
            await body.answer_and_drain(response, send)

    async def _show_page(self, scope: Scope, receive: Receive, send: Send) -> None:
        if self.pages is None or "client" not in self.groups:
            await send_response(error_response(unrecognized()), send)
            return
        if self._pages is None:
            # Reading and compressing their files takes some 50 ms. It is done for the first visitor.
            self._pages = await self.dispatch.hs.workers.run(self.pages)
        client = (client_address(scope, self.proxies), 0)  # the person's own address, not that of a proxy
        await self._pages({**scope, "client": client}, receive, send)


class _Body:
    """The messages of one request: the chunks of its body, and the news that its client is gone."""

    __slots__ = ("_begun", "_done", "_receive")

    def __init__(self, receive: Receive) -> None:
        self._receive = receive
        self._begun = False
        self._done = False

    async def next_chunk(self) -> bytes | None:
        """Returns the next chunk, which may be empty; None at the end. Raises MatrixError if the client is gone."""
        if self._done:
            return None
        self._begun = True
        message = await self._receive()
        if message["type"] == "http.disconnect":
            self._done = True  # nothing more will arrive, so do not wait for it
            raise MatrixError(408, "M_UNKNOWN", "The request ended before its body did, or was too slow.")
        self._done = not message.get("more_body", False)
        return message.get("body", b"")

    def expected(self, scope: Scope) -> bool:
        """Returns whether more of the body is expected."""
        if self._done:
            return False
        return any(
            name == b"transfer-encoding" or (name == b"content-length" and value != b"0")
            for name, value in scope["headers"]
        )

    def is_held_back(self, request: Request) -> bool:
        """Returns whether the client waits for 100 Continue before it sends the body (RFC 9110, section 10.1.1)."""
        return not self._begun and "expect" in request.headers

    async def skip_small(self, request: Request) -> bool:
        """Reads the rest of an unused body. Returns False if it is too long for that, or held back."""
        length = request.headers.get("content-length", "")
        if not length.isdigit() or int(length[:20]) > limits.http.UNREAD_BODY_BYTES:
            return False
        if self.is_held_back(request):
            return False
        try:
            while await self.next_chunk() is not None:
                pass
        except MatrixError:
            return False
        return True

    async def answer_and_drain(self, response: Response, send: Send) -> None:
        """Answers while the client is still sending, and reads on until it has received the answer.

        If a server closes a connection with unread bytes, the client loses the answer.
        """
        body = response.body if isinstance(response.body, bytes) else b""
        headers = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in response.headers.items()]
        headers.append((b"content-length", b"%d" % len(body)))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._drain)
            await send({"type": "http.response.start", "status": response.status, "headers": headers})
            await send({"type": "http.response.body", "body": body, "more_body": True})
        await send({"type": "http.response.body", "body": b""})

    async def _drain(self) -> None:
        seen = 0
        with trio.move_on_after(limits.http.REFUSED_BODY_SECONDS_MAX):
            while not self._done and seen < limits.http.REFUSED_BODY_BYTES_MAX:
                message = await self._receive()
                self._done = message["type"] == "http.disconnect" or not message.get("more_body", False)
                seen += len(message.get("body", b""))

    async def wait_gone(self) -> None:
        """Returns when the client has closed its connection."""
        while (await self._receive())["type"] != "http.disconnect":
            self._done = True  # a waiting operation does not read its body


def is_page(path: str) -> bool:
    """Returns whether a path belongs to the pages for people, not to an operation."""
    return not path.startswith(API_PREFIXES) or path.startswith(_BELOW_PAGES) or path in PAGES


def raw_path(scope: Scope) -> str:
    """Returns the path as sent, percent-encoded, without the prefix that the application is mounted under."""
    raw = scope.get("raw_path")
    path = raw.decode("latin-1") if raw is not None else quote(scope["path"])
    root = scope.get("root_path", "")
    return path.removeprefix(root) if root else path


def has_two_lengths(headers: Iterable[tuple[bytes, bytes]]) -> bool:
    """Returns whether a request has both a Content-Length and a Transfer-Encoding.

    A proxy that uses the other one would take the rest of the body for a separate request, perhaps of someone else.
    Spec: RFC 9112, section 6.1: such a request may be refused, and its connection must be closed.
    """
    names = [name for name, _ in headers if name in (b"content-length", b"transfer-encoding")]
    return len(names) > 1 and b"transfer-encoding" in names


def client_address(scope: Scope, proxies: Proxies) -> str:
    """Returns the address that the request came from; "" for a unix socket without a proxy."""
    client = scope.get("client")
    forwarded = [value for name, value in scope["headers"] if name == b"x-forwarded-for"]
    return proxies.find_client(client[0] if client else "", forwarded)


def _closing(response: Response) -> Response:
    """Returns the same answer for HTTP/1.1, marked so that the connection ends after it."""
    return Response(response.status, response.body, {**response.headers, "connection": "close"}, response.stream)


async def send_response(response: Response, send: Send, *, head: bool = False) -> None:
    """Sends an answer of `Dispatch.answer`. `head` leaves out the body."""
    headers = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in response.headers.items()]
    if response.stream is not None:
        await send({"type": "http.response.start", "status": response.status, "headers": headers})
        await _send_stream(response.stream, send, head=head)
        return
    body = response.body
    if response.status not in (204, 304):
        headers.append((b"content-length", b"%d" % len(body)))
    await send({"type": "http.response.start", "status": response.status, "headers": headers})
    await send({"type": "http.response.body", "body": b"" if head else body})


async def _send_stream(stream: AsyncIterator[bytes], send: Send, *, head: bool) -> None:
    try:
        if not head:
            async for chunk in stream:
                await send({"type": "http.response.body", "body": chunk, "more_body": True})
        await send({"type": "http.response.body", "body": b""})
    finally:
        close = getattr(stream, "aclose", None)
        if close is not None:
            with trio.CancelScope(shield=True):
                await close()


async def lifespan(receive: Receive, send: Send) -> None:
    """Acknowledges all lifespan messages. `async with Homeserver(…)` does the opening and closing."""
    while True:
        message = await receive()
        await send({"type": f"{message['type']}.complete"})
        if message["type"] == "lifespan.shutdown":
            return
