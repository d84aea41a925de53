"""The wire format of answers in HTTP/1.1: heads, and bodies of known and unknown length. Spec: RFC 9112, 6 and 7"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from email.utils import formatdate
from http import HTTPStatus

from homeserver.http.connection import Connection

# The answers of operations have a dozen different sets of headers. Those of media have one for each file.
_BLOCKS_REMEMBERED_MAX = 200
_PHRASES = {status.value: status.phrase for status in HTTPStatus}

CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"


class AnswerHeads:
    """Encodes the heads of answers. It remembers the parts that do not change from answer to answer."""

    __slots__ = ("_blocks", "_date", "_date_s", "_now_ms")

    def __init__(self, now_ms: Callable[[], int]) -> None:
        """now_ms: the time of day."""
        self._now_ms = now_ms
        self._blocks: dict[tuple[object, ...], bytes] = {}
        self._date_s = -1
        self._date = b""

    def encode(self, status: int, headers: Mapping[str, str], length: int | None, *, ends: bool) -> bytes:
        """Returns the head of an answer, see `complete`. Raises ValueError for headers that HTTP cannot express."""
        block = self.block(status, headers)
        if status in (204, 304) and length is not None:  # these never have a body. Spec: RFC 9110, section 8.6
            return self.complete(block, None, ends=ends) + b"\r\n"
        return self.complete(block, length, ends=ends)

    def block(self, status: int, headers: Mapping[str, str]) -> bytes:
        """Returns the status line and the header fields. Raises ValueError for headers that HTTP cannot express."""
        key = (status, *headers.items())
        block = self._blocks.get(key)
        if block is None:
            block = encode_fields(status, [(name.encode(), value.encode("latin-1")) for name, value in headers.items()])
            if len(self._blocks) >= _BLOCKS_REMEMBERED_MAX:
                self._blocks.clear()
            self._blocks[key] = block
        return block

    def complete(self, block: bytes, length: int | None, *, ends: bool) -> bytes:
        """Returns a head that begins with `block`, without the empty line if `length` is None.

        length: of the body. ends: the connection ends after the answer.
        """
        seconds = self._now_ms() // 1000
        if seconds != self._date_s:
            self._date_s, self._date = seconds, formatdate(seconds, usegmt=True).encode()
        close = b"connection: close\r\n" if ends else b""
        if length is None:
            return b"%bdate: %b\r\n%b" % (block, self._date, close)
        return b"%bdate: %b\r\ncontent-length: %d\r\n%b\r\n" % (block, self._date, length, close)


def encode_fields(status: int, fields: Iterable[tuple[bytes, bytes]]) -> bytes:
    """Returns the status line and the header fields. Raises ValueError if a field contains a control character."""
    lines = [b"HTTP/1.1 %d %b" % (status, _PHRASES.get(status, "").encode())]
    lines += [name + b": " + value for name, value in fields]
    if any(b"\r" in line or b"\n" in line or b"\0" in line for line in lines):
        raise ValueError("a header of an answer contains a line end")
    return b"\r\n".join(lines) + b"\r\n"


class BodyWriter:
    """Sends an answer whose body becomes available in parts. For HTTP/1.0 the end of the connection ends the body."""

    __slots__ = ("_connection", "_held", "_is_chunked", "_left", "_sends_body")

    def __init__(
        self, connection: Connection, head: bytes, length: int | None, *, is_modern: bool, sends_body: bool
    ) -> None:
        """head: without the empty line. length: None if it is unknown. is_modern: HTTP/1.1 rather than HTTP/1.0."""
        self._connection = connection
        self._left = length
        self._is_chunked = length is None and is_modern
        self._sends_body = sends_body
        if self._is_chunked and sends_body:
            head += b"transfer-encoding: chunked\r\n"
        self._held = head + b"\r\n"  # sent together with the first part

    async def write(self, part: bytes | memoryview) -> None:
        """Sends a part. Raises ValueError if the body is longer than announced."""
        if not part or not self._sends_body:
            return
        if self._left is not None:
            self._left -= len(part)
            if self._left < 0:
                raise ValueError("the body is longer than its content-length")
        elif self._is_chunked:
            self._held += b"%x\r\n" % len(part)
        held, self._held = self._held, b"\r\n" if self._is_chunked else b""
        if held:
            await self._connection.send(held)
        await self._connection.send(part)

    async def finish(self) -> None:
        """Sends the end. Raises ValueError if the body is shorter than announced."""
        if self._left and self._sends_body:
            raise ValueError("the body is shorter than its content-length")
        if self._is_chunked and self._sends_body:
            self._held += b"0\r\n\r\n"
        if self._held:
            held, self._held = self._held, b""
            await self._connection.send(held)
