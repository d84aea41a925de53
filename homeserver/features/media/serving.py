"""Serving: a stored blob as an HTTP response, whole or in part. Conditions and ranges: RFC 9110 §13, §14."""

from __future__ import annotations

import re
import secrets
from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing

import msgspec

from homeserver.api.routes import Request, Response
from homeserver.errors import not_found
from homeserver.features.media import sealed_blobs
from homeserver.features.media.content_headers import SAFETY_HEADERS
from homeserver.federation.signing import encode_base64
from homeserver.limits import MEDIA_CHUNK_BYTES, MEDIA_RANGES_MAX, MEDIA_REDIRECT_SECONDS
from homeserver.resources import Resources

# A URI's content never changes. If a token is required, shared caches must not keep it; otherwise anyone may.
CACHE_PRIVATE = "private, max-age=31536000, immutable"
CACHE_PUBLIC = "public, max-age=31536000, immutable"

_RANGE = re.compile(r"([0-9]{0,18})-([0-9]{0,18})", re.ASCII)

Range = tuple[int, int]
"""The bytes start ≤ i < end of a content."""


async def serve(
    hs: Resources,
    request: Request,
    blob_key: str,
    size_bytes: int,
    *,
    tag: bytes,
    content_type: str,
    disposition: str,
    cache_control: str = CACHE_PRIVATE,
    may_redirect: bool = False,
    content: bytes | None = None,
) -> Response:
    """Returns the response with a blob as its body. `tag`: the content's hash. Raises M_NOT_FOUND if the blob is lost.

    may_redirect: whether the client may be sent to the object store, if the operator wants that. The deprecated
    endpoints must not redirect clients that do not say `allow_redirect`.
    content: the blob's content, if it is in memory.
    """
    etag = f'"{encode_base64(tag)}"'
    headers = {
        **SAFETY_HEADERS,
        "cache-control": cache_control,
        "etag": etag,
    }
    if _matches(request.headers.get("if-none-match"), etag):
        return Response(304, b"", headers)
    headers |= {
        "content-type": content_type,
        "content-disposition": disposition,
        "accept-ranges": "bytes",
        "access-control-expose-headers": "Accept-Ranges, Content-Range, Content-Disposition, ETag",
    }
    ranges: list[Range] | None = None
    wanted = request.headers.get("range")
    if wanted is not None and request.method == "GET" and request.headers.get("if-range", etag) == etag:
        ranges = read_ranges(wanted, size_bytes)
        if ranges == []:
            body = {"errcode": "M_INVALID_PARAM", "error": "The range is outside the content."}
            return Response(416, body, {**SAFETY_HEADERS, "content-range": f"bytes */{size_bytes}"})
    if request.method == "HEAD":
        headers["content-length"] = str(size_bytes)
        return Response(200, None, headers, _nothing())
    if content is None and may_redirect and (url := await find_location(hs, blob_key)) is not None:
        # The client repeats the request there, with its Range header.
        return Response(307, b"", {**SAFETY_HEADERS, "location": url, "cache-control": "no-store"})
    source = Source(hs, blob_key, size_bytes, content)
    try:
        if ranges is None:
            return await _answer(source, 200, headers, (0, size_bytes))
        if len(ranges) == 1:
            headers["content-range"] = _content_range(ranges[0], size_bytes)
            return await _answer(source, 206, headers, ranges[0])
        return await _answer_several(source, headers, ranges)
    except KeyError:
        raise not_found("The content of this media has been lost.") from None


class Source(msgspec.Struct, frozen=True):
    """The content that is served: a blob of that size. content: the same, if it is in memory."""

    hs: Resources
    blob_key: str
    size_bytes: int
    content: bytes | None

    async def read(self, part: Range) -> bytes | AsyncIterator[bytes]:
        """Returns a part: bytes if it is short, else chunks. Raises KeyError or BlobError before the first chunk."""
        start, end = part
        if self.content is not None:
            return self.content[start:end]
        if end - start == self.size_bytes <= MEDIA_CHUNK_BYTES:
            return await sealed_blobs.get(self.hs, self.blob_key, self.size_bytes)
        return await open_stream(self.hs, self.blob_key, self.size_bytes, start, end)


async def _answer(source: Source, status: int, headers: dict[str, str], part: Range) -> Response:
    content = await source.read(part)
    if isinstance(content, bytes):
        return Response(status, content, headers)
    return Response(status, None, {**headers, "content-length": str(part[1] - part[0])}, content)


async def _answer_several(source: Source, headers: dict[str, str], ranges: Sequence[Range]) -> Response:
    """Returns several parts as one body. RFC 9110, section 14.6"""
    boundary = secrets.token_hex(24)
    heads = [
        f"\r\n--{boundary}\r\nContent-Type: {headers['content-type']}\r\n"
        f"Content-Range: {_content_range(part, source.size_bytes)}\r\n\r\n".encode("latin-1")
        for part in ranges
    ]
    tail = f"\r\n--{boundary}--\r\n".encode("ascii")
    length = sum(map(len, heads)) + sum(end - start for start, end in ranges) + len(tail)
    headers = {
        **headers,
        "content-type": f"multipart/byteranges; boundary={boundary}",
        "content-length": str(length),
    }
    return Response(206, None, headers, _enclose(source, heads, ranges, tail))


async def _enclose(
    source: Source, heads: Sequence[bytes], ranges: Sequence[Range], tail: bytes
) -> AsyncIterator[bytes]:
    for head, part in zip(heads, ranges, strict=True):
        yield head
        content = await source.read(part)
        if isinstance(content, bytes):
            yield content
            continue
        async with aclosing(content):  # type: ignore[type-var]
            async for chunk in content:
                yield chunk
    yield tail


def _content_range(part: Range, size_bytes: int) -> str:
    return f"bytes {part[0]}-{part[1] - 1}/{size_bytes}"


async def find_location(hs: Resources, blob_key: str) -> str | None:
    """Returns the URL of a blob in the object store; None if there is none, or the operator does not want redirects."""
    if not hs.config.blobs.redirect or sealed_blobs.number_of(blob_key) is not None:
        return None  # the store could only serve it sealed
    return await hs.blobs.find_url(blob_key, MEDIA_REDIRECT_SECONDS)


def read_ranges(value: str, size_bytes: int) -> list[Range] | None:
    """Returns the ranges start ≤ i < end of a Range header that the content has; none of them: it is unsatisfiable.

    None if the header is to be ignored: it is malformed, or asks for too many parts, or for more than the whole.
    """
    unit, equals, listed = value.partition("=")
    texts = listed.split(",")
    if not equals or unit.strip().lower() != "bytes" or len(texts) > MEDIA_RANGES_MAX:
        return None
    ranges: list[Range] = []
    for text in texts:
        match = _RANGE.fullmatch(text.strip(" \t"))
        if match is None:
            return None
        first, last = match.groups()
        if first:
            if last and int(last) < int(first):
                return None
            start, end = int(first), min(int(last) + 1, size_bytes) if last else size_bytes
        elif last:
            start, end = max(0, size_bytes - int(last)), size_bytes
        else:
            return None
        if start < end:
            ranges.append((start, end))
    is_more = len(ranges) > 1 and sum(end - start for start, end in ranges) > size_bytes
    return None if is_more else ranges


def _matches(header: str | None, etag: str) -> bool:
    if header is None:
        return False
    return header.strip() == "*" or any(each.strip().removeprefix("W/") == etag for each in header.split(","))


async def open_stream(
    hs: Resources, blob_key: str, size_bytes: int, start: int = 0, end: int | None = None
) -> AsyncIterator[bytes]:
    """Returns the chunks of a blob of that size. Raises KeyError or BlobError before the first chunk."""
    chunks = sealed_blobs.stream(hs, blob_key, size_bytes, start, end)
    first = await anext(chunks, b"")
    return _chain(first, chunks)


async def _chain(first: bytes, rest: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    async with aclosing(rest):  # type: ignore[type-var]
        yield first
        async for chunk in rest:
            yield chunk


async def _nothing() -> AsyncIterator[bytes]:
    no_chunks: tuple[bytes, ...] = ()
    for chunk in no_chunks:
        yield chunk
