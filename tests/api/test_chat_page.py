"""The page to talk in, as files: what is served, under which rules of the browser, and how long it is kept."""

from __future__ import annotations

import gzip
import re
from pathlib import Path

import httpx
import pytest
from msgspec.structs import replace

from homeserver.api.routes import Routes
from homeserver.config import ChatSection, Config, Registration
from homeserver.http.asgi import App
from homeserver.pages import chat, make_pages
from tests.api.conftest import StartServer

FOLDER = Path(chat.__file__).parent
MODULES = sorted(FOLDER.glob("*.js"))
CONFIG = Config(server_name="a.example")
LINES_MAX = 500


async def get(start_server: StartServer, *paths: str, config: Config = CONFIG, **headers: str) -> list[httpx.Response]:
    async with start_server(Routes()) as server:
        app = App(server.app.dispatch, pages=lambda: make_pages(replace(server.hs, config=config)))
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="https://test.example") as http:
            return [await http.get(path, headers=headers) for path in paths]


def linked(page: str) -> list[str]:
    """Returns the addresses of the files that the page loads."""
    return [f"/_homeserver/{address}" for address in re.findall(r"(?:src|href)=\"([^\"]+)\"", page)]


async def test_the_chat_page_is_served_with_its_files(start_server: StartServer) -> None:
    (page,) = await get(start_server, "/_homeserver/chat")
    assert page.headers["content-type"] == "text/html; charset=utf-8"
    files = await get(start_server, *linked(page.text))
    assert [file.status_code for file in files] == [200] * len(files)
    kinds = {file.headers["content-type"].partition(";")[0] for file in files}
    assert kinds == {"text/javascript", "text/css", "image/svg+xml"}


async def test_the_chat_page_runs_scripts_of_this_server_only(start_server: StartServer) -> None:
    (page,) = await get(start_server, "/_homeserver/chat")
    policy = dict(part.split(" ", 1) for part in page.headers["content-security-policy"].split("; "))
    assert policy["default-src"] == "'none'"
    assert policy["script-src"] == policy["style-src"] == policy["connect-src"] == "'self'"
    assert policy["require-trusted-types-for"] == "'script'"
    assert policy["frame-ancestors"] == "'none'"
    assert page.headers["x-content-type-options"] == "nosniff"
    assert re.search(r"<script(?![^>]*\bsrc=)|<style|\sstyle=|\son\w+=", page.text) is None


async def test_files_of_the_chat_page_are_kept_for_ever_under_a_name_of_their_content(
    start_server: StartServer,
) -> None:
    (page,) = await get(start_server, "/_homeserver/chat")
    assert page.headers["cache-control"] == "no-cache"
    (script,) = await get(start_server, *[path for path in linked(page.text) if path.endswith("main.js")])
    assert "immutable" in script.headers["cache-control"]
    (missing,) = await get(start_server, "/_homeserver/chat/0123456789abcdef/main.js")
    assert missing.status_code == 404


async def test_the_chat_page_is_not_sent_again_if_the_browser_has_it(start_server: StartServer) -> None:
    (page,) = await get(start_server, "/_homeserver/chat")
    (again,) = await get(start_server, "/_homeserver/chat", **{"if-none-match": page.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")


def test_files_of_the_chat_page_are_sent_compressed_to_browsers_that_take_it() -> None:
    files = chat.ChatFiles("a.example")
    path = f"{chat.PATH}/{files.version}/main.js"
    compressed, plain = files.find(path, {"accept-encoding": "gzip, br"}), files.find(path, {})
    assert compressed is not None and plain is not None
    assert compressed.headers["content-encoding"] == "gzip"
    assert gzip.decompress(compressed.body) == plain.body == (FOLDER / "main.js").read_bytes()


async def test_the_chat_page_can_be_switched_off(start_server: StartServer) -> None:
    config = Config(server_name="a.example", chat=ChatSection(enabled=False))
    page, front = await get(start_server, "/_homeserver/chat", "/", config=config)
    assert page.status_code == 404
    assert "/_homeserver/chat" not in front.text


@pytest.mark.parametrize(
    ("registration", "offered"),
    [(Registration(), "closed"), (Registration(True), "open"), (Registration(True, require_token=True), "token")],
)
async def test_the_chat_page_knows_who_may_create_an_account(
    start_server: StartServer, registration: Registration, offered: str
) -> None:
    config = Config(server_name="a.example", registration=registration)
    (page,) = await get(start_server, "/_homeserver/chat", config=config)
    assert f'data-registration="{offered}"' in page.text


async def test_the_chat_page_is_only_read(start_server: StartServer) -> None:
    async with start_server(Routes()) as server:
        app = App(server.app.dispatch, pages=lambda: make_pages(replace(server.hs, config=CONFIG)))
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="https://test.example") as http:
            posted, head = await http.post(chat.PATH), await http.head(chat.PATH)
    assert (posted.status_code, posted.headers["allow"]) == (405, "GET, HEAD")
    assert (head.status_code, head.content) == (200, b"")
    assert int(head.headers["content-length"]) > 0


async def test_the_front_page_leads_to_the_chat_page(start_server: StartServer) -> None:
    (front,) = await get(start_server, "/")
    assert 'href="/_homeserver/chat"' in front.text


async def test_the_name_of_the_server_cannot_become_markup_of_the_chat_page() -> None:
    page = chat.ChatFiles('"><script>alert(1)</script>').find(chat.PATH, {})
    assert page is not None
    assert b"<script>alert" not in page.body


def test_modules_of_the_chat_page_import_only_one_another() -> None:
    imported = {
        (module.name, name)
        for module in MODULES
        for name in re.findall(r"from \"([^\"]+)\"", module.read_text("utf-8"))
    }
    assert {name for _, name in imported} <= {f"./{module.name}" for module in MODULES}
    used = {name for _, name in imported} | {"./main.js"}
    assert {f"./{module.name}" for module in MODULES} == used


def test_modules_of_the_chat_page_make_no_markup_or_code_from_text() -> None:
    forbidden = r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|DOMParser|\beval\b|new Function|srcdoc|setHTML"
    comment = re.compile(r"^\s*//.*$", re.MULTILINE)
    found = {
        module.name: match.group()
        for module in MODULES
        if (match := re.search(forbidden, comment.sub("", module.read_text("utf-8"))))
    }
    assert found == {}


def test_modules_of_the_chat_page_are_short() -> None:
    assert {
        path.name for path in FOLDER.iterdir() if path.is_file() and path.read_bytes().count(b"\n") > LINES_MAX
    } == set()
