"""Homeservers with the content repository, for the tests of both of its APIs."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx

from homeserver.api.routes import Request
from homeserver.config import BlobsSection
from homeserver.errors import MatrixError
from homeserver.features import media
from homeserver.federation.request_auth import InvalidAuthorization, parse_authorization
from homeserver.federation.signing import SigningKey
from homeserver.federation.wire import Wire
from homeserver.remote.authorization import Claim
from homeserver.resources import Resources
from tests.support.homeservers import FEATURES, Client, NoWire, Server, config_for_tests, running

MEDIA_FEATURES = (*(feature for feature in FEATURES if feature.name != "media"), media.FEATURE)
V3 = "/_matrix/media/v3"
V1 = "/_matrix/client/v1/media"


@asynccontextmanager
async def server_with_media(
    folder: Path, server_name: str = "test.example", *, wire: Wire | None = None, **blobs: Any
) -> AsyncIterator[Server]:
    """A running server; `blobs` are keys of the section [blobs]."""
    config = config_for_tests(server_name, folder, blobs=BlobsSection(url="memory:", **blobs))
    async with running(config, wire=wire or NoWire(), features=MEDIA_FEATURES) as server:
        server.app.dispatch.identify_origin = identify_origin
        yield server


async def identify_origin(hs: Resources, request: Request) -> Claim:
    """Reads an X-Matrix header; the keys are those that servers of tests have."""
    try:
        credentials = parse_authorization(request.headers.get("authorization", ""))
    except InvalidAuthorization as error:
        raise MatrixError(401, "M_UNAUTHORIZED", str(error)) from error
    key = SigningKey("test", credentials.origin.encode().ljust(32, b"\0")[:32])
    return Claim(credentials, key.verify_key_base64)


async def upload(client: Client, data: bytes, content_type: str | None = "text/plain", filename: str = "") -> str:
    """Uploads a file and returns `server/media_id`, the end of its download paths."""
    headers = {} if content_type is None else {"content-type": content_type}
    params = {"filename": filename} if filename else {}
    answer = await client.ok("POST", f"{V3}/upload", content=data, headers=headers, params=params)
    return answer["content_uri"].removeprefix("mxc://")


async def create(client: Client) -> str:
    """Creates a URI without content and returns `server/media_id`."""
    answer = await client.ok("POST", "/_matrix/media/v1/create")
    return str(answer["content_uri"]).removeprefix("mxc://")


async def get_raw(client: Client, path: str, **headers: str) -> httpx.Response:
    """An answer whose status is one of HTTP that the specification does not mention (206, 304, 416)."""
    sent = {name.replace("_", "-"): value for name, value in headers.items()}
    return await client.server.http.get(path, headers={"authorization": f"Bearer {client.token}", **sent})


async def blob_keys(server: Server) -> list[str]:
    """The keys of all media in the blob store."""
    return sorted([key async for key, _ in server.hs.blobs.list("media")])
