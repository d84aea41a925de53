"""What an upload is answered with besides its URI, and the thumbnails that are ready when its message arrives."""

from __future__ import annotations

import io
import struct
import wave
from typing import Any

import pytest
import trio
import trio.testing
from PIL import Image

from homeserver.features.media import thumbnail_storage
from homeserver.features.media.blurhash import blurhash_of
from homeserver.features.media.file_examiner import examine_recording
from tests.media import images
from tests.media.servers import V1, V3, create
from tests.support.homeservers import Client, Server

TUS = {"tus-resumable": "1.0.0", "content-type": "application/offset+octet-stream"}


async def info_of(client: Client, data: bytes, content_type: str) -> dict[str, Any]:
    answer = await client.ok("POST", f"{V3}/upload", content=data, headers={"content-type": content_type})
    info: dict[str, Any] = answer["info"]
    return info


def box(kind: bytes, *content: bytes) -> bytes:
    """A box of an MP4 file."""
    body = b"".join(content)
    return struct.pack(">I", 8 + len(body)) + kind + body


def film(width: int, height: int, milliseconds: int, *, turned: bool = False) -> bytes:
    """The parts of an MP4 file that say how large and how long it is."""
    matrix = (
        (0, 0x10000, 0, -0x10000, 0, 0, 0, 0, 0x40000000) if turned else (0x10000, 0, 0, 0, 0x10000, 0, 0, 0, 1 << 30)
    )
    silent = box(b"tkhd", bytes(40), struct.pack(">9i2I", *matrix, 0, 0))
    shown = box(b"tkhd", bytes(40), struct.pack(">9i2I", *matrix, width << 16, height << 16))
    clock = box(b"mvhd", bytes(12), struct.pack(">2I", 1000, milliseconds), bytes(80))
    moov = box(b"moov", clock, box(b"trak", silent), box(b"trak", shown))
    return box(b"ftyp", b"isom", bytes(4)) + box(b"free", bytes(100)) + moov


def element(number: int, *content: bytes) -> bytes:
    """An element of a Matroska file."""
    body = b"".join(content)
    return number.to_bytes((number.bit_length() + 7) // 8) + struct.pack(">Q", len(body) | 1 << 56) + body


def webm(width: int, height: int, milliseconds: int) -> bytes:
    """The parts of a WebM file that say how large and how long it is. Its segment has no length, as of a recording."""
    scale, duration = (2_000_000).to_bytes(3), struct.pack(">d", milliseconds / 2)
    info = element(0x1549A966, element(0x2AD7B1, scale), element(0x4489, duration))
    sides = element(0xB0, struct.pack(">H", width)), element(0xBA, struct.pack(">H", height))
    silent, shown = element(0xAE, element(0xD7, b"\1")), element(0xAE, element(0xE0, *sides))
    segment = b"\x18\x53\x80\x67\x01" + b"\xff" * 7
    after = element(0xEC, bytes(50)) + info + element(0x1654AE6B, silent, shown) + element(0x1F43B675, bytes(100))
    return element(0x1A45DFA3, element(0x4282, b"webm")) + segment + after


def sound(seconds: float) -> bytes:
    """A WAV file."""
    result = io.BytesIO()
    with wave.open(result, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(8000)
        file.writeframes(bytes(int(2 * 8000 * seconds)))
    return result.getvalue()


async def test_an_upload_tells_type_and_size_of_any_file(alice: Client) -> None:
    info = await info_of(alice, b"hello", "text/plain; charset=utf-8")
    assert info == {"mimetype": "text/plain", "size": 5}


@pytest.mark.parametrize(
    ("form", "content_type"), [("PNG", "image/png"), ("JPEG", "image/jpeg"), ("WEBP", "image/webp")]
)
async def test_an_upload_tells_the_dimensions_of_a_picture(alice: Client, form: str, content_type: str) -> None:
    data = images.encoded(images.gradient(300, 200), form)
    info = await info_of(alice, data, "image/png")
    assert (info["mimetype"], info["size"], info["w"], info["h"]) == (content_type, len(data), 300, 200)
    assert len(info["blurhash"]) == 28 and info["xyz.amorgan.blurhash"] == info["blurhash"]


async def test_a_picture_is_measured_as_it_is_shown(alice: Client) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by 90°
    info = await info_of(alice, images.encoded(images.gradient(300, 200), "JPEG", exif=exif), "image/jpeg")
    assert (info["w"], info["h"]) == (200, 300)


async def test_a_file_for_a_created_uri_is_described_too(alice: Client) -> None:
    place = await create(alice)
    data = images.encoded(images.gradient(30, 20), "PNG")
    answer = await alice.ok("PUT", f"{V3}/upload/{place}", content=data, headers={"content-type": "image/png"})
    assert (answer["info"]["w"], answer["info"]["h"]) == (30, 20)


async def test_a_resumable_upload_is_described_when_it_is_finished(alice: Client) -> None:
    data = sound(1.5)
    headers = {**TUS, "upload-length": str(len(data)), "upload-metadata": "filetype YXVkaW8vd2F2"}
    created = await alice.post("/_homeserver/client/v1/uploads", content=data, headers=headers)
    wanted = {"mimetype": "audio/wav", "size": len(data), "duration": 1500}
    assert created.json()["info"] == wanted
    assert (await alice.ok("GET", created.headers["location"]))["info"] == wanted


@pytest.mark.parametrize("seconds", [0.5, 40.0])  # in memory, and in a temporary file
async def test_an_upload_tells_the_duration_of_a_recording(alice: Client, seconds: float) -> None:
    assert (await info_of(alice, sound(seconds), "audio/wav"))["duration"] == seconds * 1000


@pytest.mark.parametrize("turned", [False, True])
async def test_an_upload_tells_duration_and_dimensions_of_a_film(alice: Client, turned: bool) -> None:
    info = await info_of(alice, film(1920, 1080, 63_500, turned=turned), "video/mp4")
    shown = (1080, 1920) if turned else (1920, 1080)
    assert (info["duration"], info["w"], info["h"]) == (63_500, *shown)


async def test_an_upload_tells_duration_and_dimensions_of_a_webm_film(alice: Client) -> None:
    info = await info_of(alice, webm(1280, 720, 63_500), "video/webm")
    assert (info["duration"], info["w"], info["h"]) == (63_500, 1280, 720)
    recording = await info_of(alice, webm(0, 0, 1_000), "audio/webm")
    assert recording["duration"] == 1000 and "w" not in recording


@pytest.mark.parametrize("cut", range(0, 330, 7))
def test_damaged_webm_films_are_read_without_an_error(cut: int) -> None:
    data = webm(1280, 720, 63_500)
    for filling in (b"", b"\xff" * 40 + data[cut + 40 :], bytes(9) + data[cut + 9 :]):
        assert len(examine_recording(data[:cut] + filling)) == 3


def test_a_webm_film_of_elements_in_elements_is_read_in_bounded_time() -> None:
    track = element(0xAE, element(0xD7) * 50_000)
    tracks = element(0x1654AE6B, track * 3)
    assert examine_recording(element(0x1A45DFA3) + element(0x18538067, tracks * 3)) == [0, 0, 0]


@pytest.mark.parametrize(
    "content_type", ["image/png", "image/avif", "audio/mpeg", "audio/ogg", "video/mp4", "video/webm"]
)
@pytest.mark.parametrize(
    "data", [b"x", b"\0" * 5000, b"\xff\xfb" * 3000, b"OggS" + b"\xff" * 200, b"RIFF\xff\xff\xff\xffWAVE"]
)
async def test_files_that_are_not_what_they_claim_are_stored_all_the_same(
    alice: Client, content_type: str, data: bytes
) -> None:
    info = await info_of(alice, data, content_type)
    assert (info["mimetype"], info["size"]) == (content_type, len(data))
    assert "w" not in info and "blurhash" not in info


@pytest.mark.parametrize("cut", range(0, 330, 7))
def test_truncated_films_are_read_without_an_error(cut: int) -> None:
    data = film(1920, 1080, 63_500)
    assert len(examine_recording(data[:cut])) == 3
    assert len(examine_recording(data[:cut] + b"\xff" * 40 + data[cut + 40 :])) == 3


def test_a_film_of_boxes_in_boxes_is_read_in_bounded_time() -> None:
    nested = b""
    for _ in range(3000):
        nested = box(b"moov", nested)
    assert examine_recording(box(b"ftyp", b"isom") + nested)[1:] == [0, 0]
    assert examine_recording(box(b"ftyp", b"isom") + box(b"free") * 100_000)[1:] == [0, 0]


async def test_the_first_thumbnails_are_ready_before_anybody_asks(server: Server, alice: Client) -> None:
    data = images.encoded(images.gradient(1600, 1200), "PNG")
    answer = await alice.ok("POST", f"{V3}/upload", content=data, headers={"content-type": "image/png"})
    place = answer["content_uri"].removeprefix("mxc://")
    await trio.testing.wait_all_tasks_blocked()
    stored = await server.read(_list_thumbnails)
    assert sorted(stored) == [("scale", 320, 240), ("scale", 800, 600)]
    for query, size in (("width=800&height=600", (800, 600)), ("width=300&height=200", (320, 240))):
        thumbnail = await alice.get(f"{V1}/thumbnail/{place}?{query}&method=scale")
        assert images.opened(thumbnail.content).size == size
    assert len(await server.read(_list_thumbnails)) == 2


async def test_a_picture_that_cannot_be_decoded_is_not_tried_again(server: Server, alice: Client) -> None:
    answer = await alice.ok("POST", f"{V3}/upload", content=b"nonsense", headers={"content-type": "image/png"})
    await trio.testing.wait_all_tasks_blocked()
    media_id = answer["content_uri"].rpartition("/")[2]
    nid = await server.read(lambda tx: tx.values("SELECT media_nid FROM media WHERE media_id = ?", media_id))
    image = await server.read(thumbnail_storage.find_image, nid[0])
    assert image is not None and image.failure == "unsupported"


def test_blurhashes_are_those_of_other_implementations() -> None:
    image = Image.new("RGB", (32, 32))
    image.putdata([(10 * x % 256, 0, (x * 7 + y * 3) % 256) for y in range(32) for x in range(32)])
    assert blurhash_of(image) == "LbFwQzA$29|hn}a[Wvn{fMfUfOfP"
    assert blurhash_of(Image.new("RGB", (10, 10), (255, 255, 255))) == "L9TSUA~qfQ~q~qoffQoffQfQfQfQ"
    upright = images.gradient(20, 40)
    assert len(blurhash_of(upright)) == 28 and blurhash_of(upright)[0] == "T"


def test_transparent_pictures_are_seen_on_white() -> None:
    clear = Image.new("RGBA", (8, 8), (0, 0, 0, 0))
    assert blurhash_of(clear) == blurhash_of(Image.new("RGB", (8, 8), (255, 255, 255)))


def _list_thumbnails(tx: Any) -> list[tuple[str, int, int]]:
    return [tuple(row) for row in tx.all("SELECT method, width, height FROM media_thumbnails")]
