"""Fetches media from the server named in its URI, and stores it like an upload.

Spec: server-server-api/#content-repository
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Mapping
from contextlib import aclosing
from urllib.parse import quote

import msgspec

from homeserver.database import Transaction
from homeserver.errors import MatrixError, not_found
from homeserver.features.media import storage
from homeserver.features.media.content_headers import clean_content_type, read_filename
from homeserver.features.media.multipart import InvalidMultipart, MultipartReader, read_boundary
from homeserver.features.media.receiving import keep, limited, receive
from homeserver.features.media.storage import Blob, Description, Media
from homeserver.federation.identifiers import ServerName
from homeserver.federation.wire import WireError, WireRequest, WireStream
from homeserver.limits import (
    MEDIA_FETCH_TIMEOUT_S,
    MEDIA_FETCHES_AT_ONCE_MAX,
    MEDIA_MULTIPART_HEADERS_BYTES_MAX,
    MEDIA_MULTIPART_METADATA_BYTES_MAX,
)
from homeserver.process.peers import PERSON
from homeserver.remote.requests import authorization_headers, is_unknown_endpoint, note_unreachable
from homeserver.resources import Resources

_log = logging.getLogger("homeserver.media")

_ERROR_BYTES_MAX = 64 * 1024


class _UnknownEndpoint(Exception):
    """The other server is too old for the endpoint: 404 M_UNRECOGNIZED."""


class _ErrorBody(msgspec.Struct):
    errcode: str = ""


async def fetch_remote(hs: Resources, server_name: ServerName, media_id: str, timeout_ms: int) -> Media:
    """Fetches a file and stores it. Concurrent requests for the file share one fetch.

    timeout_ms: how long the other server may wait for the upload. Raises M_NOT_FOUND, M_NOT_YET_UPLOADED, 502
    M_TOO_LARGE, and 502 M_UNKNOWN if the server cannot be reached or its response is invalid.
    """
    if not hs.config.federation.enabled:
        raise not_found("There is no such media.")
    key = ("remote media", server_name, media_id)
    return await hs.flights.join(hs.nursery, key, _fetch, hs, server_name, media_id, timeout_ms)


async def _fetch(hs: Resources, server_name: ServerName, media_id: str, timeout_ms: int) -> Media:
    async with hs.flights.limiter("remote media", MEDIA_FETCHES_AT_ONCE_MAX):
        already = await hs.database.read(storage.find_served, server_name, media_id)
        if already is not None:  # another fetch of it ended while this one was being started
            return already
        if not hs.peers.admit(server_name, hs.now_ms(), PERSON):
            raise _bad_gateway(f"{server_name} has not answered lately.")
        try:
            try:
                return await _fetch_signed(hs, server_name, media_id, timeout_ms)
            except _UnknownEndpoint:
                return await _fetch_unsigned(hs, server_name, media_id, timeout_ms)
        except WireError as error:
            if error.reason == "too_large":
                raise _too_large() from error
            # The error contains addresses, which are not for users.
            _log.info("media not fetched", extra={"destination": server_name, "reason": str(error)})
            raise _bad_gateway(f"The media could not be fetched from {server_name}.") from error
        except InvalidMultipart as error:
            raise _bad_gateway(f"{server_name} sent an invalid response: {error}.") from error


async def _fetch_signed(hs: Resources, server_name: ServerName, media_id: str, timeout_ms: int) -> Media:
    path = f"/_matrix/federation/v1/media/download/{quote(media_id, safe='')}?timeout_ms={timeout_ms}"
    overhead = MEDIA_MULTIPART_METADATA_BYTES_MAX + 2 * MEDIA_MULTIPART_HEADERS_BYTES_MAX
    is_there = False
    try:
        async with hs.wire.stream(
            server_name,
            WireRequest("GET", path, authorization_headers(hs, server_name, "GET", path)),
            timeout_s=MEDIA_FETCH_TIMEOUT_S + timeout_ms / 1000,
            max_bytes=hs.config.blobs.upload_bytes_max + overhead,
        ) as answer:
            is_there = True
            hs.peers.note_contact(server_name)
            if answer.status != 200:
                await _raise_for(server_name, answer, may_be_unknown=True)
            reader = MultipartReader(answer.chunks, read_boundary(answer.headers.get("content-type", "")))
            part = await reader.read_headers()
            location = part.get("location")
            if location is None:
                return await _keep(hs, server_name, media_id, part, reader.media())
    except WireError:
        if not is_there:
            note_unreachable(hs, server_name)
        raise
    return await _fetch_location(hs, server_name, media_id, location)


async def _fetch_unsigned(hs: Resources, server_name: ServerName, media_id: str, timeout_ms: int) -> Media:
    """Uses the endpoint of before v1.11. "When falling back, servers MUST be sure to set `allow_remote` to
    `false`".
    """
    path = (
        f"/_matrix/media/v3/download/{quote(server_name, safe='')}/{quote(media_id, safe='')}"
        f"?allow_remote=false&timeout_ms={timeout_ms}"
    )
    async with hs.wire.stream(
        server_name,
        WireRequest("GET", path, {}),
        timeout_s=MEDIA_FETCH_TIMEOUT_S + timeout_ms / 1000,
        max_bytes=hs.config.blobs.upload_bytes_max,
    ) as answer:
        location = answer.headers.get("location")
        if answer.status not in (307, 308) or location is None:
            if answer.status != 200:
                await _raise_for(server_name, answer, may_be_unknown=False)
            return await _keep(hs, server_name, media_id, answer.headers, answer.chunks)
    return await _fetch_location(hs, server_name, media_id, location)


async def _fetch_location(hs: Resources, server_name: ServerName, media_id: str, location: str) -> Media:
    """Fetches the content behind a URL given by the other server. The wire refuses URLs into private networks."""
    async with hs.wire.stream_url(
        location, timeout_s=MEDIA_FETCH_TIMEOUT_S, max_bytes=hs.config.blobs.upload_bytes_max
    ) as answer:
        if answer.status != 200:
            raise _bad_gateway(f"The media location that {server_name} gave answered {answer.status}.")
        return await _keep(hs, server_name, media_id, answer.headers, answer.chunks)


async def _keep(
    hs: Resources, server_name: ServerName, media_id: str, headers: Mapping[str, str], chunks: AsyncIterator[bytes]
) -> Media:
    description = Description(
        clean_content_type(headers.get("content-type")), read_filename(headers.get("content-disposition"))
    )

    def store(tx: Transaction, blob: Blob) -> Media:
        return storage.store_remote(tx, blob, server_name, media_id, description)

    async with aclosing(limited(chunks, hs.config.blobs.upload_bytes_max, _too_large())) as at_most:
        async with receive(hs, at_most) as received:
            media = await keep(hs, received, description.content_type, store)
    if media.is_quarantined:
        raise storage.quarantined()
    return media


async def _raise_for(server_name: ServerName, answer: WireStream, *, may_be_unknown: bool) -> None:
    """Raises the MatrixError for our client that corresponds to a response other than 200."""
    errcode = await _read_errcode(answer)
    if may_be_unknown and is_unknown_endpoint(answer.status, errcode):
        raise _UnknownEndpoint
    if answer.status == 404:
        raise not_found(f"{server_name} has no such media.")
    if answer.status == 504 and errcode == "M_NOT_YET_UPLOADED":
        raise MatrixError(504, "M_NOT_YET_UPLOADED", "This media has not been uploaded yet.")
    if errcode == "M_TOO_LARGE":
        raise _too_large()
    raise _bad_gateway(f"{server_name} answered {answer.status} {errcode} for this media.")


async def _read_errcode(answer: WireStream) -> str:
    body = bytearray()
    async for chunk in answer.chunks:
        body += chunk
        if len(body) > _ERROR_BYTES_MAX:
            return ""
    try:
        return msgspec.json.decode(bytes(body), type=_ErrorBody).errcode[:100]
    except (msgspec.DecodeError, UnicodeDecodeError):
        return ""


def _too_large() -> MatrixError:
    return MatrixError(502, "M_TOO_LARGE", "This media is larger than this server's limit for remote media.")


def _bad_gateway(error: str) -> MatrixError:
    return MatrixError(502, "M_UNKNOWN", error)
