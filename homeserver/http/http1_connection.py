"""HTTP/1.1 on a connection: one task reads a request, lets it be answered, sends the answer, and reads the next one.

Theory of operation. Everything happens in the connection's own task: there is no task, queue or timer per request.
Whoever needs bytes from the client receives them, one at a time:
- `_read_head`, between requests;
- `RequestBody.next_chunk`, called by an operation that reads its body;
- `wait_gone`, awaited by an operation that waits for something else, to learn that the client has gone.
What has arrived but is not needed yet stays in `_buffer`. A client that pipelines requests is read on only while one of
its requests waits, and only up to a limit. Beyond that, and while a request is being answered, TCP slows it down.
Pipelined requests are answered one after the other, and other tasks run in between.

Whether the connection can be used again is known before the answer is sent, so the answer says so. It cannot if the
client says so, if the server is stopping, or if a part of the body has not been read: a small one is read for that
purpose. Before the connection is closed, what the client still sends is dropped: closing a connection with unread bytes
resets it, and the client may lose its answer.

Connections end by the sweep (`connection.py`) when the client is too slow, and when a new connection needs the place:
then reading and sending raise ClosedResourceError, and the operation that waits learns that its client is gone.
"""

from __future__ import annotations

import logging
from functools import partial
from math import inf

import trio

from homeserver import limits
from homeserver.api.routes import Request, Response, UpgradeRequest
from homeserver.errors import MatrixError
from homeserver.http.answers import CONTINUE, AnswerHeads, BodyWriter, encode_fields
from homeserver.http.asgi import WEBSOCKET_PATH, App, Continue, Upgrade, is_page
from homeserver.http.asgi_exchange import Address, AsgiExchange
from homeserver.http.connection import Connection, is_gone
from homeserver.http.http1 import Chunks, Head, Refused, check_head, parse_head
from homeserver.http.sockets import RECEIVE_BYTES

_log = logging.getLogger("homeserver.http.listener")


class Http1Connection:
    """Serves one connection until either side closes it. client, server: its addresses; None for a unix socket."""

    __slots__ = ("_app", "_buffer", "_heads", "_is_gone", "client", "connection", "server")

    def __init__(self, connection: Connection, app: App, heads: AnswerHeads, client: Address, server: Address) -> None:
        self.connection = connection
        self.client = client
        self.server = server
        self._app = app
        self._heads = heads
        self._buffer = b""  # received, but not processed yet
        self._is_gone = False

    async def run(self) -> Continue | None:
        """Serves requests. Returns what goes on with the connection, if it has agreed to another protocol.

        Whoever calls that has no need to keep this object, nor the request. Raises trio's errors of streams if the
        connection breaks.
        """
        try:
            while True:
                head = await self._read_head()
                if head is None or self._is_gone:
                    return None  # the client has closed the connection, maybe in the middle of a request
                if head.path == WEBSOCKET_PATH and self._app.upgrade is not None and head.asks_for_websocket:
                    proceed = await self._agree(head, self._app.upgrade)
                    if proceed is not None:
                        return proceed
                    break
                if not await self._answer(head):
                    break
                if self._buffer:
                    await trio.lowlevel.checkpoint()  # others come first, however much the client pipelines
        except Refused as refused:
            await self.connection.send(self._heads.encode(refused.status, {}, 0, ends=True))
        if not self._is_gone:
            await self.connection.end()
            await self.connection.linger()
        return None

    async def receive(self) -> bytes:
        """Returns bytes from the client, b"" at the end: those in the buffer, or else what arrives next."""
        if self._buffer:
            data, self._buffer = self._buffer, b""
            return data
        return bytes(await self.connection.stream.receive_some(RECEIVE_BYTES))

    def put_back(self, data: bytes) -> None:
        """Returns bytes of the next request to the buffer."""
        self._buffer = data + self._buffer

    @property
    def has_received(self) -> bool:
        """Whether there are bytes that have not been processed yet."""
        return bool(self._buffer)

    async def wait_gone(self) -> None:
        """Returns when the client has closed its connection."""
        while not self._is_gone:
            if len(self._buffer) > limits.http.PIPELINED_BYTES_MAX:
                await trio.sleep_forever()
            try:
                data = await self.connection.stream.receive_some(RECEIVE_BYTES)
            except (trio.BrokenResourceError, trio.ClosedResourceError):
                data = b""
            self._buffer += data
            self._is_gone = not data

    async def _read_head(self) -> Head | None:
        """Returns the head of the next request, None if the connection has ended. Raises Refused."""
        connection, buffer, searched, has_skipped = self.connection, self._buffer, 0, False
        while True:
            # Some clients send an empty line after a body, which is skipped. Spec: RFC 9112, section 2.2
            if buffer.startswith(b"\r\n") and not has_skipped:
                buffer, has_skipped = buffer[2:], True
            end = buffer.find(b"\r\n\r\n", searched)
            if end >= 0:
                break
            if buffer:
                check_head(buffer)
                if connection.asking_since is inf:
                    connection.asking_since = trio.current_time()
            searched = max(0, len(buffer) - 3)
            data = await connection.stream.receive_some(RECEIVE_BYTES)
            if not data:
                return None
            buffer += data
        end += 4
        self._buffer = buffer[end:]
        return parse_head(buffer[:end])

    async def _answer(self, head: Head) -> bool:
        """Answers a request. Returns whether the connection can be used for another one."""
        self.connection.become_busy()
        body = RequestBody(self, head) if head.length else None
        if is_page(head.path):
            return await self._answer_page(head, body) and self._become_idle()
        dispatch = self._app.dispatch
        request = Request(
            head.method, head.path, head.query, head.headers, partial(self._client_ip, head),
            None if body is None else body.next_chunk, self.wait_gone,
        )  # fmt: skip
        response = await dispatch.answer(request, self._app.groups)
        if self._is_gone:
            return False
        is_last = head.is_last or dispatch.is_draining
        if body is not None and not body.is_done:
            is_last = not await body.skip_small() or is_last
        if response.body is None or len(response.body) <= limits.http.LARGE_ANSWER_BYTES:
            is_sent = await self._send(head, response, body, is_last=is_last)
        else:
            with dispatch.hold_answer(request, response) as held:
                is_sent = await self._send(head, held, body, is_last=is_last)
        return is_sent and not is_last and self._become_idle()

    def _become_idle(self) -> bool:
        """Notes that the connection waits for a request. Returns False if it must end: the server has begun to stop."""
        if self._app.dispatch.is_draining:
            return False
        self.connection.become_idle()
        return True

    def _client_ip(self, head: Head) -> str:
        address = self.client[0] if self.client is not None else ""
        if b"x-forwarded-for" not in head.fields:
            return address
        forwarded = [value for name, value in head.headers if name == b"x-forwarded-for"]
        return self._app.proxies.find_client(address, forwarded)

    async def _send(self, head: Head, response: Response, body: RequestBody | None, *, is_last: bool) -> bool:
        """Sends an answer. Returns False if the connection must end."""
        content = response.body
        length = None if response.stream is not None else len(content)
        try:
            data = self._heads.encode(response.status, response.headers, length, ends=is_last)
        except ValueError as error:
            _log.error("a header of an answer cannot be sent", exc_info=error, extra={"path": head.path})
            await self.connection.send(self._heads.encode(500, {}, 0, ends=True))
            return False
        if response.stream is not None:
            return await self._send_stream(head, response, data)
        if head.method == "HEAD" or response.status in (204, 304):
            content = b""
        if body is not None and not (body.is_done or body.is_broken or body.is_held_back):
            async with trio.open_nursery() as nursery:  # the client may receive its answer only after it has sent all
                nursery.start_soon(body.drain)
                await self.connection.send(data + content)
        elif len(content) <= limits.http.SEND_BYTES:
            await self.connection.send(data + content)
        else:  # copying a large answer would cost more than a packet
            await self.connection.send(data)
            await self.connection.send(content)
        return True

    async def _send_stream(self, head: Head, response: Response, fields: bytes) -> bool:
        stream = response.stream
        assert stream is not None
        length = response.headers.get("content-length")
        writer = BodyWriter(
            self.connection, fields, None if length is None else int(length),
            is_modern=head.is_modern, sends_body=head.method != "HEAD",
        )  # fmt: skip
        try:
            if head.method != "HEAD":
                async for part in stream:
                    await writer.write(part)
                    await trio.lowlevel.checkpoint()
            await writer.finish()
        except Exception as error:  # whatever it is, it must only affect this connection
            self._note_failure(error, head)
            return False
        finally:
            close = getattr(stream, "aclose", None)
            if close is not None:
                with trio.CancelScope(shield=True):
                    await close()
        return True

    async def _answer_page(self, head: Head, body: RequestBody | None) -> bool:
        """Lets the application answer what is not an operation. Returns whether the connection can be used again."""
        is_last = head.is_last or self._app.dispatch.is_draining
        exchange = AsgiExchange(self.connection, self._heads, head, body, self.wait_gone, is_last=is_last)
        scope = exchange.scope(self.client, self.server, is_tls=isinstance(self.connection.stream, trio.SSLStream))
        try:
            await self._app(scope, exchange.receive, exchange.send)
            return exchange.is_finished and not exchange.is_last and not self._is_gone
        except Exception as error:  # whatever it is, it must only affect this connection
            self._note_failure(error, head)
            return False

    def _note_failure(self, error: Exception, head: Head) -> None:
        """Logs that an answer broke off in the middle. Errors before its beginning have been answered and logged."""
        if not is_gone(error):
            _log.error("answer broke off", exc_info=error, extra={"path": head.path})
        self._is_gone = True  # so that the client does not take what it has got for the whole answer

    async def _agree(self, head: Head, upgrade: Upgrade) -> Continue | None:
        """Returns what goes on as a WebSocket; None if the request was refused."""
        self.connection.become_busy()
        request = UpgradeRequest(
            head.method, head.path, head.query, head.headers, partial(self._client_ip, head), None, self.wait_gone
        )
        request.is_raw = True
        response = await self._app.dispatch.answer(request, self._app.groups)
        if response.status != 101:
            await self._send(head, response, None, is_last=True)
            return None
        fields = [(name.encode(), value.encode("latin-1")) for name, value in response.headers.items()]
        await self.connection.send(self._heads.complete(encode_fields(101, fields), None, ends=False) + b"\r\n")
        received, self._buffer = self._buffer, b""
        return upgrade(request, self.connection, received, self._app.groups)


class RequestBody:
    """The body of one request: chunks as they arrive. A body that stands still is given up."""

    __slots__ = ("_chunks", "_has_begun", "_head", "_http", "_left", "is_broken", "is_done")

    def __init__(self, http: Http1Connection, head: Head) -> None:
        self._http = http
        self._head = head
        self._left = head.length
        self._chunks = Chunks() if head.length < 0 else None
        self._has_begun = False
        self.is_done = False
        self.is_broken = False  # nothing more will be read

    @property
    def is_held_back(self) -> bool:
        """Whether the client waits for 100 Continue before it sends the body."""
        return self._head.expects_continue and not self._has_begun and not self._http.has_received

    async def next_chunk(self) -> bytes | None:
        """Returns the next chunk, which may be empty; None at the end.

        Raises MatrixError if the body is malformed, stands still, or ends early because the client has gone.
        """
        if self.is_done:
            return None
        if self.is_broken:
            raise MatrixError(400, "M_UNKNOWN", "The body of the request cannot be read.")
        asks = self.is_held_back
        self._has_begun = True
        self.is_broken = True  # unless it turns out otherwise
        data = b""
        with trio.move_on_after(limits.http.REQUEST_CHUNK_SECONDS_MAX) as waiting:
            try:
                if asks:
                    await self._http.connection.send(CONTINUE)
                data = await self._http.receive()
            except (trio.BrokenResourceError, trio.ClosedResourceError):
                pass  # cut off by the client, or by us, for instance because the server stops
        if waiting.cancelled_caught:
            raise MatrixError(408, "M_UNKNOWN", "The body of the request arrived too slowly.")
        if not data:
            raise MatrixError(400, "M_UNKNOWN", "The request ended before its body did.")
        if self._chunks is None:
            self._left -= len(data)
            if self._left < 0:
                self._http.put_back(data[self._left :])
                data = data[: self._left]
            self.is_done = self._left <= 0
        else:
            try:
                data = self._chunks.feed(data)
            except Refused as error:
                raise MatrixError(400, "M_UNKNOWN", "The body of the request is not well-formed HTTP.") from error
            self.is_done = self._chunks.is_done
        self.is_broken = False
        return data

    async def skip_small(self) -> bool:
        """Reads the rest of an unused body. Returns False if it is too long or too slow for that, or held back."""
        if self.is_held_back or not 0 <= self._left <= limits.http.UNREAD_BODY_BYTES:
            return False
        with trio.move_on_after(limits.http.UNREAD_BODY_SECONDS_MAX) as waiting:
            try:
                while await self.next_chunk() is not None:
                    pass
            except (MatrixError, trio.BrokenResourceError, trio.ClosedResourceError):
                return False
        if waiting.cancelled_caught:
            self.is_broken = False  # nothing was lost: `drain` may read on
        return self.is_done

    async def drain(self) -> None:
        """Drops the rest of the body, up to a limit."""
        seen = 0
        with trio.move_on_after(limits.http.REFUSED_BODY_SECONDS_MAX):
            try:
                while seen < limits.http.REFUSED_BODY_BYTES_MAX and (data := await self.next_chunk()) is not None:
                    seen += len(data)
            except (MatrixError, trio.BrokenResourceError, trio.ClosedResourceError):
                pass  # there is no more
