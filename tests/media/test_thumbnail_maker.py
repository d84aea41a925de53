"""Making thumbnails, in the separate process as the server does. Spec: client-server-api/#thumbnails"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from homeserver import limits
from homeserver.process.workers import WorkerFailed, Workers
from tests.media import images

MAKER = "homeserver.features.media.thumbnail_maker:make_thumbnail"


class Maker:
    """Calls the separate process from tests that are not asynchronous."""

    def __init__(self) -> None:
        self.workers = Workers(inline=True)

    def __call__(
        self, data: bytes, method: str, width: int, height: int, animated: bool = False
    ) -> tuple[Any, str, list[Any]]:
        made, content_type, about = self.workers._process.call(MAKER, (data, method, width, height, animated), 20.0)
        return made, content_type, about


@pytest.fixture(scope="module")
def make() -> Iterator[Maker]:
    maker = Maker()
    yield maker
    maker.workers._process.kill()


def close_to(pixel: Any, wanted: int, tolerance: int = 30) -> bool:
    return abs((pixel if isinstance(pixel, int) else pixel[0]) - wanted) <= tolerance


@pytest.mark.parametrize("form", ["PNG", "JPEG", "GIF", "WEBP", "AVIF"])
@pytest.mark.parametrize(
    ("method", "box", "size"),
    [
        ("crop", (32, 32), (32, 32)),
        ("crop", (96, 96), (96, 96)),
        ("scale", (320, 240), (320, 160)),
        ("crop", (200, 50), (200, 50)),
    ],
)
def test_every_format_and_method_is_supported(
    make: Maker, form: str, method: str, box: tuple[int, int], size: tuple[int, int]
) -> None:
    data = images.encoded(images.gradient(800, 400), form)
    made, content_type, about = make(data, method, *box)
    assert content_type == "image/jpeg"
    assert about == [f"image/{form.lower()}", 800, 400, False]
    thumbnail = images.opened(made)
    assert thumbnail.size == size and thumbnail.format == "JPEG"
    assert thumbnail.getpixel((2, 5)) != thumbnail.getpixel((size[0] - 3, 5))


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "I;16", "CMYK", "LA", "RGBA"])
def test_every_colour_mode_is_supported(make: Maker, mode: str) -> None:
    grey = images.gradient(400, 300)
    if mode in ("LA", "RGBA"):
        image = images.gradient(400, 300, "RGBA").convert(mode)
    elif mode == "I;16":
        values = grey.convert("L").tobytes()
        image = Image.frombytes("I;16", (400, 300), b"".join(bytes((0, value)) for value in values))
    else:
        image = grey.convert(mode)
    made, content_type, _ = make(images.encoded(image, "JPEG" if mode == "CMYK" else "PNG"), "scale", 80, 60)
    assert content_type == ("image/png" if mode in ("LA", "RGBA") else "image/jpeg")
    assert images.opened(made).size == (80, 60)


def test_transparency_is_kept(make: Maker) -> None:
    made, content_type, _ = make(images.encoded(images.gradient(400, 400, "RGBA"), "PNG"), "crop", 96, 96)
    assert content_type == "image/png"
    thumbnail = images.opened(made)
    assert thumbnail.mode == "RGBA"
    assert thumbnail.getpixel((48, 10))[3] == 0 and thumbnail.getpixel((48, 90))[3] == 255


def test_transparent_pixels_do_not_bleed(make: Maker) -> None:
    image = Image.new("RGBA", (400, 400), (255, 0, 0, 0))
    image.paste((0, 255, 0, 255), (200, 0, 400, 400))
    thumbnail = images.opened(make(images.encoded(image, "PNG"), "scale", 50, 50)[0])
    for x in range(50):
        red, _, _, alpha = thumbnail.getpixel((x, 25))
        assert alpha == 0 or red < 30


def test_an_opaque_image_with_an_alpha_channel_is_a_jpeg(make: Maker) -> None:
    assert make(images.encoded(images.gradient(400, 300).convert("RGBA"), "PNG"), "scale", 80, 60)[1] == "image/jpeg"


@pytest.mark.parametrize(
    ("source", "method", "box", "size"),
    [
        ((300, 100), "scale", (320, 240), None),
        ((320, 240), "crop", (320, 240), None),
        ((321, 240), "scale", (320, 240), (320, 239)),
        ((1000, 50), "crop", (96, 96), (50, 50)),
        ((50, 1000), "crop", (96, 96), (50, 50)),
        ((1000, 50), "scale", (96, 96), (96, 5)),
        ((5000, 1), "scale", (96, 96), (96, 1)),
        ((5000, 1), "crop", (96, 96), (1, 1)),
        ((97, 97), "crop", (96, 32), (96, 32)),
    ],
)
def test_a_thumbnail_is_never_larger_than_the_original(
    make: Maker, source: tuple[int, int], method: str, box: tuple[int, int], size: tuple[int, int] | None
) -> None:
    made, _, _ = make(images.encoded(images.gradient(*source), "PNG"), method, *box)
    assert (None if made is None else images.opened(made).size) == size


def test_a_crop_shows_the_middle(make: Maker) -> None:
    image = Image.new("L", (900, 300), 0)
    image.paste(255, (300, 0, 600, 300))
    thumbnail = images.opened(make(images.encoded(image, "PNG"), "crop", 96, 96)[0])
    assert all(close_to(thumbnail.getpixel((x, 48)), 255) for x in (2, 48, 93))


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP"])
def test_the_exif_orientation_is_applied(make: Maker, form: str, orientation: int) -> None:
    """The stored pixels are turned so that, seen upright, the upper left quarter is white."""
    upright = Image.new("L", (600, 400), 0)
    upright.paste(255, (0, 0, 300, 200))
    undo = {
        2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_90, 7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }  # fmt: skip
    stored = upright.transpose(undo[orientation]) if orientation in undo else upright
    exif = Image.Exif()
    exif[0x0112] = orientation
    made, _, about = make(images.encoded(stored.convert("RGB"), form, exif=exif), "scale", 150, 100)
    assert about[1:3] == [600, 400]
    thumbnail = images.opened(made)
    assert thumbnail.size == (150, 100)
    assert close_to(thumbnail.getpixel((20, 20)), 255)
    assert all(close_to(thumbnail.getpixel(at), 0) for at in ((130, 20), (20, 80), (130, 80)))
    assert thumbnail.getexif().get(0x0112) is None


def test_metadata_is_dropped_but_the_colour_profile(make: Maker) -> None:
    exif = Image.Exif()
    exif[0x010E] = "at home, 52.5 N 13.4 E"
    profile = b"\0" * 16 + b"RGB " + b"\0" * 108 + b"profile"
    for mode in ("RGB", "RGBA"):
        data = images.encoded(images.gradient(400, 400, mode), "PNG", exif=exif, icc_profile=profile)
        made, _, _ = make(data, "crop", 96, 96)
        assert b"at home" not in made
        assert images.opened(made).info.get("icc_profile") == profile


@pytest.mark.parametrize("form", ["GIF", "PNG", "WEBP"])
def test_animations_become_animated_thumbnails(make: Maker, form: str) -> None:
    data = images.animation(5, form, 400, 300)
    made, content_type, about = make(data, "scale", 80, 60, True)
    assert content_type == "image/webp" and about[3] is True
    thumbnail = images.opened(made)
    assert thumbnail.size == (80, 60) and thumbnail.n_frames == 5
    still, content_type, _ = make(data, "scale", 80, 60, False)
    assert content_type == "image/jpeg" and getattr(images.opened(still), "n_frames", 1) == 1


def test_a_small_animation_is_its_own_thumbnail_only_if_animated_is_allowed(make: Maker) -> None:
    data = images.animation(3, "GIF")
    assert make(data, "scale", 320, 240, True)[0] is None
    still, content_type, _ = make(data, "scale", 320, 240, False)
    assert content_type == "image/jpeg" and images.opened(still).size == (40, 30)


def test_a_long_animation_becomes_a_still(make: Maker) -> None:
    made, content_type, about = make(images.gif_many_frames(2000), "crop", 96, 96, True)
    assert content_type == "image/jpeg" and about[3] is True
    assert images.opened(made).size == (96, 96)


# Made when a test needs them: some take a second.
HUGE: dict[str, Callable[[], bytes]] = {
    "a PNG that claims 60000 x 60000": lambda: images.png_claim(60_000, 60_000),
    "a PNG with a side of 2^31": lambda: images.png_claim(2**31 - 1, 1),
    "a GIF frame larger than its screen": lambda: images.gif_claim(1, 1, 60_000, 60_000),
    "a GIF screen of 65535": lambda: images.gif_claim(65_535, 65_535, 1, 1),
    "a JPEG that claims 65500 x 65500": lambda: images.jpeg_claim(65_500, 65_500),
    "a WebP of 16383 x 2500": lambda: images.encoded(
        Image.new("RGB", (16_383, 2_500)), "WEBP", lossless=True, method=0
    ),
}


@pytest.mark.parametrize("name", HUGE)
def test_huge_images_are_too_large(make: Maker, name: str) -> None:
    with pytest.raises(ValueError, match=r"^too_large$"):
        make(HUGE[name](), "crop", 96, 96)


def test_a_decompression_bomb_is_refused_cheaply(make: Maker) -> None:
    bomb = images.png_bomb(8000, 8000)
    assert len(bomb) < 500_000
    with pytest.raises(ValueError, match=r"^too_large$"):
        make(bomb, "crop", 96, 96)


def test_the_largest_allowed_png_fits_into_memory(make: Maker) -> None:
    side = int(limits.THUMBNAIL_PIXELS_MAX**0.5)
    made, _, _ = make(images.png_bomb(side, side), "crop", 96, 96)
    assert images.opened(made).size == (96, 96)


PICTURE = images.encoded(images.gradient(300, 300), "PNG")
BROKEN: dict[str, Callable[[], bytes]] = {
    "nothing": lambda: b"",
    "text": lambda: b"This is not an image.",
    "a page": lambda: b"<html><script>alert(1)</script></html>",
    "SVG": lambda: b'<svg xmlns="http://www.w3.org/2000/svg" width="300" height="300"/>',
    "TIFF, which is not on the list": lambda: images.encoded(images.gradient(300, 300), "TIFF"),
    "BMP, which is not on the list": lambda: images.encoded(images.gradient(300, 300), "BMP"),
    "PDF": lambda: images.encoded(images.gradient(300, 300), "PDF"),
    "EPS": lambda: images.encoded(images.gradient(300, 300), "EPS"),
    "the head of a PNG": lambda: PICTURE[:40],
    "the head of a JPEG": lambda: images.encoded(images.gradient(300, 300), "JPEG")[:600],
    "half of a WebP": lambda: images.encoded(images.gradient(300, 300), "WEBP")[:200],
    "a PNG that claims nothing": lambda: images.png_claim(0, 0),
    "a PNG with a comment of 100 MB": images.png_text_bomb,
}


@pytest.mark.parametrize("name", BROKEN)
def test_files_that_are_not_images_are_unsupported(make: Maker, name: str) -> None:
    with pytest.raises(ValueError, match=r"^unsupported$"):
        make(BROKEN[name](), "crop", 96, 96)


def test_an_animation_that_grows_yields_a_thumbnail_or_an_error(make: Maker) -> None:
    for animated in (False, True):
        try:
            made, _, _ = make(images.gif_growing(), "crop", 96, 96, animated)
        except ValueError as error:
            assert str(error) in ("too_large", "unsupported")
        else:
            assert images.opened(made).size == (96, 96)


def test_a_polyglot_yields_only_an_image(make: Maker) -> None:
    payload = b"<script>alert(document.domain)</script>"
    for data in (PICTURE + payload, PICTURE[:33] + images.png_chunk(b"tEXt", b"Comment\0" + payload) + PICTURE[33:]):
        made, _, _ = make(data, "crop", 96, 96)
        assert payload not in made


WHOLE = [
    PICTURE,
    images.encoded(images.gradient(200, 200), "JPEG"),
    images.encoded(images.gradient(200, 200), "AVIF"),
    *(images.animation(3, form, 200, 200) for form in ("GIF", "PNG", "WEBP")),
]


@settings(deadline=None)
@given(data=st.data())
def test_damaged_images_yield_an_image_or_an_error(make: Maker, data: st.DataObject) -> None:
    damaged = bytearray(data.draw(st.sampled_from(WHOLE)))
    for _ in range(data.draw(st.integers(1, 6))):
        at = data.draw(st.integers(0, len(damaged) - 1))
        damaged[at : at + data.draw(st.integers(0, 4))] = data.draw(st.binary(max_size=4))
    try:
        made, content_type, _ = make(bytes(damaged), "crop", 32, 32, data.draw(st.booleans()))
    except (ValueError, WorkerFailed) as error:
        assert isinstance(error, WorkerFailed) or str(error) in ("too_large", "unsupported")
    else:
        assert made is None or content_type in ("image/jpeg", "image/png", "image/webp")


def test_a_very_large_photograph_is_supported(make: Maker) -> None:
    data = images.encoded(images.gradient(12_000, 9_000), "JPEG")
    made, _, about = make(data, "scale", 800, 600)
    assert about[1:3] == [12_000, 9_000] and images.opened(made).size == (800, 600)


def test_the_server_process_never_imports_pillow() -> None:
    program = "import sys, homeserver.features.media; sys.exit('PIL' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program]).returncode == 0
