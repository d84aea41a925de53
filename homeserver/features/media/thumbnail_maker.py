"""Makes a thumbnail in a separate process (`homeserver.process.workers`), because the file may be hostile.

It imports nothing of the server but its limits, so that the process starts quickly and offers little to exploit. Spec:
client-server-api/#thumbnails
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from PIL import Image, ImageFile

# The plugins of the supported formats, imported by name: Pillow would otherwise import all of its plugins.
from PIL import AvifImagePlugin, GifImagePlugin, JpegImagePlugin, WebPImagePlugin  # noqa: F401  isort: skip

from homeserver.features.media.thumbnail_colours import finished, fix_transparency, scalable
from homeserver.limits import (
    THUMBNAIL_ANIMATION_PIXELS_MAX,
    THUMBNAIL_ANIMATION_RESULT_PIXELS_MAX,
    THUMBNAIL_FRAMES_MAX,
    THUMBNAIL_JPEG_PIXELS_MAX,
    THUMBNAIL_PIXELS_MAX,
    THUMBNAIL_SIDE_MAX,
)

CONTENT_TYPES = {
    "PNG": "image/png",
    "JPEG": "image/jpeg",
    "MPO": "image/jpeg",  # a JPEG followed by others, as phones make it; the first one is read
    "GIF": "image/gif",
    "WEBP": "image/webp",
    "AVIF": "image/avif",
}
_FORMATS = ("PNG", "JPEG", "GIF", "WEBP", "AVIF")
_ANIMATED_FORMATS = frozenset({"PNG", "GIF", "WEBP", "AVIF"})

_PIXEL_BYTES_MIN = 32  # a scan header and some data

TOO_LARGE = "too_large"
UNSUPPORTED = "unsupported"

_ORIENTATION = 0x0112
# How to turn an image upright, by its EXIF orientation. EXIF 2.32, table "Orientation"
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_REDUCING_GAP = 2.0  # first shrinks by whole factors to twice the size: looks as good, several times as fast
_JPEG_QUALITY = 82
_WEBP_QUALITY = 75
_PLAYS_MAX = 65_535  # the limit of WebP

Box = tuple[float, float, float, float]


def make_thumbnail(data: bytes, method: str, width: int, height: int, animated: bool) -> list[Any]:
    """Returns [thumbnail or None, its type, [content type of the image, its width, height, whether it is animated]].

    None: the image already fits, so it is its own thumbnail. Raises ValueError with TOO_LARGE or UNSUPPORTED.
    """
    try:
        return _make_of(data, method, (width, height), animated, whole=True)
    except (MemoryError, Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise ValueError(TOO_LARGE) from None
    except Exception as error:
        # Decoders raise all kinds of exceptions (OSError, SyntaxError, struct.error, zlib.error, IndexError, …).
        if str(error) == TOO_LARGE:
            raise ValueError(TOO_LARGE) from None
    if not (mended := _mend_cut_off(data)):
        raise ValueError(UNSUPPORTED)
    try:
        return _make_of(mended, method, (width, height), animated, whole=False)
    except (MemoryError, Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise ValueError(TOO_LARGE) from None
    except Exception as error:  # as above
        raise ValueError(str(error) if str(error) == TOO_LARGE else UNSUPPORTED) from None


def read_image(data: bytes) -> list[Any]:
    """Returns [content type, width, height] of an image, as it is shown. Raises ValueError with UNSUPPORTED."""
    try:
        with _pillow_settings(True), Image.open(io.BytesIO(data), formats=_FORMATS) as image:
            _check_size(image)
            width, height = image.size
            turned = not getattr(image, "is_animated", False) and _read_orientation(image) >= 5
            return [CONTENT_TYPES[image.format or ""], *((height, width) if turned else (width, height))]
    except Exception:  # as above
        raise ValueError(UNSUPPORTED) from None


def _make_of(data: bytes, method: str, box: tuple[int, int], animated: bool, *, whole: bool) -> list[Any]:
    with _pillow_settings(whole), Image.open(io.BytesIO(data), formats=_FORMATS) as image:
        return _make(image, method, box, animated)


def _mend_cut_off(data: bytes) -> bytes:
    """Returns a readable form of a truncated PNG, JPEG or WebP; empty if it is none, or has little more than headers.

    Browsers show what there is of a truncated image. Any other defect is not an accident, and remains an error.
    """
    for start, pixels, end in ((b"\x89PNG\r\n\x1a\n", b"IDAT", b"IEND"), (b"\xff\xd8\xff", b"\xff\xda", b"\xff\xd9")):
        if data.startswith(start):
            is_cut_off = end not in data[-64:] and 0 <= data.find(pixels) < len(data) - _PIXEL_BYTES_MIN
            return data if is_cut_off else b""
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        # The decoder rejects a file that is shorter than its header says, but accepts one that ends in zeros.
        missing = int.from_bytes(data[4:8], "little") + 8 - len(data)
        return data + bytes(missing) if 0 < missing <= len(data) else b""
    return b""


@contextmanager
def _pillow_settings(whole: bool) -> Iterator[None]:
    """Sets Pillow's settings, which are global, and restores them: in tests, the process is the tests' own.

    whole: a truncated file is an error.
    """
    before = Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES
    with warnings.catch_warnings():
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES = THUMBNAIL_JPEG_PIXELS_MAX, not whole
        try:
            yield
        finally:
            Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES = before


def _make(image: Image.Image, method: str, box: tuple[int, int], animated: bool) -> list[Any]:
    _check_size(image)
    content_type = CONTENT_TYPES[image.format or ""]
    is_animated = image.format in _ANIMATED_FORMATS and bool(getattr(image, "is_animated", False))
    fix_transparency(image)  # before decoding, which reading the orientation may trigger
    orientation = 1 if is_animated else _read_orientation(image)
    turned = orientation >= 5
    seen = (image.height, image.width) if turned else (image.width, image.height)
    about = [content_type, *seen, is_animated]
    if seen[0] <= box[0] and seen[1] <= box[1] and (animated or not is_animated):
        return [None, content_type, about]
    if turned:
        box = (box[1], box[0])
    part, size = _place(image.size, method, box)
    if is_animated and animated:
        plays = _plays(image)
        frames = _shrink_frames(image, part, size)
        if frames is not None:
            return [_encode_animation(*frames, plays), "image/webp", about]
        image.seek(0)
    icc_profile = image.info.get("icc_profile")
    small, icc_profile = finished(_shrink(image, part, size), icc_profile)
    if orientation in _TURNS:
        small = small.transpose(_TURNS[orientation])
    encoded, encoded_type = _encode(small, icc_profile)
    return [encoded, encoded_type, about]


def _check_size(image: Image.Image) -> None:
    """Checks the dimensions that the file declares, before anything is decoded."""
    width, height = image.size
    pixels_max = THUMBNAIL_JPEG_PIXELS_MAX if image.format in ("JPEG", "MPO") else THUMBNAIL_PIXELS_MAX
    if width * height > pixels_max or max(width, height) > THUMBNAIL_SIDE_MAX:
        raise ValueError(TOO_LARGE)


def _read_orientation(image: Image.Image) -> int:
    try:
        orientation = image.getexif().get(_ORIENTATION, 1)
    except Exception:  # broken EXIF data must not prevent the thumbnail
        return 1
    return orientation if isinstance(orientation, int) and 1 <= orientation <= 8 else 1


def _place(source: tuple[int, int], method: str, box: tuple[int, int]) -> tuple[Box, tuple[int, int]]:
    """Returns the part of the source to show, and its size in the thumbnail. Never enlarges."""
    width, height = source
    if method == "scale":
        factor = min(1.0, box[0] / width, box[1] / height)
        return (0, 0, width, height), (max(1, round(width * factor)), max(1, round(height * factor)))
    # The largest part with the box's aspect ratio, from the middle.
    factor = min(width / box[0], height / box[1])
    part_width, part_height = box[0] * factor, box[1] * factor
    left, top = (width - part_width) / 2, (height - part_height) / 2
    part = (left, top, min(left + part_width, width), min(top + part_height, height))
    if factor >= 1:
        return part, box
    return part, (max(1, round(part_width)), max(1, round(part_height)))


def _shrink(image: Image.Image, part: Box, size: tuple[int, int]) -> Image.Image:
    """Returns the part, scaled to the size, in a mode of `scalable`."""
    before = image.size
    if image.format in ("JPEG", "MPO"):
        # Decoding only the low frequencies takes an eighth of the time for the smallest thumbnails.
        factor = size[0] / (part[2] - part[0])
        image.draft(None, (round(before[0] * factor * _REDUCING_GAP), round(before[1] * factor * _REDUCING_GAP)))
        across, down = image.size[0] / before[0], image.size[1] / before[1]
        right, bottom = min(part[2] * across, image.size[0]), min(part[3] * down, image.size[1])
        part = (part[0] * across, part[1] * down, right, bottom)
        if image.size[0] * image.size[1] > THUMBNAIL_PIXELS_MAX:
            raise ValueError(TOO_LARGE)
    image.load()
    return scalable(image).resize(size, Image.Resampling.LANCZOS, box=part, reducing_gap=_REDUCING_GAP)


def _encode(image: Image.Image, icc_profile: bytes | None) -> tuple[bytes, str]:
    """Encodes as JPEG, or as PNG if partly transparent; with the colour profile and no other metadata."""
    options: dict[str, Any] = {} if icc_profile is None else {"icc_profile": icc_profile}
    result = io.BytesIO()
    if image.mode == "RGBA" and image.getchannel("A").getextrema() != (255, 255):
        level = 6 if image.width * image.height <= 16_384 else 3
        _without_metadata(image).save(result, "PNG", compress_level=level, **options)
        return result.getvalue(), "image/png"
    if image.mode == "RGBA":
        image = image.convert("RGB")
    _without_metadata(image).save(result, "JPEG", quality=_JPEG_QUALITY, **options)
    return result.getvalue(), "image/jpeg"


def _without_metadata(image: Image.Image) -> Image.Image:
    """Copies the pixels, because Pillow would write all other metadata again: comments, EXIF with locations."""
    clean = Image.new(image.mode, image.size)
    clean.paste(image)
    return clean


def _shrink_frames(image: Image.Image, part: Box, size: tuple[int, int]) -> tuple[list[Image.Image], list[int]] | None:
    """Returns every frame of an animation with its duration in milliseconds; None if it is too long to be worth it."""
    frames: list[Image.Image] = []
    durations: list[int] = []
    source = image.size
    pixels = 0
    if getattr(image, "default_image", False):  # shown by viewers without animation; not part of the animation
        image.seek(1)
    while True:
        if image.size != source:  # a later frame must not exceed the checked size
            raise ValueError(UNSUPPORTED)
        pixels += source[0] * source[1]
        if (
            len(frames) >= THUMBNAIL_FRAMES_MAX
            or pixels > THUMBNAIL_ANIMATION_PIXELS_MAX
            or (len(frames) + 1) * size[0] * size[1] > THUMBNAIL_ANIMATION_RESULT_PIXELS_MAX
        ):
            return None
        image.load()
        frame = image.convert("RGBa" if image.mode == "RGBA" else "RGB" if image.mode == "RGB" else "RGBA")
        if frame.mode == "RGBA":
            frame = frame.convert("RGBa")
        small = frame.resize(size, Image.Resampling.BILINEAR, box=part, reducing_gap=_REDUCING_GAP)
        frames.append(small.convert("RGBA") if small.mode == "RGBa" else small)
        durations.append(_duration_ms(image))
        try:
            image.seek(image.tell() + 1)
        except EOFError:
            return frames, durations


def _plays(image: Image.Image) -> int:
    """Returns how often an animation plays, 0 for ever. Call it at the first frame."""
    loop = image.info.get("loop")
    if image.format != "GIF":
        return min(loop, _PLAYS_MAX) if isinstance(loop, int) and loop > 0 else 0
    if loop is None:
        return 1
    # GIF counts repetitions, the other formats count plays.
    return min(loop + 1, _PLAYS_MAX) if isinstance(loop, int) and loop > 0 else 0


def _duration_ms(image: Image.Image) -> int:
    duration = image.info.get("duration", 0)
    try:
        milliseconds = int(duration)
    except (TypeError, ValueError, OverflowError):
        return 100
    # As browsers treat frames with a duration near zero.
    return min(milliseconds, 60_000) if milliseconds > 10 else 100


def _encode_animation(frames: list[Image.Image], durations: list[int], plays: int) -> bytes:
    result = io.BytesIO()
    frames[0].save(
        result,
        "WEBP",
        save_all=True,
        append_images=frames[1:],
        duration=durations,
        loop=plays,
        quality=_WEBP_QUALITY,
        method=0,
        minimize_size=False,
        allow_mixed=False,
    )
    return result.getvalue()
