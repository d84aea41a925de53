"""Images for tests, friendly and hostile, made here so that nothing binary has to be stored."""

from __future__ import annotations

import io
import struct
import zlib
from typing import Any

from PIL import Image


def encoded(image: Image.Image, form: str, **options: Any) -> bytes:
    """The image as a file."""
    result = io.BytesIO()
    image.save(result, form, **options)
    return result.getvalue()


def opened(data: bytes) -> Image.Image:
    """The file as an image, decoded."""
    image = Image.open(io.BytesIO(data))
    image.load()
    return image


def gradient(width: int, height: int, mode: str = "RGB") -> Image.Image:
    """Dark on the left, bright on the right; of RGBA images the upper half is transparent."""
    grey = Image.linear_gradient("L").rotate(90).resize((width, height))
    if mode == "RGBA":
        alpha = Image.new("L", (width, height), 255)
        alpha.paste(0, (0, 0, width, height // 2))
        return Image.merge("RGBA", (grey, grey, grey, alpha))
    return grey.convert(mode)


def frames(count: int, width: int = 40, height: int = 30) -> list[Image.Image]:
    """Pictures that differ."""
    return [Image.new("RGB", (width, height), (255 * number // count, 0, 128)) for number in range(count)]


def animation(count: int, form: str, width: int = 40, height: int = 30) -> bytes:
    """An animated GIF, PNG or WEBP."""
    first, *rest = frames(count, width, height)
    return encoded(first, form, save_all=True, append_images=rest, duration=50, loop=0)


def png_chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png_bomb(width: int, height: int) -> bytes:
    """A valid PNG of a few kilobytes that is huge once decoded."""
    squeeze = zlib.compressobj(9)
    row = b"\0" * (1 + width * 4)
    body = b"".join(squeeze.compress(row) for _ in range(height)) + squeeze.flush()
    header = struct.pack(">IIBBBBB", width, height, 8, 6, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + png_chunk(b"IHDR", header) + png_chunk(b"IDAT", body) + png_chunk(b"IEND", b"")


def png_claim(width: int, height: int) -> bytes:
    """A PNG that only claims to be of that size."""
    header = struct.pack(">IIBBBBB", width, height, 8, 6, 0, 0, 0)
    body = zlib.compress(b"\0" * 100)
    return b"\x89PNG\r\n\x1a\n" + png_chunk(b"IHDR", header) + png_chunk(b"IDAT", body) + png_chunk(b"IEND", b"")


def png_text_bomb() -> bytes:
    """A small PNG whose comment decompresses to 100 megabytes."""
    picture = encoded(gradient(200, 200), "PNG")
    comment = png_chunk(b"zTXt", b"Comment\0\0" + zlib.compress(b"\0" * 100_000_000))
    return picture[:33] + comment + picture[33:]


def gif_claim(width: int, height: int, frame_width: int, frame_height: int) -> bytes:
    """A GIF whose one frame is larger than its screen."""
    head = b"GIF89a" + struct.pack("<HHBBB", width, height, 0x80, 0, 0) + b"\0\0\0\xff\xff\xff"
    frame = b"," + struct.pack("<HHHHB", 0, 0, frame_width, frame_height, 0) + b"\x02\x02\x4c\x01\0"
    return head + frame + b";"


def gif_growing() -> bytes:
    """An animation whose second frame is far outside of the screen."""
    head = b"GIF89a" + struct.pack("<HHBBB", 400, 400, 0x80, 0, 0) + b"\0\0\0\xff\xff\xff"
    small = b"," + struct.pack("<HHHHB", 0, 0, 1, 1, 0) + b"\x02\x02\x44\x01\0"
    huge = b"," + struct.pack("<HHHHB", 60_000, 60_000, 60_000, 60_000, 0) + b"\x02\x02\x44\x01\0"
    return head + small + huge + b";"


def gif_many_frames(count: int) -> bytes:
    """An animation of very many tiny frames on a large screen."""
    head = b"GIF89a" + struct.pack("<HHBBB", 1000, 1000, 0x80, 0, 0) + b"\0\0\0\xff\xff\xff"
    frame = b"," + struct.pack("<HHHHB", 0, 0, 1, 1, 0) + b"\x02\x02\x44\x01\0"
    return head + frame * count + b";"


def jpeg_claim(width: int, height: int) -> bytes:
    """A JPEG that claims another size than it has."""
    picture = bytearray(encoded(gradient(64, 64), "JPEG"))
    at = picture.index(b"\xff\xc0")
    picture[at + 5 : at + 9] = struct.pack(">HH", height, width)
    return bytes(picture)
