"""Examines an uploaded file in the separate process (`homeserver.process.workers`), because it may be hostile.

Like `thumbnail_maker` it imports little. Everything it returns is plain values, which the server checks.
"""

from __future__ import annotations

import io
import math
import struct
from contextlib import suppress
from typing import Any, BinaryIO

from PIL import Image

from homeserver.features.media.blurhash import blurhash_of
from homeserver.features.media.matroska import read_facts
from homeserver.features.media.thumbnail_maker import make_thumbnail
from homeserver.limits import MEDIA_DURATION_MS_MAX, THUMBNAIL_SIDE_MAX

# Boxes of an MP4 file that are read: a film has one for each track, and a handful before them.
_BOXES_MAX = 1_000
_TRACK_HEADER_BYTES_MAX = 1_000


def examine_image(source: bytes | str, sizes: list[list[int]]) -> list[Any]:
    """Returns [type, width, height, is animated, BlurHash, thumbnails]. Raises ValueError, see `make_thumbnail`.

    source: the content, or the path of the file. sizes: the boxes [width, height] that thumbnails have to fit into, the
    largest first. Thumbnails: [width and height of the box, content, type], for boxes that the image does not fit into.
    """
    data = _read(source)
    about: list[Any] = []
    thumbnails: list[Any] = []
    smallest = data
    for width, height in sizes:
        # The next one is made of this one: that costs little, and nobody sees the difference.
        content, kind, described = make_thumbnail(smallest, "scale", width, height, False)
        about = about or described
        if content is not None:
            thumbnails.append([width, height, content, kind])
            smallest = content
    blurhash = ""
    with suppress(Exception), Image.open(io.BytesIO(smallest)) as image:  # a picture without one is still a picture
        image.draft("RGB", (64, 64))
        blurhash = blurhash_of(image)
    return [*about, blurhash, thumbnails]


def examine_recording(source: bytes | str) -> list[int]:
    """Returns [milliseconds, width, height] of a recording or film, each 0 if it is unknown. Raises ValueError."""
    from tinytag import TinyTag  # only a process that examines recordings needs it

    with open(source, "rb") if isinstance(source, str) else io.BytesIO(source) as file:
        seconds, width, height = 0.0, 0, 0
        with suppress(Exception):  # parsers of broken files raise all kinds of exceptions
            facts = read_facts(file)
            if facts is None:
                file.seek(0)
                seconds = TinyTag.get(file_obj=file, tags=False).duration or 0.0
            else:
                seconds, width, height = facts
        if not max(width, height):
            with suppress(Exception):  # the same
                file.seek(0)
                width, height = _find_size(file)
        milliseconds = round(seconds * 1000) if math.isfinite(seconds) else 0
        milliseconds = min(max(0, milliseconds), MEDIA_DURATION_MS_MAX)
        if max(width, height) > THUMBNAIL_SIDE_MAX:
            width = height = 0
        return [milliseconds, width, height]


def _read(source: bytes | str) -> bytes:
    if isinstance(source, bytes):
        return source
    with open(source, "rb") as file:
        return file.read()


def _find_size(file: BinaryIO) -> tuple[int, int]:
    """Returns width and height of the first track of an MP4 file that has a picture. (0, 0) if there is none.

    A box has its length, its type, and then its content. ISO 14496-12, §4.2 and §8.3.2 (tkhd)
    """
    end = file.seek(0, io.SEEK_END)
    ends = [end]  # of the boxes that we are in
    at = 0
    for _ in range(_BOXES_MAX):
        while ends and at >= ends[-1]:
            ends.pop()
        if not ends:
            break
        file.seek(at)
        header = file.read(16)
        if len(header) < 8 or (at == 0 and header[4:8] != b"ftyp"):
            break
        length, begin = int.from_bytes(header[:4]), at + 8
        if length == 1:
            length, begin = int.from_bytes(header[8:16]), at + 16
        if length == 0:
            length = end - at
        if length < begin - at:
            break
        if header[4:8] in (b"moov", b"trak"):
            ends.append(min(at + length, end))
            at = begin
            continue
        if header[4:8] == b"tkhd" and length <= _TRACK_HEADER_BYTES_MAX:
            file.seek(begin)
            size = _size_of_track(file.read(at + length - begin))
            if all(0 < side <= THUMBNAIL_SIDE_MAX for side in size):
                return size
        at += length
    return 0, 0


def _size_of_track(header: bytes) -> tuple[int, int]:
    """Returns width and height as the track is shown: turned by 90° if its matrix says so."""
    tail = header[-44:]  # nine numbers of the matrix, then width and height with 16 bits behind the point
    if len(tail) < 44:
        return 0, 0
    straight, turned, *_ = struct.unpack(">9i", tail[:36])
    width, height = (number >> 16 for number in struct.unpack(">2I", tail[36:]))
    return (height, width) if straight == 0 and turned != 0 else (width, height)
