"""Serves media to other servers. Spec: server-server-api/#content-repository"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import aclosing

from homeserver.api.routes import Response
from homeserver.errors import not_found
from homeserver.features.media import sealed_blobs
from homeserver.features.media.content_headers import content_disposition
from homeserver.features.media.downloads import DownloadQuery, get_local_media
from homeserver.features.media.multipart import Envelope, new_envelope
from homeserver.features.media.operations import routes
from homeserver.features.media.serving import open_stream
from homeserver.features.media.thumbnails import ThumbnailQuery, get_thumbnail, read_size, thumbnail_disposition
from homeserver.federation.identifiers import ServerName
from homeserver.limits import MEDIA_CHUNK_BYTES
from homeserver.resources import Resources


@routes.get("/_matrix/federation/v1/media/download/{media_id}", rate_limit="federation")
async def get_content(hs: Resources, origin: ServerName, media_id: str, query: DownloadQuery) -> Response:
    """Serves the content of a URI of this server, as the second of two parts."""
    media = await get_local_media(hs, media_id, query.timeout_ms)
    content_type = media.description.content_type
    envelope = new_envelope(content_type, content_disposition(content_type, media.description.filename))
    return await _answer(hs, envelope, media.blob.key, media.blob.size_bytes)


@routes.get("/_matrix/federation/v1/media/thumbnail/{media_id}", rate_limit="federation")
async def get_content_thumbnail(hs: Resources, origin: ServerName, media_id: str, query: ThumbnailQuery) -> Response:
    """Serves a thumbnail of a URI of this server, as the second of two parts."""
    size = read_size(query)
    thumbnail = await get_thumbnail(hs, hs.server_name, media_id, size, query.timeout_ms)
    envelope = new_envelope(thumbnail.content_type, thumbnail_disposition(thumbnail.content_type))
    return await _answer(hs, envelope, thumbnail.blob_key, thumbnail.size_bytes, thumbnail.content)


async def _answer(
    hs: Resources, envelope: Envelope, blob_key: str, size_bytes: int, content: bytes | None = None
) -> Response:
    headers = {"content-type": envelope.content_type}
    try:
        if size_bytes <= MEDIA_CHUNK_BYTES:
            content = await sealed_blobs.get(hs, blob_key, size_bytes) if content is None else content
            return Response(200, b"".join((envelope.head, content, envelope.tail)), headers)
        chunks = await open_stream(hs, blob_key, size_bytes)
    except KeyError:
        raise not_found("The content of this media has been lost.") from None
    headers["content-length"] = str(len(envelope.head) + size_bytes + len(envelope.tail))
    return Response(200, None, headers, _enclose(envelope, chunks))


async def _enclose(envelope: Envelope, chunks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    async with aclosing(chunks):  # type: ignore[type-var]
        yield envelope.head
        async for chunk in chunks:
            yield chunk
        yield envelope.tail
