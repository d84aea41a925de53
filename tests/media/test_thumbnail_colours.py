"""A thumbnail is the picture, smaller: its colours, its transparency, how often it moves. Spec: #thumbnails"""

from __future__ import annotations

import io
import struct
import zlib
from typing import Any

import pytest
from PIL import Image, ImageCms

from homeserver.features.media.thumbnail_maker import make_thumbnail
from tests.media import images

SIZE = 600, 200
Colour = tuple[int | None, int | None, int | None, int]


def png(bits: int, colour_type: int, row: bytes, *chunks: bytes) -> bytes:
    """A PNG written by hand, each of whose rows is `row`."""
    header = struct.pack(">IIBBBBB", *SIZE, bits, colour_type, 0, 0, 0)
    pixels = images.png_chunk(b"IDAT", zlib.compress((b"\0" + row) * SIZE[1]))
    parts = (images.png_chunk(b"IHDR", header), *chunks, pixels, images.png_chunk(b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def row_of_16_bits(*parts: Any) -> bytes:
    """Each pixel has the parts, functions of a value that rises from 0 at the left to 65535 at the right."""
    values = [x * 65535 // (SIZE[0] - 1) for x in range(SIZE[0])]
    return b"".join(struct.pack(f">{len(parts)}H", *(part(value) for part in parts)) for value in values)


def transparent(*values: int) -> bytes:
    """The chunk that makes one value of a PNG without an alpha channel transparent."""
    return images.png_chunk(b"tRNS", struct.pack(f">{len(values)}H", *values))


def palette() -> bytes:
    picture = Image.new("P", SIZE, 1)
    picture.putpalette([0, 0, 0, 10, 200, 30] + [0] * 750)
    picture.paste(0, (0, 0, 300, 200))
    return images.encoded(picture, "PNG", transparency=0)


def jpeg(mode: str, colour: Any, **options: Any) -> bytes:
    return images.encoded(Image.new(mode, SIZE, colour), "JPEG", quality=95, **options)


HALF_WHITE_16 = b"\xff\xff" * 300 + b"\x00\x64" * 300
GREYS: dict[float, Colour] = {0.25: (64, 64, 64, 255), 0.5: (128, 128, 128, 255), 0.75: (191, 191, 191, 255)}
# What is uploaded, and its colour (red, green, blue, opacity; None: any) at places from 0 (left) to 1 (right).
PICTURES: dict[str, tuple[bytes, dict[float, Colour]]] = {
    "16 bits of grey": (png(16, 0, row_of_16_bits(lambda value: value)), GREYS),
    "16 bits of grey with opacity": (png(16, 4, row_of_16_bits(lambda value: value, lambda _: 65535)), GREYS),
    "16 bits for each colour": (
        png(16, 2, row_of_16_bits(lambda value: value, lambda _: 0, lambda value: 65535 - value)),
        {0.25: (64, 0, 191, 255), 0.75: (191, 0, 64, 255)},
    ),
    "16 bits of grey, one of which is transparent": (
        png(16, 0, HALF_WHITE_16, transparent(65535)),
        {0.25: (None, None, None, 0), 0.75: (0, 0, 0, 255)},
    ),
    "16 bits for each colour, one of which is transparent": (
        png(16, 2, b"\xff\xff\x00\x00\x00\x00" * 300 + b"\x00\x00\xff\xff\x00\x00" * 300, transparent(65535, 0, 0)),
        {0.25: (None, None, None, 0), 0.75: (0, 255, 0, 255)},
    ),
    "4 bits of grey, one of which is transparent": (
        png(4, 0, b"\xff" * 150 + b"\x88" * 150, transparent(15)),
        {0.25: (None, None, None, 0), 0.75: (136, 136, 136, 255)},
    ),
    "one bit, of which white is transparent": (
        png(1, 0, (b"\xff" * 37 + b"\xf0" + b"\x00" * 37), transparent(1)),
        {0.25: (None, None, None, 0), 0.75: (0, 0, 0, 255)},
    ),
    "white in one bit": (images.encoded(Image.new("1", SIZE, 1), "PNG"), {0.5: (255, 255, 255, 255)}),
    "grey with half opacity": (images.encoded(Image.new("LA", SIZE, (120, 128)), "PNG"), {0.5: (120, 120, 120, 128)}),
    "a palette with transparency": (palette(), {0.25: (None, None, None, 0), 0.75: (10, 200, 30, 255)}),
    "red in CMYK": (jpeg("CMYK", (0, 255, 255, 0)), {0.5: (255, 0, 0, 255)}),
    "white in CMYK": (jpeg("CMYK", (0, 0, 0, 0)), {0.5: (255, 255, 255, 255)}),
    "YCbCr": (jpeg("YCbCr", (117, 62, 44)), {0.5: (0, 200, 0, 255)}),
}


def thumbnail_of(data: bytes, *, animated: bool = False) -> Image.Image:
    made, *_ = make_thumbnail(data, "scale", 96, 64, animated)
    return images.opened(made)


@pytest.mark.parametrize("name", PICTURES)
def test_colours_are_kept(name: str) -> None:
    data, places = PICTURES[name]
    thumbnail = thumbnail_of(data).convert("RGBA")
    for place, wanted in places.items():
        seen: Any = thumbnail.getpixel((int(place * thumbnail.width), 5))
        near = [want is None or abs(see - want) <= 12 for see, want in zip(seen, wanted, strict=True)]
        assert all(near), (place, seen, wanted)


def wide_profile(padding: int) -> bytes:
    """The profile of a space in which the colours mean something else than in sRGB: red and blue are exchanged."""
    profile = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    red, blue = profile.index(b"rXYZ"), profile.index(b"bXYZ")  # in the table of tags
    profile[red : red + 4], profile[blue : blue + 4] = b"bXYZ", b"rXYZ"
    profile += b"\0" * padding
    struct.pack_into(">I", profile, 0, len(profile))
    return bytes(profile)


@pytest.mark.parametrize("padding", [0, 20_000])
def test_a_colour_profile_is_stored_or_applied(padding: int) -> None:
    """A small one goes with the thumbnail; a large one is worked into its colours. Either way they look the same."""
    profile = wide_profile(padding)
    thumbnail = thumbnail_of(images.encoded(Image.new("RGB", SIZE, (250, 10, 10)), "PNG", icc_profile=profile))
    stored = thumbnail.info.get("icc_profile")
    assert (stored == profile) is (padding == 0)
    if stored:
        source, srgb = ImageCms.ImageCmsProfile(io.BytesIO(stored)), ImageCms.createProfile("sRGB")
        thumbnail = ImageCms.profileToProfile(thumbnail, source, srgb) or thumbnail
    red, _, blue = thumbnail.convert("RGB").getpixel((5, 5))  # type: ignore[misc]
    assert blue > 200 > 100 > red


def test_a_profile_for_another_colour_mode_is_dropped() -> None:
    profile = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    profile[16:20] = b"GRAY"
    thumbnail = thumbnail_of(images.encoded(Image.new("RGB", SIZE, (250, 10, 10)), "PNG", icc_profile=bytes(profile)))
    assert "icc_profile" not in thumbnail.info


@pytest.mark.parametrize(
    ("form", "loop", "plays"),
    [
        ("GIF", None, 1), ("GIF", 0, 0), ("GIF", 1, 2), ("GIF", 3, 4),
        ("PNG", 0, 0), ("PNG", 1, 1), ("PNG", 3, 3),
        ("WEBP", 0, 0), ("WEBP", 1, 1), ("WEBP", 3, 3),
    ],
)  # fmt: skip
def test_an_animation_keeps_its_number_of_loops(form: str, loop: int | None, plays: int) -> None:
    """0 is for ever. A GIF counts how often it is repeated, the others how often they are shown."""
    first, *rest = images.frames(3, *SIZE)
    options = {} if loop is None else {"loop": loop}
    data = images.encoded(first, form, save_all=True, append_images=rest, duration=[40, 200, 1000], **options)
    thumbnail = thumbnail_of(data, animated=True)
    assert thumbnail.format == "WEBP" and thumbnail.info["loop"] == plays
    durations = []
    for number in range(thumbnail.n_frames):  # type: ignore[attr-defined]
        thumbnail.seek(number)
        thumbnail.load()
        durations.append(thumbnail.info["duration"])
    assert durations == [40, 200, 1000]


def test_disposed_frames_do_not_remain_visible() -> None:
    """Disposal: each frame of this GIF is cleared before the next."""
    shown = [Image.new("RGBA", SIZE, (0, 0, 0, 0)) for _ in range(2)]
    for number, frame in enumerate(shown):
        frame.paste((255, 0, 0, 255), (number * 300, 0, number * 300 + 300, 200))
    data = images.encoded(shown[0], "GIF", save_all=True, append_images=shown[1:], duration=100, disposal=2, loop=0)
    thumbnail = thumbnail_of(data, animated=True)
    thumbnail.seek(1)
    second = thumbnail.convert("RGBA")
    left, right = (second.getpixel((x, 5)) for x in (10, second.width - 10))
    assert left[3] < 20 and right[3] > 235 and right[0] > 235  # type: ignore[index]


def test_the_default_image_of_an_animation_is_not_a_frame() -> None:
    first, *rest = images.frames(3, *SIZE)
    still = Image.new("RGB", SIZE, (0, 255, 0))
    data = images.encoded(still, "PNG", save_all=True, append_images=[first, *rest], duration=50, default_image=True)
    assert thumbnail_of(data, animated=True).n_frames == 3  # type: ignore[attr-defined]


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("kept", [0.99, 0.6])
def test_the_available_part_of_a_truncated_file_is_shown(form: str, kept: float) -> None:
    noise = Image.effect_noise(SIZE, 60).convert("RGB")
    noise.paste((250, 10, 10), (0, 0, 600, 60))
    data = images.encoded(noise, form)
    thumbnail = thumbnail_of(data[: int(len(data) * kept)]).convert("RGB")
    red, green, _ = thumbnail.getpixel((20, 4))  # type: ignore[misc]
    assert red > 200 and green < 60


@pytest.mark.parametrize("missing", [1, 2])
def test_a_truncated_jpeg_is_shown(missing: int) -> None:
    assert thumbnail_of(jpeg("RGB", (250, 10, 10))[:-missing]).size == (96, 32)


@pytest.mark.parametrize("missing", [1, 20, 200])
def test_a_truncated_webp_is_shown(missing: int) -> None:
    data = images.encoded(Image.effect_noise(SIZE, 60).convert("RGB"), "WEBP", lossless=True)
    assert thumbnail_of(data[:-missing]).size == (96, 32)


def test_a_webp_that_claims_a_larger_size_is_not_padded() -> None:
    data = images.encoded(Image.new("RGB", SIZE, (250, 10, 10)), "WEBP")
    with pytest.raises(ValueError, match="unsupported"):
        thumbnail_of(data[:4] + b"\xff\xff\xff\xff" + data[8:-2])
