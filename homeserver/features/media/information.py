"""What is known of an uploaded file: its size in pixels, its duration, its BlurHash, and its first thumbnails.

The separate process decodes a picture once, while it is uploaded. So the uploader learns what belongs into the `info`
of the event, and the thumbnails that clients show first are ready when the event arrives.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Annotated, Any

import msgspec
import trio

from homeserver.features.media import storage, thumbnail_storage
from homeserver.features.media.content_headers import bare_type
from homeserver.features.media.receiving import Received
from homeserver.features.media.storage import Description
from homeserver.features.media.thumbnail_storage import Image, Size
from homeserver.features.media.thumbnails import SOURCE_TYPES, ImageType, Side, store_made
from homeserver.limits import MEDIA_DURATION_MS_MAX, MEDIA_INFO_SECONDS_MAX, THUMBNAIL_SOURCE_BYTES_MAX
from homeserver.process.workers import WorkerFailed
from homeserver.resources import Resources

_log = logging.getLogger(__name__)

_IMAGES = "homeserver.features.media.file_examiner:examine_image"
_RECORDINGS = "homeserver.features.media.file_examiner:examine_recording"

# What clients ask for in a timeline, and in a list of pictures.
_FIRST_SIZES = ((800, 600), (320, 240))

Pixels = Annotated[int, msgspec.Meta(ge=0, le=65_535)]


class _Thumbnail(msgspec.Struct, array_like=True, frozen=True):
    width: Side
    height: Side
    content: bytes
    content_type: ImageType


class _Picture(msgspec.Struct, array_like=True, frozen=True):
    """The answer of `examine_image`. The process has read a hostile file, so it is trusted as little as the file."""

    content_type: ImageType
    width: Side
    height: Side
    is_animated: bool
    blurhash: Annotated[str, msgspec.Meta(max_length=100, pattern=r"^[!-~]*$")]
    thumbnails: Annotated[list[_Thumbnail], msgspec.Meta(max_length=len(_FIRST_SIZES))]


class _Recording(msgspec.Struct, array_like=True, frozen=True):
    """The answer of `examine_recording`."""

    milliseconds: Annotated[int, msgspec.Meta(ge=0, le=MEDIA_DURATION_MS_MAX)]
    width: Pixels
    height: Pixels


class Findings(msgspec.Struct, frozen=True):
    """What the examination has found. info: as in the content of an event. picture: for `store_findings`.

    failure: why no thumbnail can be made of a picture; "" if one can, or if it is none.
    """

    info: dict[str, Any]
    picture: _Picture | None = None
    failure: str = ""


async def examine(hs: Resources, received: Received, description: Description) -> Findings:
    """Examines content that has arrived. Takes a few seconds at most; what is not known by then is left out."""
    content_type = bare_type(description.content_type)
    info: dict[str, Any] = {"mimetype": content_type, "size": received.size_bytes}
    is_recording = content_type.startswith(("audio/", "video/")) or content_type == "application/ogg"
    if not received.size_bytes or not (is_recording or content_type in SOURCE_TYPES):
        return Findings(info)
    source = str(received.data) if isinstance(received.data, Path) else received.data
    with trio.move_on_after(MEDIA_INFO_SECONDS_MAX):  # others may keep the process busy
        try:
            if is_recording:
                answer = await hs.workers.run_process(_RECORDINGS, source, timeout_s=MEDIA_INFO_SECONDS_MAX)
                return Findings({**info, **_info_of_recording(msgspec.convert(answer, _Recording))})
            if received.size_bytes > THUMBNAIL_SOURCE_BYTES_MAX:
                return Findings(info, failure="too_large")
            sizes = [list(size) for size in _FIRST_SIZES]
            answer = await hs.workers.run_process(_IMAGES, source, sizes, timeout_s=MEDIA_INFO_SECONDS_MAX)
            picture = msgspec.convert(answer, _Picture)
            return Findings({**info, **_info_of_picture(picture)}, picture)
        except ValueError as error:  # msgspec.ValidationError too
            return Findings(info, failure="too_large" if str(error) == "too_large" else "unsupported")
        except WorkerFailed as error:  # another try may have more time
            _log.info("file not examined", extra={"reason": str(error)})
    return Findings(info)


def _info_of_picture(picture: _Picture) -> dict[str, Any]:
    info = {"mimetype": picture.content_type, "w": picture.width, "h": picture.height}
    return {**info, **_blurhash(picture.blurhash)}


def _blurhash(value: str) -> dict[str, Any]:
    # The second name is the one that clients use in events. Spec: MSC2448
    return {"blurhash": value, "xyz.amorgan.blurhash": value} if value else {}


def _info_of_recording(recording: _Recording) -> dict[str, Any]:
    found = {"duration": recording.milliseconds, "w": recording.width, "h": recording.height}
    return {name: value for name, value in found.items() if value}


async def store_findings(hs: Resources, media_id: str, findings: Findings) -> None:
    """Stores the thumbnails of a picture that has been uploaded, or why there are none."""
    if findings.picture is None and not findings.failure:
        return
    media = await hs.database.read(storage.find_media, hs.server_name, media_id)
    if media is None:
        return
    picture = findings.picture
    image = Image(failure=findings.failure)
    if picture is not None:
        image = Image(picture.content_type, picture.width, picture.height, picture.is_animated)
        for each in picture.thumbnails:
            size = Size("scale", each.width, each.height, False)
            await store_made(hs, media, image, size, each.content, each.content_type)
    if picture is None or not picture.thumbnails:
        await hs.database.note(thumbnail_storage.store_image, media.media_nid, image)
