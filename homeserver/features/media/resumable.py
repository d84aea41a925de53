"""Resumable uploads: the tus protocol 1.0. Spec: https://tus.io/protocols/resumable-upload

Theory of operation. `POST` creates an upload of a known length, whose URL is the `Location` of the answer. `PATCH`
appends to it at its offset, as often as necessary; `HEAD` tells the offset after a connection broke. The request that
brings the last byte makes the content a file like any other, and `GET` on the upload's URL tells its `mxc://` URI.

What is acknowledged is durable. Content goes to a file in `data_dir` (`resumable_files`). Every 8 MiB, and when the
request ends or breaks off, the file is synced, and then the new offset is committed (`resumable_storage`). After a
crash the file may be longer than the offset, never shorter; the next request cuts off the rest before it appends. Only
the transaction that stores the file sets the offset to the whole length. So there is no upload that is complete but
has no URI: if the server is killed in between, the client repeats the end.

One request at a time may append to an upload. A second one gets 423, unless the first one stands still: its connection
may be dead, so it is ended, and what it has brought is kept.

Extensions: creation, creation-with-upload, expiration, checksum, termination.
"""

from __future__ import annotations

import secrets
from collections.abc import Awaitable, Callable
from email.utils import formatdate
from functools import wraps
from typing import Any, TypeVar

from homeserver.api.routes import Request, Response, too_large
from homeserver.authenticate import Requester
from homeserver.errors import MatrixError, invalid_param, missing_param
from homeserver.features.media import resumable_storage
from homeserver.features.media.operations import routes
from homeserver.features.media.receiving import temporary_folder
from homeserver.features.media.resumable_content import append
from homeserver.features.media.resumable_files import delete_part
from homeserver.features.media.resumable_headers import Checksum, parse_length, read_checksum, read_metadata
from homeserver.features.media.resumable_storage import Upload
from homeserver.features.media.uploads import mxc_uri
from homeserver.limits import RESUMABLE_LIFETIME_MS, RESUMABLE_PATIENCE_S
from homeserver.process.claims import Claimed
from homeserver.resources import Resources

Handler = TypeVar("Handler", bound=Callable[..., Awaitable[Response]])

_PATH = "/_homeserver/client/v1/uploads"
_VERSION = "1.0.0"
_OFFSET_TYPE = "application/offset+octet-stream"
_HEADERS = {
    "tus-resumable": _VERSION,
    "access-control-allow-methods": "GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS",
    "access-control-allow-headers": (
        "X-Requested-With, Content-Type, Authorization, Date, Tus-Resumable, Upload-Length, Upload-Offset,"
        " Upload-Metadata, Upload-Checksum, X-HTTP-Method-Override"
    ),
    "access-control-expose-headers": (
        "Location, Content-Uri, Tus-Resumable, Tus-Version, Tus-Extension, Tus-Max-Size, Tus-Checksum-Algorithm,"
        " Upload-Offset, Upload-Length, Upload-Metadata, Upload-Expires, Retry-After"
    ),
    # Browsers repeat a preflight after a day, the longest that any of them honours.
    "access-control-max-age": "86400",
}


def _in_version(handler: Handler) -> Handler:
    """Refuses requests of another version of the protocol: 412, with the version that this server speaks.

    GET is not part of the protocol, so it needs no version.
    """

    @wraps(handler)
    async def check(hs: Resources, requester: Requester, *args: Any) -> Response:
        request = args[-1]
        if request.method != "GET" and request.headers.get("tus-resumable") != _VERSION:
            body = {"errcode": "M_UNKNOWN", "error": f"This server speaks version {_VERSION} of tus only."}
            return Response(412, body, {"tus-version": _VERSION})
        return await handler(hs, requester, *args)

    return check  # type: ignore[return-value]


@routes.options(_PATH, rate_limit="", headers=_HEADERS)
async def describe_uploads(hs: Resources) -> Response:
    """Tells what this server offers, and browsers what they may send."""
    return _described(hs)


@routes.options(_PATH + "/{upload_id}", rate_limit="", headers=_HEADERS)
async def describe_upload(hs: Resources, upload_id: str) -> Response:
    """Does the same at the URL of an upload."""
    return _described(hs)


def _described(hs: Resources) -> Response:
    told = {
        "tus-version": _VERSION,
        "tus-max-size": str(hs.config.blobs.upload_bytes_max),
        "tus-extension": "creation,creation-with-upload,expiration,checksum,termination",
        "tus-checksum-algorithm": ",".join(Checksum.ALGORITHMS),
    }
    return Response(204, b"", told)


@routes.post(_PATH, rate_limit="upload", headers=_HEADERS)
@_in_version
async def create_upload(hs: Resources, requester: Requester, request: Request) -> Response:
    """Creates an upload, and stores what the body has of its content."""
    headers = request.headers
    if "upload-defer-length" in headers:
        raise invalid_param("This server must know the length of an upload when it begins.")
    if "upload-length" not in headers:
        raise missing_param("The header Upload-Length is missing.")
    length_bytes = parse_length(headers, "upload-length")
    if length_bytes > hs.config.blobs.upload_bytes_max:
        raise too_large(hs.config.blobs.upload_bytes_max)
    has_content = _has_body(request)
    if has_content:
        _check_type(request)
    checksum = read_checksum(headers)
    metadata, description = read_metadata(headers.get("upload-metadata", ""))
    expires_ms = hs.now_ms() + RESUMABLE_LIFETIME_MS
    upload = Upload(secrets.token_urlsafe(18), length_bytes, 0, description, metadata, expires_ms)
    await hs.database.write(resumable_storage.create_upload, hs.config.blobs, requester.user_id, upload)
    location = {"location": f"{_PATH}/{upload.upload_id}"}
    if has_content or not length_bytes:
        async with hs.claims.hold(("upload", upload.upload_id), RESUMABLE_PATIENCE_S) as claim:
            upload = await append(hs, requester.user_id, upload, request, checksum, claim)
    return Response(201, _result(hs, upload) or b"", {**location, **_state(hs, upload)})


@routes.get(_PATH + "/{upload_id}", rate_limit="upload_part", headers=_HEADERS)
@_in_version
async def get_upload(hs: Resources, requester: Requester, upload_id: str, request: Request) -> Response:
    """Tells how much of an upload is durable, and which file it has become. The protocol has HEAD only."""
    upload = await hs.database.read(resumable_storage.find_upload, requester.user_id, upload_id)
    told = {"upload-length": str(upload.length_bytes), "cache-control": "no-store", **_state(hs, upload)}
    if upload.metadata:
        told["upload-metadata"] = upload.metadata
    body = {"length": upload.length_bytes, "offset": upload.offset_bytes, "expires_ts": upload.expires_ms}
    return Response(200, {**body, **_result(hs, upload)}, told)


@routes.route("PATCH", _PATH + "/{upload_id}", rate_limit="upload_part", headers=_HEADERS)
@_in_version
async def append_upload(hs: Resources, requester: Requester, upload_id: str, request: Request) -> Response:
    """Appends the body to an upload."""
    return await _patch(hs, requester, upload_id, request)


@routes.delete(_PATH + "/{upload_id}", rate_limit="upload_part", headers=_HEADERS)
@_in_version
async def delete_upload(hs: Resources, requester: Requester, upload_id: str, request: Request) -> Response:
    """Ends an upload. The file that it may have become stays."""
    return await _delete(hs, requester, upload_id)


@routes.post(_PATH + "/{upload_id}", rate_limit="upload_part", headers=_HEADERS)
@_in_version
async def override_upload_method(hs: Resources, requester: Requester, upload_id: str, request: Request) -> Response:
    """Appends or ends, for clients that can send neither PATCH nor DELETE: X-HTTP-Method-Override names the method."""
    method = request.headers.get("x-http-method-override", "").upper()
    if method == "PATCH":
        return await _patch(hs, requester, upload_id, request)
    if method == "DELETE":
        return await _delete(hs, requester, upload_id)
    raise MatrixError(405, "M_UNRECOGNIZED", "Send PATCH, or name the method in X-HTTP-Method-Override.")


async def _patch(hs: Resources, requester: Requester, upload_id: str, request: Request) -> Response:
    _check_type(request)
    if "upload-offset" not in request.headers:
        raise missing_param("The header Upload-Offset is missing.")
    offset_bytes = parse_length(request.headers, "upload-offset")
    checksum = read_checksum(request.headers)
    await hs.database.read(resumable_storage.find_upload, requester.user_id, upload_id)
    try:
        async with hs.claims.hold(("upload", upload_id), RESUMABLE_PATIENCE_S) as claim:
            upload = await hs.database.read(resumable_storage.find_upload, requester.user_id, upload_id)
            if offset_bytes != upload.offset_bytes:
                raise MatrixError(409, "M_INVALID_PARAM", f"This upload goes on at offset {upload.offset_bytes}.")
            if not upload.media_id:
                upload = await append(hs, requester.user_id, upload, request, checksum, claim)
            elif _has_body(request):
                raise too_large(0)
    except Claimed:
        raise _locked() from None
    if upload.media_id and "application/json" in request.headers.get("accept", ""):
        return Response(200, _result(hs, upload), _state(hs, upload))
    return Response(204, b"", _state(hs, upload))  # "MUST acknowledge", so others ask at the upload's URL


async def _delete(hs: Resources, requester: Requester, upload_id: str) -> Response:
    try:
        async with hs.claims.hold(("upload", upload_id), RESUMABLE_PATIENCE_S):
            await hs.database.write(resumable_storage.delete_upload, requester.user_id, upload_id)
            await hs.workers.run(delete_part, temporary_folder(hs), upload_id)
    except Claimed:
        raise _locked() from None
    return Response(204, b"")


def _locked() -> MatrixError:
    return MatrixError(423, "M_UNKNOWN", "Another request is writing to this upload. Try again in a few seconds.")


def _check_type(request: Request) -> None:
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != _OFFSET_TYPE:
        raise MatrixError(415, "M_UNKNOWN", f"The content of an upload must be sent as {_OFFSET_TYPE}.")


def _has_body(request: Request) -> bool:
    return request.headers.get("content-length", "0") != "0" or "transfer-encoding" in request.headers


def _state(hs: Resources, upload: Upload) -> dict[str, str]:
    """Returns the headers that say how far an upload is."""
    if upload.media_id:
        return {"upload-offset": str(upload.length_bytes), "content-uri": mxc_uri(hs.server_name, upload.media_id)}
    expires = formatdate(upload.expires_ms / 1000, usegmt=True)
    return {"upload-offset": str(upload.offset_bytes), "upload-expires": expires}


def _result(hs: Resources, upload: Upload) -> dict[str, Any]:
    """Returns the JSON that describes the file. Empty if the upload is not finished."""
    return {"content_uri": mxc_uri(hs.server_name, upload.media_id), "info": upload.info} if upload.media_id else {}
