"""Downloads that clients are sent to the object store for. Spec: client-server-api/#content-repo-client-behaviour"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import httpx
import pytest

from homeserver import limits
from homeserver.config import AtRest, BlobsSection
from homeserver.features import media
from tests.media import images
from tests.media.servers import V1, V3, get_raw, upload
from tests.support.homeservers import Client, NoWire, config_for_tests, running
from tests.support.object_store import running_object_store

pytestmark = pytest.mark.sockets

PICTURE = images.encoded(images.gradient(700, 700), "PNG")


@asynccontextmanager
async def alice_with_a_bucket(
    folder: Path, monkeypatch: pytest.MonkeyPatch, *, redirect: bool
) -> AsyncIterator[Client]:
    with running_object_store() as (environment, _):
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        blobs = BlobsSection(url="s3://bucket/prefix", redirect=redirect)
        at_rest = AtRest(media=False)  # the store could only serve sealed files sealed
        config = config_for_tests("test.example", folder, blobs=blobs, at_rest=at_rest)
        async with running(config, wire=NoWire()) as server:
            yield await server.register("alice")


async def follow(client: Client, path: str, **headers: str) -> httpx.Response:
    """The answer of the store that the server sends the client to. The token stays with the server."""
    answer = await get_raw(client, path, **headers)
    assert answer.status_code == 307, answer.text
    assert (answer.headers["cache-control"], answer.content) == ("no-store", b"")
    query = parse_qs(urlsplit(answer.headers["location"]).query)
    assert query["X-Amz-Signature"] and query["X-Amz-Expires"] == [str(limits.MEDIA_REDIRECT_SECONDS)]
    async with httpx.AsyncClient(verify=False) as http:
        return await http.get(answer.headers["location"], headers=headers)


async def test_downloads_are_redirected_to_the_object_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with alice_with_a_bucket(tmp_path, monkeypatch, redirect=True) as alice:
        place = await upload(alice, PICTURE, "image/png", "tea.png")
        for path in (f"download/{place}", f"download/{place}/name.png"):
            found = await follow(alice, f"{V1}/{path}")
            assert (found.content, found.headers["content-type"]) == (PICTURE, "image/png")
        thumbnail = await get_raw(alice, f"{V1}/thumbnail/{place}?width=640&height=480")
        if thumbnail.status_code == 307:
            thumbnail = await follow(alice, f"{V1}/thumbnail/{place}?width=640&height=480")
        assert images.opened(thumbnail.content).size == (480, 480)
        assert (await follow(alice, f"{V1}/download/{place}", range="bytes=1-3")).content == PICTURE[1:4]
        head = await alice.server.http.head(
            f"{V1}/download/{place}", headers={"authorization": f"Bearer {alice.token}"}
        )
        assert (head.status_code, head.headers["content-length"]) == (200, str(len(PICTURE)))


async def test_files_that_browsers_would_run_are_attachments_in_the_object_store(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with alice_with_a_bucket(tmp_path, monkeypatch, redirect=True) as alice:
        found = await follow(alice, f"{V1}/download/{await upload(alice, b'<script>', 'text/html')}")
        assert (found.headers["content-type"], found.headers["content-disposition"]) == (
            "application/octet-stream",
            "attachment",
        )


async def test_the_deprecated_endpoints_redirect_only_clients_that_allow_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with alice_with_a_bucket(tmp_path, monkeypatch, redirect=True) as alice:
        uri = await media.upload(alice.server.hs, alice.user_id, PICTURE, "image/png", is_public=True)
        path = f"{V3}/download/{uri[6:]}"
        assert (await alice.get(path)).content == PICTURE
        assert (await follow(alice, f"{path}?allow_redirect=true")).content == PICTURE


async def test_downloads_are_not_redirected_unless_the_operator_wants_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with alice_with_a_bucket(tmp_path, monkeypatch, redirect=False) as alice:
        uri = await media.upload(alice.server.hs, alice.user_id, PICTURE, "image/png", is_public=True)
        assert (await alice.get(f"{V1}/download/{uri[6:]}")).content == PICTURE
        assert (await alice.get(f"{V3}/download/{uri[6:]}?allow_redirect=true")).content == PICTURE
