"""The page for people who open the server's address in a browser."""

from __future__ import annotations

import re

import httpx
import pytest
from msgspec.structs import replace

from homeserver.api.routes import Routes
from homeserver.config import Config, Public, Registration
from homeserver.http.asgi import App
from homeserver.pages import make_pages, welcome
from tests.api.conftest import StartServer


async def get(start_server: StartServer, path: str, config: Config) -> httpx.Response:
    async with start_server(Routes()) as server:
        app = App(server.app.dispatch, pages=lambda: make_pages(replace(server.hs, config=config)))
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="https://test.example") as http:
            return await http.get(path)


async def test_the_front_page_explains_how_to_connect(start_server: StartServer) -> None:
    config = Config(server_name="a.example", public=Public(base_url="https://matrix.a.example"))
    page = await get(start_server, "/", config)
    assert page.status_code == 200
    assert page.headers["content-type"].startswith("text/html")
    for part in (config.server_name, "https://matrix.a.example", "Element", "prefers-color-scheme: dark"):
        assert part in page.text


async def test_the_front_page_says_who_can_read_encrypted_rooms(start_server: StartServer) -> None:
    page = await get(start_server, "/", Config(server_name="a.example"))
    assert "can be read by their members only" in page.text


async def test_the_front_page_loads_nothing_from_elsewhere(start_server: StartServer) -> None:
    page = await get(start_server, "/", Config(server_name="a.example"))
    assert not re.findall(r"<(?:script|img|iframe|link)[^>]+(?:src|href)=[\"'](?!data:)", page.text)
    assert "default-src 'none'" in page.headers["content-security-policy"]


async def test_unknown_paths_get_a_page_except_protocol_paths(start_server: StartServer) -> None:
    config = Config(server_name="a.example")
    missing = await get(start_server, "/nothing/here", config)
    assert (missing.status_code, missing.headers["content-type"]) == (404, "text/html; charset=utf-8")
    protocol = await get(start_server, "/_matrix/nothing", config)
    assert (protocol.status_code, protocol.json()["errcode"]) == (404, "M_UNRECOGNIZED")


@pytest.mark.parametrize(
    ("registration", "said"),
    [
        (Registration(), "created by the people who run this server"),
        (Registration(enabled=True), "Registration is open"),
        (Registration(enabled=True, require_token=True), "need a registration token"),
    ],
)
def test_the_front_page_says_who_may_register(registration: Registration, said: str) -> None:
    assert said in welcome(Config(server_name="a.example", registration=registration))["accounts"]


def test_the_front_page_shows_the_server_name_only_if_it_resolves_here() -> None:
    at_home = Config(server_name="a.example", public=Public(base_url="https://a.example"))
    elsewhere = Config(server_name="a.example", public=Public(base_url="https://m.a.example"))
    assert welcome(at_home)["homeserver"] == "a.example"
    assert welcome(elsewhere)["homeserver"] == "https://m.a.example"
