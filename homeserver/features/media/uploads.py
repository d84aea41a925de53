"""Uploads, in one step or to a URI that was created before. Spec: client-server-api/#post_matrixmediav3upload"""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator
from typing import Any

import msgspec

from homeserver.api.routes import Request, too_large
from homeserver.authenticate import Requester
from homeserver.background import start_aside
from homeserver.database import Transaction
from homeserver.errors import invalid_param, not_found
from homeserver.features.media import storage
from homeserver.features.media.content_headers import clean_content_type, clean_filename
from homeserver.features.media.information import examine, store_findings
from homeserver.features.media.operations import routes
from homeserver.features.media.receiving import keep, limited, receive, whole
from homeserver.features.media.storage import Blob, Description
from homeserver.federation.identifiers import ServerName, UserID
from homeserver.limits import MEDIA_CHUNK_BYTES, MEDIA_PENDING_LIFETIME_MS
from homeserver.resources import Resources


class UploadQuery(msgspec.Struct, frozen=True):
    filename: str = ""


@routes.post("/_matrix/media/v3/upload", rate_limit="upload")
async def upload_content(hs: Resources, requester: Requester, query: UploadQuery, request: Request) -> dict[str, Any]:
    """Stores the body under a new URI."""
    media_id = new_media_id()
    info = await _upload(hs, requester, query, request, media_id, is_pending=False)
    return {"content_uri": mxc_uri(hs.server_name, media_id), "info": info}


@routes.post("/_matrix/media/v1/create", rate_limit="upload")
async def create_content(hs: Resources, requester: Requester) -> dict[str, Any]:
    """Creates a URI whose content will be uploaded later."""
    media_id = new_media_id()
    expires_ms = hs.now_ms() + MEDIA_PENDING_LIFETIME_MS
    await hs.database.write(storage.store_pending, media_id, requester.user_id, expires_ms)
    return {"content_uri": mxc_uri(hs.server_name, media_id), "unused_expires_at": expires_ms}


@routes.put("/_matrix/media/v3/upload/{server_name}/{media_id}", rate_limit="upload")
async def upload_content_to_mxc(
    hs: Resources, requester: Requester, server_name: ServerName, media_id: str, query: UploadQuery, request: Request
) -> dict[str, Any]:
    """Stores the body under a URI that the requester has created."""
    if server_name != hs.server_name:
        raise not_found("This media ID was not created here.")
    return {"info": await _upload(hs, requester, query, request, media_id, is_pending=True)}


async def _upload(
    hs: Resources, requester: Requester, query: UploadQuery, request: Request, media_id: str, *, is_pending: bool
) -> dict[str, Any]:
    """Returns what is known of the file, see `information`."""
    description = describe(request.headers.get("content-type"), query.filename)
    declared = request.headers.get("content-length", "")
    expected_bytes = int(declared[:20]) if declared.isascii() and declared.isdigit() else 0
    if is_pending or expected_bytes > MEDIA_CHUNK_BYTES:  # for less, receiving the body costs less than checking first
        pending_id = media_id if is_pending else None
        await hs.database.read(
            storage.check_may_upload,
            hs.server_name, hs.config.blobs, requester.user_id, pending_id, expected_bytes,
        )  # fmt: skip
    chunks = request.stream(hs.config.blobs.upload_bytes_max)
    return await _store(hs, requester.user_id, chunks, description, media_id, is_pending=is_pending, is_public=False)


async def _store(
    hs: Resources,
    user_id: UserID,
    chunks: AsyncIterator[bytes],
    description: Description,
    media_id: str,
    *,
    is_pending: bool,
    is_public: bool,
) -> dict[str, Any]:
    def store(tx: Transaction, blob: Blob) -> None:
        storage.store_upload(
            tx, blob, hs.server_name, hs.config.blobs, media_id, user_id, description,
            is_pending=is_pending, is_public=is_public,
        )  # fmt: skip

    hs.metrics.describe("homeserver_media_uploads_total", "Files that users have uploaded.")
    async with receive(hs, chunks) as received:
        findings = await examine(hs, received, description)
        await keep(hs, received, description.content_type, store)
    hs.metrics.count("homeserver_media_uploads_total")
    start_aside(hs, store_findings, hs, media_id, findings)
    return findings.info


def describe(content_type: str | None, filename: str | None) -> Description:
    """Returns the uploader's description of the content, cleaned. Raises M_INVALID_PARAM for a bad file name."""
    if not filename:
        return Description(clean_content_type(content_type), None)
    usable = clean_filename(filename)
    if usable is None:
        raise invalid_param("The file name is too long or contains an invalid character.")
    return Description(clean_content_type(content_type), usable)


def new_media_id() -> str:
    """Returns a media ID that nobody can guess."""
    return secrets.token_urlsafe(18)


def mxc_uri(server_name: ServerName, media_id: str) -> str:
    """Returns the URI of a file."""
    return f"mxc://{server_name}/{media_id}"


async def upload(
    hs: Resources,
    user_id: UserID,
    data: bytes | AsyncIterator[bytes],
    content_type: str,
    filename: str | None = None,
    *,
    is_public: bool = False,
) -> str:
    """Stores a file for a user. Returns its `mxc://` URI. Raises M_TOO_LARGE, M_USER_LIMIT_EXCEEDED, M_INVALID_PARAM.

    is_public: the deprecated endpoints serve it too, without a token, as icons of identity providers require.
    """
    media_id = new_media_id()
    bytes_max = hs.config.blobs.upload_bytes_max
    chunks = limited(whole(data) if isinstance(data, bytes) else data, bytes_max, too_large(bytes_max))
    description = describe(content_type, filename)
    await _store(hs, user_id, chunks, description, media_id, is_pending=False, is_public=is_public)
    return mxc_uri(hs.server_name, media_id)
