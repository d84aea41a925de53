"""Pages and web servers that mean harm to the server that makes previews of them."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import trio
from trio.testing import MockClock

from homeserver.config import OutboundHttp
from homeserver.limits import previews as limits
from tests.federation.wire_server import Reply, Site
from tests.media.servers import V1, blob_keys
from tests.media.web import PICTURE, WEB_IP, Web, a_web

FAILURE = (404, "M_NOT_FOUND")


@pytest.fixture
async def web(tmp_path: Path) -> AsyncIterator[Web]:
    async with a_web(tmp_path) as web:
        yield web


PRIVATE = (
    "127.0.0.1", "10.1.2.3", "192.168.1.1", "172.16.0.1", "169.254.169.254", "100.64.0.1", "0.0.0.0", "[::1]", "[::]",
    "[fd00::1]", "[fe80::1]", "[::ffff:127.0.0.1]", "[64:ff9b::7f00:1]", "[2002:7f00:1::]", "127.1", "2130706433",
    "0x7f.1", "0177.0.0.1", "１２７.０.０.１", "224.0.0.1", "255.255.255.255",
)  # fmt: skip


async def test_private_addresses_are_never_connected_to(web: Web) -> None:
    for host in PRIVATE:
        assert await web.refusal(f"http://{host}/") == FAILURE, host
    assert not web.world.connected


@pytest.mark.parametrize("private", ["127.0.0.1", "10.0.0.1", "::1", "169.254.169.254", "fd00::1"])
async def test_names_and_redirects_and_pictures_lead_to_no_private_address(web: Web, private: str) -> None:
    inside = web.world.add(private, 80, Site(web.answer), "inside.example")
    literal = f"[{private}]" if ":" in private else private
    assert await web.refusal("http://inside.example/") == FAILURE
    for target in (f"http://{literal}/", "http://inside.example/", f"//{literal}/", "ftp://a.example/", "http://["):
        redirect = f"http://a.example/redirect?{len(web.requests)}"
        web.pages[redirect] = Reply(302, [("Location", target)])
        assert await web.refusal(redirect) == FAILURE
        web.pages["http://a.example/picture"] = Reply(302, [("Location", target)])
        web.page(
            f"{redirect}&page",
            f"""<title>T</title><meta property=og:image content="{target}"><img src=/picture>
            <link rel=alternate type="application/json+oembed" href="{target}">""",
        )
        assert (await web.preview(f"{redirect}&page"))["og:title"] == "T"
    assert inside.connections == 0
    assert {address.ip for address in web.world.connected} == {WEB_IP}


async def test_the_address_that_was_checked_is_the_one_that_is_connected_to(web: Web) -> None:
    """A name that is public when it is checked, and private when it is looked up again."""
    inside = web.world.add("127.0.0.1", 80, Site(web.answer))
    web.page("http://rebinding.example/", "<title>T</title>", close=True)
    answers = [[WEB_IP], ["127.0.0.1"], ["127.0.0.1"]]

    class Rebinding(dict[str, list[str]]):
        def get(self, name: str, default: object = None) -> list[str]:  # type: ignore[override]
            return answers.pop(0) if name == "rebinding.example" else [WEB_IP]

    web.world.addresses = Rebinding()
    assert await web.preview("http://rebinding.example/") == {"og:title": "T"}
    assert await web.refusal("http://rebinding.example/again") == FAILURE
    assert inside.connections == 0


async def test_one_public_address_does_not_let_private_ones_pass(web: Web) -> None:
    inside = web.world.add("10.0.0.1", 80, Site(web.answer))
    web.world.addresses["both.example"] = ["10.0.0.1", WEB_IP]
    web.page("http://both.example/", "<title>T</title>")
    assert await web.preview("http://both.example/") == {"og:title": "T"}
    assert inside.connections == 0


async def test_redirects_are_followed_a_few_times(web: Web) -> None:
    web.pages["http://a.example/loop"] = Reply(302, [("Location", "/loop")])
    assert await web.refusal("http://a.example/loop") == FAILURE
    assert len(web.requests) <= 6
    web.pages["http://a.example/old"] = Reply(301, [("Location", "http://b.example/dir/new")])
    web.page("http://b.example/dir/new", "<title>T</title><img src=p.png>")
    web.page("http://b.example/dir/p.png", PICTURE, "image/png")
    found = await web.preview("http://a.example/old")
    assert (found["og:title"], found["og:image:width"]) == ("T", 120)


async def test_the_operator_may_allow_private_addresses(tmp_path: Path) -> None:
    async with a_web(tmp_path, outbound_http=OutboundHttp(allow_private_addresses=True)) as web:
        web.world.add("10.0.0.1", 80, Site(web.answer), "wiki.example")
        web.page("http://wiki.example/", "<title>Wiki</title>")
        assert await web.preview("http://wiki.example/") == {"og:title": "Wiki"}


async def test_only_the_beginning_of_an_endless_page_is_read(web: Web) -> None:
    piece = b"<p>" + b"x" * 65_000
    web.page("http://a.example/", b"", chunks=[b"<title>T</title>", *[piece] * 1000])
    found = await web.preview("http://a.example/")
    assert found["og:title"] == "T"
    web.pages["http://a.example/long"] = Reply(
        200,
        [("Content-Type", "text/html"), ("Content-Length", str(1 << 50))],
        chunks=[b"<title>T</title>", *[piece] * 100],
    )
    assert (await web.preview("http://a.example/long"))["og:title"] == "T"


async def test_pictures_that_are_too_large_are_left_out(web: Web) -> None:
    web.page("http://a.example/", "<title>T</title><meta property=og:image content=/p>")
    head = PICTURE[:-12]
    web.page("http://a.example/p", b"", "image/png", chunks=[head, *[b"x" * 65_000] * 200])
    assert await web.preview("http://a.example/") == {"og:title": "T"}
    assert await blob_keys(web.server) == []


@pytest.mark.parametrize("slow", ["head", "page", "picture", "oembed"])
async def test_slow_web_servers_are_given_up(web: Web, autojump_clock: MockClock, slow: str) -> None:
    web.page(
        "http://a.example/",
        """<title>T</title><meta property=og:image content=/p>
        <link rel=alternate type="application/json+oembed" href=/o>""",
    )
    trickle = [b"<"] * 10_000
    if slow == "head":
        web.page("http://a.example/", "", pause_s=3600)
    elif slow == "page":
        web.page("http://a.example/", "", chunks=trickle, chunk_pause_s=5)
    elif slow == "picture":
        web.page("http://a.example/p", "", "image/png", chunks=trickle, chunk_pause_s=5)
    else:
        web.page("http://a.example/o", "", "application/json", chunks=trickle, chunk_pause_s=5)
    began_s = trio.current_time()
    answer = await web.alice.get(f"{V1}/preview_url", params={"url": "http://a.example/"})
    assert trio.current_time() - began_s <= limits.PREVIEW_PICTURE_DEADLINE_S + 1
    if slow in ("head", "page"):
        assert answer.status_code == 404
    else:
        assert answer.json() == {"og:title": "T"}


async def test_errors_tell_nothing_of_the_network(web: Web) -> None:
    web.world.add("10.0.0.1", 80, Site(web.answer), "inside.example")
    texts = set()
    for url in ("http://inside.example/", "http://10.0.0.1/", "http://unknown.example/", "http://a.example:81/"):
        texts.add((await web.alice.get(f"{V1}/preview_url", params={"url": url})).text)
    assert len(texts) == 1


async def test_a_result_of_a_compromised_process_is_checked(web: Web) -> None:
    web.page("http://a.example/", "<title>T</title>")

    async def run_process(*args: object, **options: object) -> object:
        await trio.lowlevel.checkpoint()
        return {"properties": {"og:title": "x" * 100_000}, "title": 7}

    object.__setattr__(web.server.hs.workers, "run_process", run_process)
    assert await web.preview("http://a.example/") == {}


async def test_a_page_that_kills_the_process_has_an_empty_preview(web: Web) -> None:
    web.page("http://a.example/", "<title>T</title>")
    inner = web.server.hs.workers.run_process

    async def run_process(function: str, *args: object, **options: object) -> object:
        return await inner("tests.database.worker_functions:spin", timeout_s=0.1)  # type: ignore[arg-type]

    object.__setattr__(web.server.hs.workers, "run_process", run_process)
    assert await web.preview("http://a.example/") == {}
