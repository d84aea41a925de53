"""Errors tell users nothing of the network that the server is in: not what names stand for, nor which ports answer."""

from __future__ import annotations

from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from homeserver.federation.identifiers import ServerName
from homeserver.federation.wire import WireError, WireRequest
from tests.support.homeservers import config_for_tests, running
from tests.support.rows import row

TOLD = "10.1.2.3 port 8448: connection refused by intranet.internal"


class Intranet:
    """A network in which every name stands for an internal address, where nothing listens."""

    @asynccontextmanager
    async def stream(self, destination: ServerName, request: WireRequest, **_: Any) -> Any:
        raise WireError(TOLD, "connect")
        yield

    @asynccontextmanager
    async def stream_url(self, url: str, **_: Any) -> Any:
        raise WireError(TOLD, "refused")
        yield

    @asynccontextmanager
    async def stream_page(self, url: str, **_: Any) -> Any:
        raise WireError(TOLD, "refused")
        yield

    async def request_url(self, method: str, url: str, **_: Any) -> Any:
        raise WireError(TOLD, "refused")


REQUESTS = (
    ("GET", "profile/@a:intranet.internal", None),
    ("GET", "profile/@a:intranet.internal/displayname", None),
    ("GET", "directory/room/%23a:intranet.internal", None),
    ("GET", "publicRooms?server=intranet.internal", None),
    ("POST", "publicRooms?server=intranet.internal", {}),
    ("POST", "join/%23a:intranet.internal", {}),
    ("POST", "join/!a:intranet.internal?via=intranet.internal", {}),
    ("POST", "knock/!a:intranet.internal?via=intranet.internal", {}),
    ("GET", "/_matrix/client/v1/media/download/intranet.internal/a", None),
    ("GET", "/_matrix/client/v1/media/thumbnail/intranet.internal/b?width=10&height=10", None),
    ("POST", "rooms/{room}/invite", {"user_id": "@a:intranet.internal"}),
)


async def test_internal_addresses_appear_only_in_the_log(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    async with running(config_for_tests("test.example", tmp_path), wire=Intranet()) as server:
        alice = await server.register("alice")
        room = (await alice.ok("POST", "createRoom", json={}))["room_id"]
        for number, (method, path, body) in enumerate(REQUESTS):
            with row(method, path):
                caplog.clear()
                name = f"{number}.intranet.internal"  # one that does not answer is left alone for a while
                asked = path.replace("{room}", room).replace("intranet.internal", name)
                told = body and {key: value.replace("intranet.internal", name) for key, value in body.items()}
                answer = await alice.request(method, asked, json=told)
                assert answer.status_code >= 400, answer.text
                for part in ("10.1.2.3", "8448", "refused"):
                    assert part not in answer.text
                assert any(TOLD in str(vars(record)) for record in caplog.records)
