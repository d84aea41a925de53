"""Serving: a stored blob as an HTTP answer, whole or in part. Conditions and ranges: RFC 9110 §13, §14."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from contextlib import aclosing

from homeserver.api.routes import Request, Response
from homeserver.errors import not_found
from homeserver.features.media.content_headers import SAFETY_HEADERS
from homeserver.federation.signing import encode_base64
from homeserver.limits import MEDIA_CHUNK_BYTES
from homeserver.resources import Resources

# A URI's content never changes. With a token a shared cache must not keep it; without one anyone may.
CACHE_PRIVATE = "private, max-age=31536000, immutable"
CACHE_PUBLIC = "public, max-age=31536000, immutable"

_RANGE = re.compile(r"bytes[ \t]*=[ \t]*([0-9]{0,18})-([0-9]{0,18})", re.ASCII | re.IGNORECASE)


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
    content: bytes | None = None,
) -> Response:
    """The answer with a blob as its body. `tag`: the content's hash. Raises M_NOT_FOUND where the blob is lost.

    content: the blob's content, where it is at hand.
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
    }
    status, start, end = 200, 0, size_bytes
    wanted = request.headers.get("range")
    if wanted is not None and request.method == "GET" and request.headers.get("if-range", etag) == etag:
        part = read_range(wanted, size_bytes)
        if part is not None:
            start, end = part
            if start >= end:
                body = {"errcode": "M_INVALID_PARAM", "error": "The range lies outside of the content."}
                return Response(416, body, {**SAFETY_HEADERS, "content-range": f"bytes */{size_bytes}"})
            status = 206
            headers["content-range"] = f"bytes {start}-{end - 1}/{size_bytes}"
    if request.method == "HEAD":
        headers["content-length"] = str(size_bytes)
        return Response(200, None, headers, _nothing())
    if content is not None:
        return Response(status, content[start:end], headers)
    try:
        if end - start == size_bytes and size_bytes <= MEDIA_CHUNK_BYTES:
            return Response(status, await hs.blobs.get(blob_key, expected_bytes=size_bytes), headers)
        headers["content-length"] = str(end - start)
        return Response(status, None, headers, await open_stream(hs, blob_key, size_bytes, start, end))
    except KeyError:
        raise not_found("The content of this media has been lost.") from None


def read_range(value: str, size_bytes: int) -> tuple[int, int] | None:
    """The bytes start ≤ i < end that a Range header asks for; start ≥ end where there are none such.

    None where the header is to be ignored: not one range of bytes.
    """
    match = _RANGE.fullmatch(value.strip())
    if match is None:
        return None
    first, last = match.groups()
    if first:
        if last and int(last) < int(first):
            return None
        return int(first), min(int(last) + 1, size_bytes) if last else size_bytes
    if not last:
        return None
    return max(0, size_bytes - int(last)), size_bytes


def _matches(header: str | None, etag: str) -> bool:
    if header is None:
        return False
    return header.strip() == "*" or any(each.strip().removeprefix("W/") == etag for each in header.split(","))


async def open_stream(
    hs: Resources, blob_key: str, size_bytes: int, start: int = 0, end: int | None = None
) -> AsyncIterator[bytes]:
    """The chunks of a blob of that size. Raises before the first chunk: KeyError or BlobError."""
    chunks = hs.blobs.stream(blob_key, start, end, expected_bytes=size_bytes)
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
