"""Serving: a stored blob as an HTTP response, whole or in part. Conditions and ranges: RFC 9110 §13, §14."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from contextlib import aclosing

from homeserver.api.routes import Request, Response
from homeserver.errors import not_found
from homeserver.features.media.content_headers import SAFETY_HEADERS
from homeserver.federation.signing import encode_base64
from homeserver.limits import MEDIA_CHUNK_BYTES, MEDIA_REDIRECT_SECONDS
from homeserver.resources import Resources

# A URI's content never changes. If a token is required, shared caches must not keep it; otherwise anyone may.
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
    }
    status, start, end = 200, 0, size_bytes
    wanted = request.headers.get("range")
    if wanted is not None and request.method == "GET" and request.headers.get("if-range", etag) == etag:
        part = read_range(wanted, size_bytes)
        if part is not None:
            start, end = part
            if start >= end:
                body = {"errcode": "M_INVALID_PARAM", "error": "The range is outside the content."}
                return Response(416, body, {**SAFETY_HEADERS, "content-range": f"bytes */{size_bytes}"})
            status = 206
            headers["content-range"] = f"bytes {start}-{end - 1}/{size_bytes}"
    if request.method == "HEAD":
        headers["content-length"] = str(size_bytes)
        return Response(200, None, headers, _nothing())
    if content is not None:
        return Response(status, content[start:end], headers)
    if may_redirect and (url := await find_location(hs, blob_key)) is not None:
        # The client repeats the request there, with its Range header.
        return Response(307, b"", {**SAFETY_HEADERS, "location": url, "cache-control": "no-store"})
    try:
        if end - start == size_bytes and size_bytes <= MEDIA_CHUNK_BYTES:
            return Response(status, await hs.blobs.get(blob_key, expected_bytes=size_bytes), headers)
        headers["content-length"] = str(end - start)
        return Response(status, None, headers, await open_stream(hs, blob_key, size_bytes, start, end))
    except KeyError:
        raise not_found("The content of this media has been lost.") from None


async def find_location(hs: Resources, blob_key: str) -> str | None:
    """Returns the URL of a blob in the object store; None if there is none, or the operator does not want redirects."""
    if not hs.config.blobs.redirect:
        return None
    return await hs.blobs.find_url(blob_key, MEDIA_REDIRECT_SECONDS)


def read_range(value: str, size_bytes: int) -> tuple[int, int] | None:
    """Returns the range start ≤ i < end of a Range header; start ≥ end if it cannot be satisfied.

    None if the header is to be ignored because it is not a single range of bytes.
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
    """Returns the chunks of a blob of that size. Raises KeyError or BlobError before the first chunk."""
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
