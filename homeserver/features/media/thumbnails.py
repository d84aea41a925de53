"""Thumbnails: made at the upload or on first request, in fixed sizes, stored. Spec: client-server-api/#thumbnails"""

from __future__ import annotations

import hashlib
from typing import Annotated, Literal

import msgspec
from msgspec.structs import replace

from homeserver.api.routes import Request, Response
from homeserver.authenticate import Requester
from homeserver.blobs import BlobError
from homeserver.database import DatabaseUnavailable, Transaction
from homeserver.errors import MatrixError, invalid_param, not_found
from homeserver.features.media import sealed_blobs, storage, thumbnail_storage
from homeserver.features.media.content_headers import bare_type, stored_headers
from homeserver.features.media.downloads import (
    TimeoutMs,
    check_media_id,
    get_media,
    get_public_media,
    note_used,
)
from homeserver.features.media.operations import routes
from homeserver.features.media.receiving import new_blob_key
from homeserver.features.media.serving import CACHE_PRIVATE, CACHE_PUBLIC, serve
from homeserver.features.media.storage import Media
from homeserver.features.media.thumbnail_storage import Image, Size, Thumbnail
from homeserver.federation.identifiers import ServerName
from homeserver.limits import (
    THUMBNAIL_FAILURE_MS,
    THUMBNAIL_INLINE_BYTES_MAX,
    THUMBNAIL_SIDE_MAX,
    THUMBNAIL_SOURCE_BYTES_MAX,
    THUMBNAIL_TIMEOUT_S,
    THUMBNAILS_AT_ONCE_MAX,
    THUMBNAILS_PER_MEDIA_MAX,
)
from homeserver.moments import is_recent
from homeserver.process.workers import WorkerFailed
from homeserver.resources import Resources

# The spec's sizes, one more for high-resolution screens, and an unbounded one: the image itself, as a still if needed.
SCALE_SIZES = ((320, 240), (640, 480), (800, 600), (1600, 1200), (THUMBNAIL_SIDE_MAX, THUMBNAIL_SIDE_MAX))
CROP_SIDES = (32, 96, 320, 640, 800, 1600)

# Content types for which thumbnails are made; the decoder finds out the real format.
SOURCE_TYPES = frozenset(
    {
        "image/png",
        "image/apng",
        "image/jpeg",
        "image/jpg",
        "image/gif",
        "image/webp",
        "image/avif",
    }
)
_EXTENSIONS = {
    "image/png": "png",
    "image/jpeg": "jpg",
    "image/gif": "gif",
    "image/webp": "webp",
    "image/avif": "avif",
}
_MAKER = "homeserver.features.media.thumbnail_maker:make_thumbnail"


Side = Annotated[int, msgspec.Meta(gt=0, le=THUMBNAIL_SIDE_MAX)]
ImageType = Literal["image/png", "image/jpeg", "image/gif", "image/webp", "image/avif"]


class _About(msgspec.Struct, array_like=True, frozen=True):
    """The image, as the separate process has seen it."""

    content_type: ImageType
    width: Side
    height: Side
    is_animated: bool


class _Made(msgspec.Struct, array_like=True, frozen=True):
    """The result of the separate process. It has read a hostile file, so it is trusted as little as the file."""

    content: bytes | None
    content_type: ImageType
    about: _About


class ThumbnailQuery(msgspec.Struct, frozen=True):
    width: int
    height: int
    method: Literal["crop", "scale"] = "scale"
    timeout_ms: TimeoutMs = 20_000
    animated: bool = False


class DeprecatedThumbnailQuery(ThumbnailQuery, frozen=True):
    allow_remote: bool = True
    allow_redirect: bool = False


@routes.get("/_matrix/client/v1/media/thumbnail/{server_name}/{media_id}", rate_limit="media", allow_guest=True)
async def get_content_thumbnail_authed(
    hs: Resources, requester: Requester, server_name: ServerName, media_id: str, query: ThumbnailQuery, request: Request
) -> Response:
    """Serves a thumbnail of an image."""
    size = read_size(query)
    thumbnail = await get_thumbnail(hs, server_name, media_id, size, query.timeout_ms)
    return await _serve(hs, request, thumbnail, CACHE_PRIVATE, may_redirect=True)


@routes.get("/_matrix/media/v3/thumbnail/{server_name}/{media_id}", rate_limit="media")
async def get_content_thumbnail(
    hs: Resources, server_name: ServerName, media_id: str, query: DeprecatedThumbnailQuery, request: Request
) -> Response:
    """Serves a thumbnail of an image that was stored as public."""
    size = read_size(query)
    await get_public_media(hs, server_name, media_id)
    thumbnail = await get_thumbnail(hs, server_name, media_id, size, query.timeout_ms)
    return await _serve(hs, request, thumbnail, CACHE_PUBLIC, may_redirect=query.allow_redirect)


async def _serve(
    hs: Resources, request: Request, thumbnail: Thumbnail, cache_control: str, *, may_redirect: bool
) -> Response:
    return await serve(
        hs,
        request,
        thumbnail.blob_key,
        thumbnail.size_bytes,
        tag=hashlib.sha256(thumbnail.blob_key.encode("ascii")).digest(),
        content_type=thumbnail.content_type,
        disposition=thumbnail_disposition(thumbnail.content_type),
        cache_control=cache_control,
        may_redirect=may_redirect,
        content=thumbnail.content,
    )


def thumbnail_disposition(content_type: str) -> str:
    """Spec: "MUST be `inline`, and SHOULD contain a file name (e.g. `thumbnail.png`)"."""
    return f"inline; filename=thumbnail.{_EXTENSIONS.get(content_type, 'bin')}"


def read_size(query: ThumbnailQuery) -> Size:
    """Returns the smallest available size that is not smaller than requested. Raises M_INVALID_PARAM."""
    width, height = query.width, query.height
    if width <= 0 or height <= 0:
        raise invalid_param("width and height must be greater than 0.")
    if query.method == "crop":
        longer = max(width, height)
        for side in CROP_SIDES:
            if longer <= side:
                # The requested aspect ratio, rounded up so that neither side is too small.
                return Size("crop", -(-width * side // longer), -(-height * side // longer), query.animated)
    for box_width, box_height in SCALE_SIZES:
        if width <= box_width and height <= box_height:
            return Size("scale", box_width, box_height, query.animated)
    return Size("scale", *SCALE_SIZES[-1], query.animated)


async def get_thumbnail(
    hs: Resources, server_name: ServerName, media_id: str, size: Size, timeout_ms: int
) -> Thumbnail:
    """Returns the thumbnail, and makes it if necessary. Raises M_UNKNOWN, M_TOO_LARGE, and what `get_media` raises."""
    check_media_id(media_id)
    media, image, thumbnail, size = await hs.database.read(look_up, server_name, media_id, size)
    if media is None:
        media = await get_media(hs, server_name, media_id, timeout_ms)
        _, image, thumbnail, size = await hs.database.read(look_up, server_name, media_id, size)
    else:
        note_used(hs, media)
    if thumbnail is not None:
        return thumbnail
    if bare_type(media.description.content_type) not in SOURCE_TYPES:
        raise _failure_error("unsupported", media)
    if image is not None and image.failure and is_recent(image.checked_ms, hs.now_ms(), THUMBNAIL_FAILURE_MS):
        raise _failure_error(image.failure, media)
    return await hs.flights.join(hs.nursery, ("thumbnail", media.media_nid, size), _make, hs, media, size)


def look_up(
    tx: Transaction, server_name: ServerName, media_id: str, size: Size
) -> tuple[Media | None, Image | None, Thumbnail | None, Size]:
    """Returns the file, its Image, its thumbnail, and the size to make, which may differ from the requested one."""
    media = storage.find_served(tx, server_name, media_id)
    if media is None:
        return None, None, None, size
    image = thumbnail_storage.find_image(tx, media.media_nid)
    if image is None or image.failure:
        return media, image, None, size
    if not image.is_animated and size.animated:
        size = replace(size, animated=False)
    if _is_own_thumbnail(image, size):
        return media, image, _original(media, image), size
    thumbnail = thumbnail_storage.find_thumbnail(tx, media.media_nid, size)
    if thumbnail is None and thumbnail_storage.count_thumbnails(tx, media.media_nid) >= THUMBNAILS_PER_MEDIA_MAX:
        # Too many aspect ratios were requested: from now on use a size of the fixed set that is large enough.
        box = next(box for box in SCALE_SIZES if size.width <= box[0] and size.height <= box[1])
        size = Size("scale", *box, size.animated)
        if _is_own_thumbnail(image, size):
            return media, image, _original(media, image), size
        thumbnail = thumbnail_storage.find_thumbnail(tx, media.media_nid, size)
    return media, image, thumbnail, size


def _is_own_thumbnail(image: Image, size: Size) -> bool:
    """Returns whether to serve the image itself: it is not larger than requested, and not animated unless allowed."""
    return image.width <= size.width and image.height <= size.height and (size.animated or not image.is_animated)


def _original(media: Media, image: Image) -> Thumbnail:
    return Thumbnail(image.content_type, media.blob.key, media.blob.size_bytes)


async def _make(hs: Resources, media: Media, size: Size) -> Thumbnail:
    """Makes a thumbnail in the separate process and stores it."""
    async with hs.flights.limiter("thumbnails", THUMBNAILS_AT_ONCE_MAX):
        if media.blob.size_bytes > THUMBNAIL_SOURCE_BYTES_MAX:
            raise await _fail(hs, media, "too_large")
        try:
            data = await sealed_blobs.get(hs, media.blob.key, media.blob.size_bytes)
        except KeyError:
            raise not_found("The content of this media has been lost.") from None
        try:
            answer = await hs.workers.run_process(
                _MAKER, data, size.method, size.width, size.height, size.animated, timeout_s=THUMBNAIL_TIMEOUT_S
            )
            made = msgspec.convert(answer, _Made)
        except msgspec.ValidationError as error:  # also a ValueError; the process is no longer trustworthy
            raise await _fail(hs, media, "unsupported") from error
        except ValueError as error:
            raise await _fail(hs, media, "too_large" if str(error) == "too_large" else "unsupported") from error
        except WorkerFailed as error:  # out of memory or time: in either case too large for us
            raise await _fail(hs, media, "too_large") from error
        del data, answer
    image = Image(made.about.content_type, made.about.width, made.about.height, made.about.is_animated)
    if made.content is None:
        await hs.database.note(thumbnail_storage.store_image, media.media_nid, image)
        return _original(media, image)
    size = replace(size, animated=size.animated and image.is_animated)
    return await store_made(hs, media, image, size, made.content, made.content_type)


async def store_made(
    hs: Resources, media: Media, image: Image, size: Size, content: bytes, content_type: str
) -> Thumbnail:
    """Stores a thumbnail that has been made. Returns it; if it cannot be stored, with its content."""
    number = sealed_blobs.number_of(media.blob.key)
    key = new_blob_key(hashlib.sha256(content).digest(), hs.now_ms(), number)
    small = len(content) <= THUMBNAIL_INLINE_BYTES_MAX
    thumbnail = Thumbnail(content_type, key, len(content), content if small else None)
    try:
        if not small:
            await sealed_blobs.put(hs, key, content, stored_headers(content_type))
        return await hs.database.write(thumbnail_storage.store_thumbnail, media.media_nid, image, size, thumbnail)
    except (DatabaseUnavailable, BlobError):  # serve it anyway, and make it again next time
        return replace(thumbnail, content=content)
    except KeyError:  # the file was deleted meanwhile, and its key with it
        raise not_found("This media has been deleted.") from None
    except MatrixError:  # the file was deleted meanwhile
        await hs.blobs.delete(key)
        raise


async def _fail(hs: Resources, media: Media, failure: str) -> MatrixError:
    """Stores why there is no thumbnail, so that a hostile file costs its time once. Returns the error to raise."""
    await hs.database.note(thumbnail_storage.store_image, media.media_nid, Image(failure=failure))
    return _failure_error(failure, media)


def _failure_error(failure: str, media: Media) -> MatrixError:
    if failure == "too_large":
        return MatrixError(502 if media.is_remote else 413, "M_TOO_LARGE", "Content is too large to thumbnail.")
    return MatrixError(400, "M_UNKNOWN", "Cannot generate thumbnails for the requested content.")
