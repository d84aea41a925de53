"""Downloads. Spec: client-server-api/#content-repo-client-behaviour

The deprecated endpoints, which need no token, are frozen: they serve only files that were stored as public, or before
the day that the operator has set.
"""

from __future__ import annotations

import re
from typing import Annotated, Any

import msgspec
import trio

from homeserver.api.routes import Request, Response
from homeserver.authenticate import Requester
from homeserver.background import start_aside
from homeserver.errors import MatrixError, not_found
from homeserver.features.media import sealed_blobs, storage
from homeserver.features.media.content_headers import content_disposition
from homeserver.features.media.operations import routes
from homeserver.features.media.remote_media import fetch_remote
from homeserver.features.media.serving import CACHE_PRIVATE, CACHE_PUBLIC, serve
from homeserver.features.media.storage import Media
from homeserver.federation.identifiers import InvalidIdentifier, ServerName, parse_server_name
from homeserver.limits import MEDIA_ID_CHARACTERS_MAX, MEDIA_USED_INTERVAL_MS, MEDIA_WAIT_MS_MAX
from homeserver.moments import is_recent
from homeserver.resources import Resources

# Spec: "allowing only alphanumeric (`A-Za-z0-9`), `_` and `-` characters in the `media-id` segment"
_MEDIA_ID = re.compile(r"[A-Za-z0-9_-]+", re.ASCII)

TimeoutMs = Annotated[int, msgspec.Meta(ge=0)]


class DownloadQuery(msgspec.Struct, frozen=True):
    timeout_ms: TimeoutMs = 20_000


class DeprecatedDownloadQuery(DownloadQuery, frozen=True):
    allow_remote: bool = True
    allow_redirect: bool = False


@routes.get("/_matrix/client/v1/media/config")
async def get_config_authed(hs: Resources, requester: Requester) -> dict[str, Any]:
    """Returns the size limit of uploads."""
    return {"m.upload.size": hs.config.blobs.upload_bytes_max}


@routes.get("/_matrix/media/v3/config")
async def get_config(hs: Resources, requester: Requester) -> dict[str, Any]:
    """Deprecated name of `get_config_authed`."""
    return {"m.upload.size": hs.config.blobs.upload_bytes_max}


@routes.get("/_matrix/client/v1/media/download/{server_name}/{media_id}", rate_limit="media", allow_guest=True)
async def get_content_authed(
    hs: Resources, requester: Requester, server_name: ServerName, media_id: str, query: DownloadQuery, request: Request
) -> Response:
    """Serves the content of a URI."""
    media = await get_media(hs, server_name, media_id, query.timeout_ms)
    return await _serve(hs, request, media, media.description.filename, CACHE_PRIVATE, may_redirect=True)


@routes.get(
    "/_matrix/client/v1/media/download/{server_name}/{media_id}/{file_name}", rate_limit="media", allow_guest=True
)
async def get_content_override_name_authed(
    hs: Resources,
    requester: Requester,
    server_name: ServerName,
    media_id: str,
    file_name: str,
    query: DownloadQuery,
    request: Request,
) -> Response:
    """Serves the content of a URI under the requester's file name."""
    media = await get_media(hs, server_name, media_id, query.timeout_ms)
    return await _serve(hs, request, media, file_name, CACHE_PRIVATE, may_redirect=True)


@routes.get("/_matrix/media/v3/download/{server_name}/{media_id}", rate_limit="media")
async def get_content(
    hs: Resources, server_name: ServerName, media_id: str, query: DeprecatedDownloadQuery, request: Request
) -> Response:
    """Serves the content of a URI that was stored as public."""
    media = await get_public_media(hs, server_name, media_id)
    return await _serve(hs, request, media, media.description.filename, CACHE_PUBLIC, may_redirect=query.allow_redirect)


@routes.get("/_matrix/media/v3/download/{server_name}/{media_id}/{file_name}", rate_limit="media")
async def get_content_override_name(
    hs: Resources,
    server_name: ServerName,
    media_id: str,
    file_name: str,
    query: DeprecatedDownloadQuery,
    request: Request,
) -> Response:
    """Serves the content of a URI that was stored as public, under the requester's file name."""
    media = await get_public_media(hs, server_name, media_id)
    return await _serve(hs, request, media, file_name, CACHE_PUBLIC, may_redirect=query.allow_redirect)


async def _serve(
    hs: Resources, request: Request, media: Media, filename: str | None, cache_control: str, *, may_redirect: bool
) -> Response:
    content_type = media.description.content_type
    return await serve(
        hs,
        request,
        media.blob.key,
        media.blob.size_bytes,
        tag=media.blob.sha256,
        content_type=content_type,
        disposition=content_disposition(content_type, filename),
        cache_control=cache_control,
        may_redirect=may_redirect,
    )


async def get_media(hs: Resources, server_name: ServerName, media_id: str, timeout_ms: int) -> Media:
    """Returns the file of a URI. Fetches it from its server, or waits for its upload, if necessary.

    Raises M_NOT_FOUND, M_NOT_YET_UPLOADED, and what `fetch_remote` raises.
    """
    check_media_id(media_id)
    if server_name == hs.server_name:
        return await get_local_media(hs, media_id, timeout_ms)
    media = await hs.database.read(storage.find_served, server_name, media_id)
    if media is None:
        return await fetch_remote(hs, server_name, media_id, min(timeout_ms, MEDIA_WAIT_MS_MAX))
    note_used(hs, media)
    return media


async def get_local_media(hs: Resources, media_id: str, timeout_ms: int) -> Media:
    """Returns the file of a URI of this server, and waits for its upload. Raises M_NOT_FOUND, M_NOT_YET_UPLOADED."""
    check_media_id(media_id)
    deadline = trio.current_time() + min(timeout_ms, MEDIA_WAIT_MS_MAX) / 1000
    while True:
        found = await hs.database.read(storage.find_local, hs.server_name, media_id)
        if isinstance(found, Media):
            return found
        if found is None:
            raise not_found("There is no such media.")
        if trio.current_time() >= deadline:
            raise MatrixError(504, "M_NOT_YET_UPLOADED", "This media has not been uploaded yet.")
        await hs.stream.wait((storage.wake_key(media_id),), found.position, deadline)


async def get_public_media(hs: Resources, server_name: ServerName, media_id: str) -> Media:
    """Returns the file of a URI if the deprecated endpoints may serve it. Raises M_NOT_FOUND otherwise.

    They are frozen: files that were uploaded, or fetched from another server, after the freeze need a token.
    """
    check_media_id(media_id)
    media = await hs.database.read(storage.find_served, server_name, media_id)
    frozen_ms = hs.config.blobs.unauthenticated_before_ms
    if media is None or not (media.is_public or media.created_ms < frozen_ms):
        raise not_found("There is no such media, or it needs an access token.")
    return media


def check_media_id(media_id: str) -> None:
    """Raises M_NOT_FOUND if it cannot be a media ID."""
    if _MEDIA_ID.fullmatch(media_id) is None or len(media_id) > MEDIA_ID_CHARACTERS_MAX:
        raise not_found("There is no such media: its ID is not valid.")


def note_used(hs: Resources, media: Media) -> None:
    """Stores, a while after the response, that a remote file is still in use."""
    if media.is_remote and not is_recent(media.used_ms, hs.now_ms(), MEDIA_USED_INTERVAL_MS):
        start_aside(hs, hs.database.note, storage.store_used, media.media_nid)


def parse_mxc(uri: str) -> tuple[ServerName, str]:
    """Returns the server name and media ID of an `mxc://` URI. Raises M_NOT_FOUND if it is malformed."""
    server_name, slash, media_id = uri.removeprefix("mxc://").partition("/")
    if not uri.startswith("mxc://") or not slash:
        raise not_found("This is not an mxc:// URI.")
    check_media_id(media_id)
    try:
        return parse_server_name(server_name), media_id
    except InvalidIdentifier as error:
        raise not_found("This is not an mxc:// URI.") from error


async def download(hs: Resources, mxc: str, *, timeout_ms: int = 20_000) -> tuple[str, bytes]:
    """Returns content type and content of an `mxc://` URI, fetched if necessary. Raises what `get_media` raises."""
    server_name, media_id = parse_mxc(mxc)
    media = await get_media(hs, server_name, media_id, timeout_ms)
    try:
        return media.description.content_type, await sealed_blobs.get(hs, media.blob.key, media.blob.size_bytes)
    except KeyError:
        raise not_found("The content of this media has been lost.") from None
