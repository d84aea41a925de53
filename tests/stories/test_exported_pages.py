"""Exported pages show what people meant by their formatting, and nothing that they could do harm with."""

from __future__ import annotations

import re
import time
from html.parser import HTMLParser
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from homeserver.portability.formatted import clean, link
from homeserver.portability.rooms import export_room
from tests.media.images import encoded, gradient
from tests.stories.test_export import Tags, nothing, send, upload
from tests.support.federation import Federation, create_room, join, send_text

LINK = ' rel="noopener noreferrer nofollow">'
SHOWN = {
    "<b>bold</b> <em>soft</em><br/>new": "<b>bold</b> <em>soft</em><br>new",
    '<a href="https://example.org/?a=1&amp;b=2">x</a>': f'<a href="https://example.org/?a=1&amp;b=2"{LINK}x</a>',
    "<ol start='3'><li>tea</ol>": '<ol start="3"><li>tea</li></ol>',
    '<pre><code class="language-c">a &lt; b</code></pre>': '<pre><code class="language-c">a &lt; b</code></pre>',
    "<table><tr><th>a</th></tr></table>": "<table><tr><th>a</th></tr></table>",
    "<mx-reply><blockquote>Hello</blockquote></mx-reply>I answer": "I answer",
    '<span data-mx-spoiler="end">he dies</span>': '<span class="spoiler" tabindex="0">he dies</span>',
    "see https://example.org.": f'see <a href="https://example.org"{LINK}https://example.org</a>.',
}
HARMLESS = {
    "<script>alert(1)</script>x": "x",
    "<b onclick=alert(1) style='position:fixed'>x</b>": "<b>x</b>",
    '<a href="javascript:alert(1)">x</a>': "<a>x</a>",
    '<a href="java\nscript:alert(1)">x</a>': "<a>x</a>",
    "<img src=x onerror=alert(1)>x": "x",
    "<svg><style>*{}</style></svg>x": "x",
    "</div></article></main>x": "x",
    "<b><i>x</b>y</i>": "<b><i>x</i></b>y",
    "<!-- --><!doctype x><?php x?>y": "y",
    '<code class="language-x" onx="">&lt;script&gt;</code>': '<code class="language-x">&lt;script&gt;</code>',
    '<code class="x y">z</code>': "<code>z</code>",
    "<ol start='3\"x'>y</ol>": "<ol>y</ol>",
    "<iframe>": "",
    "a < b && c > d": "a &lt; b &amp;&amp; c &gt; d",
}


@pytest.mark.parametrize(("html", "shown"), [*SHOWN.items(), *HARMLESS.items()])
def test_formatted_text_is_shown_without_what_could_do_harm(html: str, shown: str) -> None:
    assert clean(html) == shown


class Nesting(HTMLParser):
    """Fails if a page is not nested as it should be, or has a tag or an attribute that is not expected."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.feed(page)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert not {name for name, _ in attrs} - {"href", "rel", "start", "class", "tabindex"}
        assert tag not in ("script", "style", "img", "iframe", "svg", "form", "input", "link", "meta")
        if tag not in ("br", "hr"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


PIECES = ("<b>", "</b>", "<a href=", "'https://x.org'", '"', ">", "<", "script", "<script>", "</script>", "<!--", "-->",
          "<p/>", "&lt;", "&#60;", "\x00", "<code class=language-a>", "</code>", "<![CDATA[", "<ol start=1>", "x", " ",
          "<mx-reply>", "</mx-reply>", "https://example.org/<b>", "<?", "</")  # fmt: skip


@settings(max_examples=200, deadline=None)
@given(st.lists(st.sampled_from(PIECES), max_size=12).map("".join))
def test_cleaned_text_is_nested_and_has_no_other_tags(html: str) -> None:
    cleaned = clean(html)
    assert cleaned is None or Nesting(cleaned)
    Nesting(link(html))


@pytest.mark.parametrize("piece", ["<a ", "<!", "<b>", "</b>", "&#", "<![", "<!--", "<a b='"])
def test_malformed_text_is_cleaned_in_little_time(piece: str) -> None:
    html = (piece * 60_000)[:60_000]
    began = time.process_time()
    clean(html)
    assert time.process_time() - began < 2


async def test_a_page_shows_formatting_faces_and_who_came_before_the_history(
    federation: Federation, tmp_path: Path
) -> None:
    a, _, alice, bob = await federation.start_two()
    face = await upload(alice, encoded(gradient(16, 16), "PNG"), "image/png")
    for each in (alice, bob):
        await each.ok("PUT", f"profile/{each.user_id}/displayname", json={"displayname": each.user_id[1:4].title()})
    await alice.ok("PUT", f"profile/{alice.user_id}/avatar_url", json={"avatar_url": face})
    room_id = await create_room(alice, preset="public_chat", name="Kitchen")
    await join(bob, room_id, a.name)
    formatted = {"format": "org.matrix.custom.html", "formatted_body": "a <b>blue</b> kettle<script>x</script>"}
    await send(alice, room_id, "1", {"msgtype": "m.text", "body": "a **blue** kettle", **formatted})
    await send_text(alice, room_id, "and another")
    done = await export_room(a.hs, room_id, tmp_path / "out", "html", nothing)
    page = (tmp_path / "out" / "index.html").read_text()
    assert '<div class="html">a <b>blue</b> kettle</div>' in page
    (picture,) = re.findall(r'<img class="avatar" loading="lazy" src="([^"]*)"', page)
    assert (tmp_path / "out" / picture).read_bytes() == encoded(gradient(16, 16), "PNG")
    assert done["media"] == 1, "the face is there once, however much Alice says"
    assert page.count('class="who c') == 1, "the second message shares the head of the first"
    assert "Ali is here" in Tags(page).text and "Bob is here" in Tags(page).text
