"""What a page says about itself, with its picture. Spec: client-server-api/#get_matrixclientv1mediapreview_url"""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import trio
from trio.testing import MockClock

from homeserver.config import UrlPreviews
from homeserver.limits import previews as limits
from tests.federation.wire_server import Reply
from tests.media import images
from tests.media.servers import V1, blob_keys
from tests.media.web import PICTURE, Web, a_web


@pytest.fixture
async def web(tmp_path: Path) -> AsyncIterator[Web]:
    async with a_web(tmp_path) as web:
        yield web


async def test_a_page_is_shown_as_it_describes_itself(web: Web) -> None:
    web.page(
        "http://a.example/page",
        """<html><head><title>Tea – A site</title>
        <meta property="og:title" content="Tea &amp; cake"><meta property="og:description" content="What we drink.">
        <meta property="og:site_name" content="A site"><meta property="og:image" content="/tea.png">
        <meta property="og:image:width" content="9000"><meta property="og:image:alt" content="A cup">
        </head><body>Text</body></html>""",
    )
    web.page("http://a.example/tea.png", PICTURE, "image/png")
    found = await web.preview("http://a.example/page#top")
    uri = found.pop("og:image")
    assert found == {
        "og:title": "Tea & cake",
        "og:description": "What we drink.",
        "og:site_name": "A site",
        "og:image:type": "image/png",
        "og:image:width": 120,
        "og:image:height": 60,
        "matrix:image:size": len(PICTURE),
    }
    assert (await web.alice.get(f"{V1}/download/{uri.removeprefix('mxc://')}")).content == PICTURE
    deprecated = await web.alice.ok(
        "GET", "/_matrix/media/v3/preview_url?ts=1", params={"url": "http://a.example/page"}
    )
    assert deprecated == {"og:image": uri, **found}


async def test_a_page_without_descriptions_is_shown_by_its_title_text_and_first_picture(web: Web) -> None:
    web.page(
        "http://a.example/plain",
        """<title>Plain</title><body><nav>Menu of the site</nav><script>var no = 1;</script>
        <img src="data:image/png;base64,AAAA"><img src="dot.png" width="1" height="1"><img src="big.png">
        <h1>Heading</h1><p>The <b>first</b> para<i>graph</i>.<p>The second.</body>""",
    )
    web.page("http://a.example/big.png", PICTURE, "image/png")
    found = await web.preview("http://a.example/plain")
    assert (found["og:title"], found["og:description"]) == ("Plain", "Heading The first paragraph. The second.")
    assert found["matrix:image:size"] == len(PICTURE)
    assert web.requests == ["http://a.example/plain", "http://a.example/big.png"]


async def test_an_oembed_description_supplies_what_a_page_lacks(web: Web) -> None:
    web.page(
        "http://a.example/video",
        '<link rel="alternate" type="application/json+oembed" href="http://b.example/oembed?url=v"><title>v</title>',
    )
    oembed = """{"type": "video", "title": "A film", "provider_name": "Films", "author_name": ["nobody"],
        "html": "<blockquote><p>About <a>tea</a></p></blockquote>", "thumbnail_url": "/still.png", "width": "x"}"""
    web.page("http://b.example/oembed?url=v", oembed, "application/json")
    web.page("http://a.example/still.png", PICTURE, "image/png")
    found = await web.preview("http://a.example/video")
    assert (found["og:title"], found["og:site_name"]) == ("A film", "Films")
    assert (found["og:description"], found["og:image:width"]) == ("About tea", 120)


async def test_titles_are_cut_wherever_they_come_from(web: Web) -> None:
    web.page("http://a.example/", f"<meta property='og:title' content='{'a' * 2000}'>")
    assert len((await web.preview("http://a.example/"))["og:title"]) == limits.PREVIEW_TITLE_CHARACTERS_MAX


async def test_a_malformed_oembed_description_is_ignored(web: Web) -> None:
    malformed = ["", "[]", "{", "null", '{"title": 7, "html": {}}', "[" * 100_000, '{"html": ""}']
    for number, oembed in enumerate(malformed):
        html = f'<link rel=alternate type="application/json+oembed" href="/oembed/{number}"><title>T</title>'
        web.page(f"http://a.example/{number}", html)
        web.page(f"http://a.example/oembed/{number}", oembed, "application/json")
        assert await web.preview(f"http://a.example/{number}") == {"og:title": "T"}


async def test_a_picture_is_its_own_preview(web: Web) -> None:
    web.page("http://a.example/tea.png", PICTURE, "image/png")
    found = await web.preview("http://a.example/tea.png")
    assert found.pop("og:image").startswith("mxc://test.example/")
    assert found == {
        "og:image:type": "image/png",
        "og:image:width": 120,
        "og:image:height": 60,
        "matrix:image:size": len(PICTURE),
    }
    assert web.requests == ["http://a.example/tea.png"]


async def test_a_page_is_shown_without_a_picture_that_is_none(web: Web) -> None:
    svg = b"<svg xmlns='http://www.w3.org/2000/svg'><script>alert(1)</script></svg>"
    for number, (content, content_type) in enumerate(
        (
            (svg, "image/svg+xml"),
            (svg, "image/png"),
            (b"<script>alert(1)</script>", "image/png"),
            (images.png_claim(60_000, 60_000), "image/png"),
            (PICTURE, "text/html"),
            (b"", "image/png"),
        )
    ):
        web.page(f"http://a.example/{number}", f"<title>T</title><meta property=og:image content=/picture/{number}>")
        web.page(f"http://a.example/picture/{number}", content, content_type)
        assert await web.preview(f"http://a.example/{number}") == {"og:title": "T"}


async def test_the_next_picture_is_tried_if_the_first_is_missing(web: Web) -> None:
    web.page("http://a.example/", "<title>T</title><meta property=og:image content=/gone.png><img src=/there.png>")
    web.page("http://a.example/there.png", PICTURE, "image/png")
    assert (await web.preview("http://a.example/"))["og:image:width"] == 120


async def test_files_that_are_no_pages_have_an_empty_preview(web: Web) -> None:
    for content_type in ("application/pdf", "text/plain", "video/mp4", "", "nonsense"):
        url = f"http://a.example/{len(content_type)}"
        web.page(url, "<title>T</title>", content_type)
        assert await web.preview(url) == {}
    web.pages["http://a.example/z"] = Reply(
        200, [("Content-Type", "text/html"), ("Content-Encoding", "gzip")], b"\x1f\x8b"
    )
    assert await web.preview("http://a.example/z") == {}


async def test_urls_of_anything_but_pages_are_refused(web: Web) -> None:
    for url in (
        "", "a", "/page", "ftp://a.example/", "file:///etc/passwd", "javascript:alert(1)", "data:text/html,a",
        "http://", "http:///path", "http://user@a.example/", "http://user:secret@a.example/", "http://a.example:0/",
        "http://a.example:99999/", "http://[::1", "http://[a]/", "gopher://a.example/",
        "http://a.example/" + "a" * 3000,
    ):  # fmt: skip
        assert await web.refusal(url) == (400, "M_INVALID_PARAM"), url
    assert not web.requests


async def test_a_url_is_required(web: Web) -> None:
    assert await web.alice.refused("GET", f"{V1}/preview_url") == (400, "M_MISSING_PARAM")
    assert await web.server.anonymous.refused("GET", f"{V1}/preview_url?url=http://a.example/") == (
        401,
        "M_MISSING_TOKEN",
    )


async def test_previews_are_off_unless_the_operator_turns_them_on(tmp_path: Path) -> None:
    async with a_web(tmp_path, url_previews=UrlPreviews()) as web:
        web.page("http://a.example/", "<title>T</title>")
        assert await web.refusal("http://a.example/") == (403, "M_FORBIDDEN")
        assert not web.requests


async def test_a_page_that_fails_is_not_tried_again_at_once(web: Web, autojump_clock: MockClock) -> None:
    assert await web.refusal("http://a.example/") == (404, "M_NOT_FOUND")
    web.page("http://a.example/", "<title>T</title>")
    assert await web.refusal("http://a.example/") == (404, "M_NOT_FOUND")
    assert len(web.requests) == 1
    await trio.sleep(limits.PREVIEW_FAILURE_MS / 1000)
    assert await web.preview("http://a.example/") == {"og:title": "T"}


async def test_a_preview_is_fetched_once_a_day(web: Web, autojump_clock: MockClock) -> None:
    web.page("http://a.example/", "<title>T</title><meta property=og:image content=/p>")
    web.page("http://a.example/p", PICTURE, "image/png")
    first = await web.preview("http://a.example/")
    web.page("http://a.example/", "<title>U</title><meta property=og:image content=/p>")
    assert await web.preview("http://a.example/#elsewhere") == first
    assert len(web.requests) == 2
    await trio.sleep(limits.PREVIEW_LIFETIME_MS / 1000)
    assert await web.preview("http://a.example/") == {**first, "og:title": "U"}  # the picture has kept its URI


async def test_requests_for_the_same_page_share_one_fetch(web: Web, autojump_clock: MockClock) -> None:
    bob = await web.server.register("bob")
    web.page("http://a.example/", "<title>T</title>", pause_s=2)
    async with trio.open_nursery() as nursery:
        for client in (web.alice, bob) * 5:
            nursery.start_soon(lambda client=client: web.preview("http://a.example/", of=client))
    assert len(web.requests) == 1


async def test_each_user_may_have_a_limited_number_of_pages_fetched(web: Web) -> None:
    web.server.hs.rate_limits.enabled = True
    bob = await web.server.register("bob")
    answers = []
    for number in range(40):
        url = f"http://a.example/{number}"
        web.page(url, "<title>T</title>")
        answers.append((await web.alice.get(f"{V1}/preview_url", params={"url": url})).status_code)
    assert 429 in answers
    assert await web.preview("http://a.example/0") == {"og:title": "T"}  # it is stored
    assert await web.preview("http://a.example/39", of=bob) == {"og:title": "T"}


async def test_previews_and_their_pictures_are_deleted_when_they_are_old(web: Web, autojump_clock: MockClock) -> None:
    web.page("http://a.example/p", PICTURE, "image/png")
    uri = (await web.preview("http://a.example/p"))["og:image"].removeprefix("mxc://")
    await trio.sleep(limits.PREVIEW_LIFETIME_MS / 1000 + 7200)
    assert (await web.alice.get(f"{V1}/download/{uri}")).content == PICTURE
    await trio.sleep(limits.PREVIEW_PICTURE_LIFETIME_MS / 1000)
    assert await web.alice.refused("GET", f"{V1}/download/{uri}") == (404, "M_NOT_FOUND")
    assert await blob_keys(web.server) == []


async def test_the_space_for_pictures_is_limited(tmp_path: Path) -> None:
    space = UrlPreviews(enabled=True, bytes_max=3 * len(PICTURE))
    async with a_web(tmp_path, url_previews=space) as web:
        uris = []
        for number in range(5):
            picture = images.encoded(images.gradient(120 - number, 60), "PNG")
            web.page(f"http://a.example/{number}", picture, "image/png")
            uris.append((await web.preview(f"http://a.example/{number}"))["og:image"].removeprefix("mxc://"))
        assert await web.alice.refused("GET", f"{V1}/download/{uris[0]}") == (404, "M_NOT_FOUND")
        answers = [await web.alice.get(f"{V1}/download/{uri}") for uri in uris]
        kept = [answer.content for answer in answers if answer.status_code == 200]
        assert len(kept) >= 2 and sum(map(len, kept)) <= space.bytes_max
        assert "og:image" in await web.preview("http://a.example/0")  # fetched again, not a preview without its picture
