"""The deprecated endpoints: frozen, so they serve nothing new. Spec: client-server-api/#content-repository"""

from __future__ import annotations

import io
from datetime import date, timedelta
from pathlib import Path

from PIL import Image
from trio.testing import MockClock

from homeserver.features import media
from tests.media import images
from tests.media.servers import V1, V3, server_with_media, upload
from tests.support.clock import let_days_pass
from tests.support.homeservers import Client, Server, now_ms


async def test_new_uploads_need_a_token(server: Server, alice: Client) -> None:
    place = await upload(alice, images.encoded(images.gradient(200, 200), "PNG"), "image/png")
    for path in (f"download/{place}", f"download/{place}/name", f"thumbnail/{place}?width=32&height=32"):
        assert await server.anonymous.refused("GET", f"{V3}/{path}") == (404, "M_NOT_FOUND")
        assert await alice.refused("GET", f"{V3}/{path}") == (404, "M_NOT_FOUND")
    for place in ("other.example/abc", "test.example/abc"):
        assert await server.anonymous.refused("GET", f"{V3}/download/{place}") == (404, "M_NOT_FOUND")


async def test_media_stored_as_public_need_no_token(server: Server, alice: Client) -> None:
    picture = images.encoded(images.gradient(200, 200), "PNG")
    uri = await media.upload(server.hs, alice.user_id, picture, "image/png", "icon.png", is_public=True)
    query = "?allow_remote=false&timeout_ms=1&allow_redirect=true"
    response = await server.anonymous.get(f"{V3}/download/{uri[6:]}{query}")
    assert response.content == picture
    assert response.headers["content-disposition"] == "inline; filename=icon.png"
    assert response.headers["cache-control"] == "public, max-age=31536000, immutable"
    response = await server.anonymous.get(f"{V3}/download/{uri[6:]}/other.png")
    assert response.headers["content-disposition"] == "inline; filename=other.png"
    response = await server.anonymous.get(f"{V3}/thumbnail/{uri[6:]}?width=32&height=32&method=crop&allow_remote=false")
    assert Image.open(io.BytesIO(response.content)).size == (32, 32)


async def test_media_stored_before_the_freeze_need_no_token(tmp_path: Path, autojump_clock: MockClock) -> None:
    day = date.fromtimestamp(now_ms() / 1000) + timedelta(days=2)
    async with server_with_media(tmp_path, unauthenticated_before=day.isoformat()) as server:
        alice = await server.register("alice")
        picture = images.encoded(images.gradient(200, 200), "PNG")
        old = await upload(alice, picture, "image/png")
        await let_days_pass(3)
        new = await upload(alice, picture, "image/png")
        for path in ("download/{}", "download/{}/name.png", "thumbnail/{}?width=32&height=32"):
            assert (await server.anonymous.get(f"{V3}/{path.format(old)}")).status_code == 200
            assert await server.anonymous.refused("GET", f"{V3}/{path.format(new)}") == (404, "M_NOT_FOUND")
        assert await server.anonymous.refused("GET", f"{V1}/download/{old}") == (401, "M_MISSING_TOKEN")
