"""One request of HTTP/1.1 for an ASGI application: how the pages for people are answered on our own listeners."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Protocol
from urllib.parse import unquote

from homeserver.errors import MatrixError
from homeserver.http.answers import AnswerHeads, BodyWriter, encode_fields
from homeserver.http.asgi import Message, Scope
from homeserver.http.connection import Connection
from homeserver.http.http1 import Head

Address = tuple[str, int] | None


class BodySource(Protocol):
    """The body of a request."""

    is_done: bool

    async def next_chunk(self) -> bytes | None:
        """Returns the next chunk, None at the end. Raises MatrixError if there is none."""


class AsgiExchange:
    """`scope`, `receive` and `send` of one request. is_last: the connection ends after the answer."""

    def __init__(
        self, connection: Connection, heads: AnswerHeads, head: Head, body: BodySource | None,
        wait_gone: Callable[[], Awaitable[None]], *, is_last: bool,
    ) -> None:  # fmt: skip
        """wait_gone: returns when the client has closed the connection."""
        self.is_last = is_last
        self.is_finished = False
        self._connection = connection
        self._heads = heads
        self._head = head
        self._body = body
        self._has_ended = False  # the application has received the end of the body
        self._wait_gone = wait_gone
        self._start: Message = {}
        self._writer: BodyWriter | None = None

    def scope(self, client: Address, server: Address, *, is_tls: bool) -> Scope:
        """Returns what the application gets to know of the request."""
        head = self._head
        return {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.3"},
            "http_version": "1.1" if head.is_modern else "1.0",
            "method": head.method,
            "scheme": "https" if is_tls else "http",
            "path": unquote(head.path),
            "raw_path": head.path.encode("ascii"),
            "query_string": head.query.encode("ascii"),
            "root_path": "",
            "headers": head.headers,
            "client": client,
            "server": server,
            "state": {},
            "extensions": {},
        }

    async def receive(self) -> Message:
        """Returns a part of the body or, after its end, that the client has gone."""
        if self._has_ended:
            await self._wait_gone()
            return {"type": "http.disconnect"}
        try:
            chunk = None if self._body is None else await self._body.next_chunk()
        except MatrixError:
            self._has_ended = True
            return {"type": "http.disconnect"}
        self._has_ended = chunk is None
        return {"type": "http.request", "body": chunk or b"", "more_body": not self._has_ended}

    async def send(self, message: Message) -> None:
        """Sends a part of the answer."""
        if message["type"] == "http.response.start":
            self._start = message
        elif message["type"] == "http.response.body" and not self.is_finished:
            body: bytes = message.get("body", b"")
            is_end = not message.get("more_body", False)
            if self._writer is None:
                self._writer = self._begin(len(body) if is_end else None)
            await self._writer.write(body)
            if is_end:
                self.is_finished = True
                await self._writer.finish()

    def _begin(self, length: int | None) -> BodyWriter:
        """Returns what sends the answer. length: of its body, if the application has not announced it; None if unknown.

        The connection ends if a part of the request has not been read.
        """
        self.is_last = self.is_last or (self._body is not None and not self._body.is_done)
        status: int = self._start["status"]
        fields: list[tuple[bytes, bytes]] = [(bytes(name), bytes(value)) for name, value in self._start["headers"]]
        announced = [value for name, value in fields if name.lower() == b"content-length"]
        has_none = status in (204, 304)
        if announced:
            length = int(announced[0])
        elif length is not None and not has_none:
            fields.append((b"content-length", b"%d" % length))
        head = self._heads.complete(encode_fields(status, fields), None, ends=self.is_last)
        return BodyWriter(
            self._connection, head, 0 if has_none else length,
            is_modern=self._head.is_modern, sends_body=self._head.method != "HEAD" and not has_none,
        )  # fmt: skip
