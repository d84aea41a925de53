"""The colours of a thumbnail: converts every pixel format of the decoders to grey, RGB or RGBA.

Runs in the separate process of `homeserver.process.workers`, and imports nothing of the server. Pillow's plain
conversions have pitfalls: from 16 bits they clip everything above 255, and they look for the transparent value of a PNG
among pixels that they have already scaled.
"""

from __future__ import annotations

import io
import re
from typing import Any

from PIL import Image, ImageCms, ImageMath

# A larger profile is applied; a smaller one stays in the thumbnail, which preserves more colours.
ICC_BYTES_MAX = 16 * 1024
_SIXTEEN_BITS = frozenset({"I", "I;16", "I;16B", "I;16L", "I;16N"})
_BITS = re.compile(r"(?:1|[A-Z]+;(\d+)B?)")
_SPACES = {"RGB": b"RGB ", "RGBA": b"RGB ", "L": b"GRAY", "CMYK": b"CMYK"}


def fix_transparency(image: Image.Image) -> None:
    """Converts the transparent value of a PNG to the scale of decoded pixels. Call it before decoding."""
    transparent: Any = image.info.get("transparency")
    if image.format != "PNG" or image.mode == "P" or transparent is None or isinstance(transparent, bytes):
        return
    tile: Any = getattr(image, "tile", None)
    raw = tile[0][3] if tile else ""
    raw_mode = raw[0] if isinstance(raw, tuple) else raw
    match = _BITS.fullmatch(str(raw_mode))
    bits = int(match[1] or 1) if match else 8
    if isinstance(transparent, tuple) and bits == 16:
        image.info["transparency"] = tuple(value >> 8 for value in transparent)
    elif isinstance(transparent, int) and bits < 8:
        image.info["transparency"] = 255 if transparent and bits == 1 else transparent * 255 // ((1 << bits) - 1)


def scalable(image: Image.Image) -> Image.Image:
    """Returns the image in a mode that can be scaled: L, I (16 bits of grey), RGB, CMYK, or RGBa.

    RGBa: colours are multiplied by their opacity, so that transparent areas do not bleed.
    """
    transparent = image.info.get("transparency")
    if image.mode in _SIXTEEN_BITS:
        wide = image.convert("I")
        return wide if not isinstance(transparent, int) else _without_grey(wide, transparent)
    if image.mode == "1":
        image = image.convert("L")
        if isinstance(transparent, int):
            image.info["transparency"] = transparent
    if image.mode in ("L", "RGB", "CMYK") and "transparency" not in image.info:
        return image
    if image.mode in ("LA", "PA", "La") or "transparency" in image.info:
        image = image.convert("RGBA")
    elif image.mode not in ("RGBA", "RGBa"):
        return image.convert("L" if image.mode == "F" else "RGB")
    return image.convert("RGBa") if image.mode == "RGBA" else image


def _without_grey(wide: Image.Image, transparent: int) -> Image.Image:
    opaque = ImageMath.lambda_eval(lambda args: args["convert"](args["grey"] != transparent, "L"), grey=wide)
    opacity = opaque.point(lambda value: 255 if value else 0)
    return Image.merge("LA", (_to_8_bits(wide), opacity)).convert("RGBA").convert("RGBa")


def _to_8_bits(wide: Image.Image) -> Image.Image:
    return wide.point(lambda value: value * (1 / 257) + 0.5).convert("L")


def finished(small: Image.Image, icc_profile: object) -> tuple[Image.Image, bytes | None]:
    """Returns the scaled image as L, RGB or RGBA, and the colour profile to store with it.

    A profile that cannot be stored with it is applied: of a CMYK image, of another kind of image, or a large one.
    """
    if small.mode == "I":
        small = _to_8_bits(small)
    elif small.mode == "RGBa":
        small = small.convert("RGBA")
    profile = icc_profile if isinstance(icc_profile, bytes) and len(icc_profile) > 128 else None
    if profile is not None and profile[16:20] == _SPACES[small.mode]:
        if small.mode != "CMYK" and len(profile) <= ICC_BYTES_MAX:
            return small, profile
        small = _apply(small, profile)
    return (small.convert("RGB") if small.mode == "CMYK" else small), None


def _apply(small: Image.Image, profile: bytes) -> Image.Image:
    mode = "RGBA" if small.mode == "RGBA" else "RGB"
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        applied = ImageCms.profileToProfile(small, source, ImageCms.createProfile("sRGB"), outputMode=mode)
    except (ImageCms.PyCMSError, OSError, ValueError):  # a broken profile must not prevent the thumbnail
        return small
    return applied or small
