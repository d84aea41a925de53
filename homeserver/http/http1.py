"""HTTP/1.1, read strictly: Hypercorn's protocol on h11, without the ambiguities that both of them accept.

Theory of operation. A reverse proxy and this server must agree where each request begins and ends, and what it asks
for. Wherever they read a message differently, somebody can smuggle a request past the proxy's rules. So a message that
RFC 9112 allows to be read in more than one way is refused, and its connection is closed:
- `check_head` checks the raw bytes, since h11 accepts bare line feeds, folded lines, control characters and repeated
  lengths, and does not report them.
- `check_request` checks the request line and the Host header. A target in absolute form is converted to origin form.
- A connection ends after a request with a chunked body, because h11 reads chunk framing leniently too. Bytes after such
  a body are never taken for a request.
- The protocol never changes: `Upgrade: h2c` is ignored, and the preface of HTTP/2 is an unknown version. HTTP/2 is only
  spoken if TLS has agreed on it (ALPN), so a proxy knows about it.
A client that asks whether to continue (`Expect: 100-continue`) gets the go-ahead when the application starts reading
the body, and never if the request is refused before that.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import h11
from hypercorn.events import Closed, Updated
from hypercorn.protocol.events import Body, EndBody, Response
from hypercorn.protocol.h11 import STREAM_ID, H11Protocol

from homeserver import limits

_CONTROLS = bytes({*range(32), 127} - set(b"\t\r\n"))
_HOST = re.compile(rb"[A-Za-z0-9\-._~%!$&'()*+;=:\[\]]*")
_ABSOLUTE = re.compile(rb"[Hh][Tt][Tt][Pp][Ss]?://([^/?#@]+)(.*)")


class Refused(Exception):
    """The request is not safe to process; `status` is the status of the answer."""

    def __init__(self, status: int = 400) -> None:
        super().__init__(status)
        self.status = status


def check_head(data: bytes) -> None:
    """Checks the received part of a request's head, which may be followed by more. Raises Refused.

    Spec: RFC 9112, sections 2.2 (line ends), 5.2 (folding), 6.1 and 6.3 (lengths); RFC 9110, section 5.5 (controls)
    """
    end = data.find(b"\r\n\r\n")
    head = data if end < 0 else data[: end + 2]
    lines = head.count(b"\r\n")
    # The last byte may be one half of a line end.
    if head.count(b"\n") != lines or head.count(b"\r") - head.endswith(b"\r") > lines:
        raise Refused
    if len(head.translate(None, _CONTROLS)) != len(head) or b"\r\n " in head or b"\r\n\t" in head:
        raise Refused
    if lines > limits.http.HEADERS_MAX:
        raise Refused(431)
    if end >= 0:
        _check_lengths(head.lower())


def _check_lengths(head: bytes) -> None:
    """Checks the Content-Length headers of `head`, which is complete and in lower case."""
    at = head.find(b"\r\ncontent-length:")
    if at < 0:
        return
    value = head[at + 17 : head.index(b"\r\n", at + 17)].strip(b" \t")
    repeated = head.find(b"\r\ncontent-length:", at + 17) >= 0
    if not value.isdigit() or repeated or b"\r\ntransfer-encoding:" in head:
        raise Refused


def check_request(request: h11.Request, fields: Mapping[bytes, bytes]) -> h11.Request:
    """Returns the request with the path as its target. Raises Refused. fields: its headers, by lower-case name.

    Spec: RFC 9112, sections 2.3 (version), 3.2 (target, Host), 6.1 (chunks are of HTTP/1.1)
    """
    target = request.target
    if request.method == b"CONNECT":
        raise Refused(405)
    if not request.http_version.startswith(b"1."):
        raise Refused(505)
    host = fields.get(b"host")  # h11 refuses a second one
    if host is not None and _HOST.fullmatch(host) is None:
        raise Refused
    if b"transfer-encoding" in fields and request.http_version == b"1.0":
        raise Refused
    if target.startswith(b"/") and b"#" not in target:
        return request
    if target == b"*" and request.method == b"OPTIONS":
        return request
    absolute = _ABSOLUTE.fullmatch(target)
    if absolute is None or b"#" in target or _HOST.fullmatch(absolute[1]) is None:
        raise Refused
    authority, path = absolute.groups()
    return h11.Request(
        method=request.method,
        target=path if path.startswith(b"/") else b"/" + path,
        headers=[*((name, value) for name, value in request.headers if name != b"host"), (b"host", authority)],
        http_version=request.http_version,
    )


class Http1(H11Protocol):  # type: ignore[misc]  # its types do not foresee it
    """One connection. Used by `homeserver.http.connection` in place of Hypercorn's own protocol."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self._is_chunked = False
        self._chunks = 0
        self._chunk_bytes = 0

    async def stream_send(self, event: Any) -> None:
        """Sends an event of the application's answer."""
        if self._is_chunked and isinstance(event, Response):
            event = replace(event, headers=[*event.headers, (b"connection", b"close")])
        await super().stream_send(event)

    async def _handle_events(self) -> None:
        try:
            await self._read_events()
        except (Refused, h11.RemoteProtocolError) as error:
            if self.connection.our_state in {h11.IDLE, h11.SEND_RESPONSE}:
                status = error.status if isinstance(error, Refused) else error.error_status_hint
                await self._send_error_response(status)
            await self.send(Closed())

    async def _read_events(self) -> None:
        while True:
            if self.connection.their_state is h11.IDLE:
                check_head(self.connection.trailing_data[0])
            event = self.connection.next_event()
            kind = type(event)
            if kind is h11.Request:
                await self.send(Updated(idle=False))
                await self._begin(event)
            elif event is h11.PAUSED:
                await self.can_read.clear()
                await self.can_read.wait()
            elif event is h11.NEED_DATA or kind is h11.ConnectionClosed or self.stream is None:
                return
            elif kind is h11.Data:
                self._check_chunk(len(event.data))
                await self.stream.handle(Body(stream_id=STREAM_ID, data=event.data))
            elif kind is h11.EndOfMessage:
                await self.stream.handle(EndBody(stream_id=STREAM_ID))
            else:  # of a WebSocket
                await self.stream.handle(event)

    async def _begin(self, request: h11.Request) -> None:
        fields = {name.lower(): value for name, value in request.headers.raw_items()}
        request = check_request(request, fields)
        self._is_chunked = b"transfer-encoding" in fields
        self._chunks = self._chunk_bytes = 0
        if self.connection.they_are_waiting_for_100_continue:
            self.task_group.before_body = self._send_continue
        await self._create_stream(request)

    async def _send_continue(self) -> None:
        if self.connection.they_are_waiting_for_100_continue:
            await self._send_h11_event(h11.InformationalResponse(status_code=100, headers=[]))

    def _check_chunk(self, length: int) -> None:
        """Counts a chunk. Each costs as much as kilobytes do, so bodies in tiny chunks raise Refused."""
        if self._is_chunked:
            self._chunks += 1
            self._chunk_bytes += length
            if self._chunks > limits.http.SMALL_CHUNKS_MAX + self._chunk_bytes // limits.http.CHUNK_BYTES_USUAL:
                raise Refused
