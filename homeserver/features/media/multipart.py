"""The multipart/mixed body of a federation media response, written and read as a stream.

Exactly two parts: a JSON object, then the media or a `Location`. Spec: server-server-api/#content-repository, RFC 2046
§5.1.1
"""

from __future__ import annotations

import re
import secrets
from collections.abc import AsyncIterator, Mapping

import msgspec

from homeserver.features.media.content_headers import bare_type, header_parameter
from homeserver.limits import MEDIA_MULTIPART_HEADERS_BYTES_MAX, MEDIA_MULTIPART_METADATA_BYTES_MAX

_BOUNDARY = re.compile(r"[A-Za-z0-9'()+_,./:=? -]{0,69}[A-Za-z0-9'()+_,./:=?-]", re.ASCII)
_FIELD_NAME = re.compile(rb"[A-Za-z0-9!#$%&'*+.^_`|~-]+")
_PREAMBLE_BYTES_MAX = 1024


class InvalidMultipart(ValueError):
    """The body does not have the two parts that the spec requires. The message says what is wrong."""


class Envelope(msgspec.Struct, frozen=True):
    """The bytes before and after the media in a response of this server."""

    content_type: str
    head: bytes
    tail: bytes


def new_envelope(media_type: str, disposition: str) -> Envelope:
    """Returns the envelope of one response. Its boundary is random, so the media cannot contain it."""
    boundary = secrets.token_hex(24)
    head = (
        f"--{boundary}\r\nContent-Type: application/json\r\n\r\n{{}}\r\n--{boundary}\r\n"
        f"Content-Type: {media_type}\r\nContent-Disposition: {disposition}\r\n\r\n"
    )
    tail = f"\r\n--{boundary}--\r\n"
    return Envelope(f"multipart/mixed; boundary={boundary}", head.encode("ascii"), tail.encode("ascii"))


def read_boundary(content_type: str) -> bytes:
    """Returns the boundary in a Content-Type header. Raises InvalidMultipart."""
    if bare_type(content_type) != "multipart/mixed":
        raise InvalidMultipart("the response is not multipart/mixed")
    boundary = header_parameter(content_type, "boundary")
    if boundary is None or _BOUNDARY.fullmatch(boundary) is None:
        raise InvalidMultipart("the response has no valid boundary")
    return boundary.encode("ascii")


class MultipartReader(msgspec.Struct):
    """Reads the two parts from chunks of any size. Memory is bounded by the limits and the size of a chunk.

    First call `await read_headers()`, which returns the header fields of the media part (lower-case names); then
    iterate over `media()`.
    """

    chunks: AsyncIterator[bytes]
    boundary: bytes
    _buffer: bytearray = msgspec.field(default_factory=bytearray)

    async def read_headers(self) -> Mapping[str, str]:
        """Skips the preamble and the JSON part, and returns the media part's headers. Raises InvalidMultipart."""
        opening = b"--" + self.boundary
        self._buffer[:0] = b"\r\n"  # the first delimiter may be at the very beginning
        await self._skip_past(b"\r\n" + opening, _PREAMBLE_BYTES_MAX)
        await self._end_of_delimiter()
        metadata_headers = await self._headers()
        if bare_type(metadata_headers.get("content-type", "text/plain")) != "application/json":
            raise InvalidMultipart("the first part is not application/json")
        self._buffer[:0] = b"\r\n"  # an empty part may have its delimiter right after the empty line
        await self._skip_past(b"\r\n" + opening, MEDIA_MULTIPART_METADATA_BYTES_MAX)
        await self._end_of_delimiter()
        return await self._headers()

    async def media(self) -> AsyncIterator[bytes]:
        """Yields the content of the media part. Raises InvalidMultipart if the closing delimiter is missing."""
        delimiter = b"\r\n--" + self.boundary
        keep = len(delimiter) - 1
        self._buffer[:0] = b"\r\n"  # as above
        skip = 2
        while (at := self._buffer.find(delimiter)) < 0:
            ready = len(self._buffer) - keep
            if ready > skip:
                yield bytes(self._buffer[skip:ready])
                del self._buffer[:ready]
                skip = 0
            await self._more()
        if at > skip:
            yield bytes(self._buffer[skip:at])
        del self._buffer[: at + len(delimiter)]
        await self._at_least(2)
        if self._buffer[:2] != b"--":
            raise InvalidMultipart("there are more than two parts, or the media contains the boundary")

    async def _headers(self) -> Mapping[str, str]:
        """Returns the header fields of a part, and consumes them with the empty line."""
        while self._buffer[:2] != b"\r\n" and (at := self._buffer.find(b"\r\n\r\n")) < 0:
            if len(self._buffer) > MEDIA_MULTIPART_HEADERS_BYTES_MAX:
                raise InvalidMultipart("the headers of a part are too long")
            await self._more()
        if self._buffer[:2] == b"\r\n":
            del self._buffer[:2]
            return {}
        block = bytes(self._buffer[:at])
        if len(block) > MEDIA_MULTIPART_HEADERS_BYTES_MAX:
            raise InvalidMultipart("the headers of a part are too long")
        del self._buffer[: at + 4]
        fields: dict[str, str] = {}
        for line in re.sub(rb"\r\n[ \t]+", b" ", block).split(b"\r\n"):
            name, colon, value = line.partition(b":")
            name = name.rstrip(b" \t")
            if not colon or _FIELD_NAME.fullmatch(name) is None or b"\r" in value or b"\n" in value or b"\0" in value:
                raise InvalidMultipart("a header of a part is malformed")
            fields.setdefault(name.decode("ascii").lower(), value.strip(b" \t").decode("latin-1"))
        return fields

    async def _end_of_delimiter(self) -> None:
        """Consumes the rest of a delimiter line that another part must follow: white space and the line end."""
        while True:
            stripped = self._buffer.lstrip(b" \t")
            if len(stripped) >= 2:
                break
            if len(self._buffer) > _PREAMBLE_BYTES_MAX:
                raise InvalidMultipart("a delimiter is too long")
            await self._more()
        if stripped[:2] != b"\r\n":
            raise InvalidMultipart("there are fewer than two parts")
        self._buffer = stripped
        del self._buffer[:2]

    async def _skip_past(self, mark: bytes, bytes_max: int) -> None:
        while (at := self._buffer.find(mark)) < 0:
            if len(self._buffer) > bytes_max + len(mark):
                raise InvalidMultipart("a delimiter is missing")
            await self._more()
        if at > bytes_max:
            raise InvalidMultipart("the part before the media is too long")
        del self._buffer[: at + len(mark)]

    async def _at_least(self, count: int) -> None:
        while len(self._buffer) < count:
            await self._more()

    async def _more(self) -> None:
        try:
            self._buffer += await anext(self.chunks)
        except StopAsyncIteration:
            raise InvalidMultipart("the response ends too early") from None
