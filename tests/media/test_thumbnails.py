"""Thumbnails of what was uploaded. Spec: client-server-api/#thumbnails"""

from __future__ import annotations

import io

import pytest
import trio
from PIL import Image

from homeserver import limits
from homeserver.features import media
from homeserver.features.media import thumbnail_storage
from homeserver.features.media.thumbnail_storage import Size
from homeserver.features.media.thumbnails import ThumbnailQuery, read_size
from tests.media import images
from tests.media.servers import V1, blob_keys, get_raw, upload
from tests.support.homeservers import Client, Server


async def test_thumbnails_are_stored_and_found(server: Server, alice: Client, bob: Client) -> None:
    place = await upload(alice, images.encoded(images.gradient(1000, 500), "PNG"), "image/png", "big.png")
    for query, size in (
        ("width=32&height=32&method=crop", (32, 32)),
        ("width=90&height=90&method=crop", (96, 96)),
        ("width=96&height=96&method=crop&animated=true", (96, 96)),
        ("width=100&height=50&method=crop", (320, 160)),
        ("width=1&height=1", (320, 160)),
        ("width=321&height=100&method=scale", (640, 320)),
        ("width=700&height=100", (800, 400)),
    ):
        response = await bob.get(f"{V1}/thumbnail/{place}?{query}")
        assert response.status_code == 200, response.text
        assert response.headers["content-type"] == "image/jpeg"
        assert response.headers["content-disposition"] == "inline; filename=thumbnail.jpg"
        assert response.headers["content-security-policy"].startswith("sandbox;")
        assert Image.open(io.BytesIO(response.content)).size == size
        again = await get_raw(bob, f"{V1}/thumbnail/{place}?{query}", if_none_match=response.headers["etag"])
        assert again.status_code == 304
    assert len(await blob_keys(server)) == 1  # thumbnails this small are in their rows
    count = "SELECT COUNT(*) FROM media_thumbnails"
    assert await server.read(lambda tx: tx.values(count)) == [6]


async def test_a_small_image_is_its_own_thumbnail(server: Server, alice: Client) -> None:
    picture = images.encoded(images.gradient(300, 200), "PNG")
    place = await upload(alice, picture, "image/jpeg")
    for query in ("width=400&height=300", "width=5000&height=5000", "width=400&height=400&method=crop"):
        response = await alice.get(f"{V1}/thumbnail/{place}?{query}")
        assert response.content == picture and response.headers["content-type"] == "image/png"
    large = images.encoded(images.gradient(2000, 1500), "PNG")
    place = await upload(alice, large, "image/png")
    for query in ("width=3000&height=10", "width=1700&height=1700&method=crop"):
        assert (await alice.get(f"{V1}/thumbnail/{place}?{query}")).content == large
    assert len(await blob_keys(server)) == 2


async def test_animated_thumbnails(alice: Client) -> None:
    place = await upload(alice, images.animation(4, "GIF", 400, 400), "image/gif")
    path = f"{V1}/thumbnail/{place}?width=96&height=96&method=crop"
    for query, content_type, count in (
        ("", "image/jpeg", 1), ("&animated=true", "image/webp", 4), ("&animated=false", "image/jpeg", 1),
    ):  # fmt: skip
        response = await alice.get(path + query)
        assert response.headers["content-type"] == content_type
        thumbnail = Image.open(io.BytesIO(response.content))
        assert thumbnail.size == (96, 96) and getattr(thumbnail, "n_frames", 1) == count
    small = images.animation(3, "GIF")
    place = await upload(alice, small, "image/gif")
    assert (await alice.get(f"{V1}/thumbnail/{place}?width=96&height=96&animated=true")).content == small
    still = await alice.get(f"{V1}/thumbnail/{place}?width=96&height=96")
    assert still.headers["content-type"] == "image/jpeg"


@pytest.mark.parametrize(
    "query",
    ["", "width=1", "height=1", "width=a&height=1", "width=0&height=1", "width=-5&height=5", "width=1.5&height=1",
     "width=1&height=1&method=stretch", "width=1&height=1&animated=maybe"],
)  # fmt: skip
async def test_malformed_requests_are_refused(alice: Client, query: str) -> None:
    status, _ = await alice.refused("GET", f"{V1}/thumbnail/test.example/abc?{query}")
    assert status == 400


async def test_simultaneous_requests_make_a_thumbnail_once(server: Server, alice: Client) -> None:
    place = await upload(alice, images.encoded(images.gradient(400, 400), "PNG"), "image/png")
    bodies: list[bytes] = []

    async def fetch() -> None:
        response = await alice.get(f"{V1}/thumbnail/{place}?width=96&height=96&method=crop")
        bodies.append(response.content)

    async with trio.open_nursery() as nursery:
        for _ in range(20):
            nursery.start_soon(fetch)
    assert len(set(bodies)) == 1 and len(bodies) == 20


async def test_many_aspect_ratios_make_a_limited_number_of_thumbnails(server: Server, alice: Client) -> None:
    place = await upload(alice, images.encoded(images.gradient(400, 400), "PNG"), "image/png")
    for height in range(1, limits.THUMBNAILS_PER_MEDIA_MAX + 30):
        response = await alice.get(f"{V1}/thumbnail/{place}?width=96&height={height}&method=crop")
        assert response.status_code == 200
        width, found = Image.open(io.BytesIO(response.content)).size
        assert width >= 96 and found >= height
    assert await server.read(thumbnail_storage.count_thumbnails, 1) <= limits.THUMBNAILS_PER_MEDIA_MAX + 5


def test_sizes_are_snapped_to_the_supported_ones() -> None:
    def size(width: int, height: int, method: str) -> tuple[str, int, int]:
        found = read_size(ThumbnailQuery(width, height, method))  # type: ignore[arg-type]
        return found.method, found.width, found.height

    assert size(32, 32, "crop") == ("crop", 32, 32)
    assert size(33, 33, "crop") == ("crop", 96, 96)
    assert size(97, 97, "crop") == ("crop", 320, 320)
    assert size(64, 48, "crop") == ("crop", 96, 72)
    assert size(3, 1600, "crop") == ("crop", 3, 1600)
    assert size(1, 100_000, "crop") == ("scale", 65_535, 65_535)
    assert size(800, 600, "scale") == ("scale", 800, 600)
    assert size(800, 601, "scale") == ("scale", 1600, 1200)
    for width in range(1, 1601, 37):
        for height in range(1, 1601, 41):
            for method in ("crop", "scale"):
                _, made_width, made_height = size(width, height, method)
                assert made_width >= width and made_height >= height


async def test_a_thumbnail_of_a_file_deleted_meanwhile_is_not_found(server: Server, alice: Client) -> None:
    place = await upload(alice, images.encoded(images.gradient(400, 400), "PNG"), "image/png")
    inner = server.hs.workers.run_process

    async def run_process(*args: object, **options: object) -> object:
        answer = await inner(*args, **options)  # type: ignore[arg-type]
        await media.delete(server.hs, f"mxc://{place}")
        return answer

    object.__setattr__(server.hs.workers, "run_process", run_process)
    path = f"{V1}/thumbnail/{place}?width=96&height=96"
    assert await alice.refused("GET", path) == (404, "M_NOT_FOUND")
    assert await blob_keys(server) == []
    assert await server.read(thumbnail_storage.find_thumbnail, 1, Size("scale", 320, 240, False)) is None
