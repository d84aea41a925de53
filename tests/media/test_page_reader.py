"""What is read of a page: its encoding, and texts within their limits. Spec: https://encoding.spec.whatwg.org/"""

from __future__ import annotations

import time

import pytest

from homeserver.features.media.page_reader import read_page
from homeserver.limits import previews as limits

MIB = 1 << 20


@pytest.mark.parametrize(
    ("html", "charset"),
    [
        ("<title>Grüße 日本</title>".encode(), ""),
        ("<title>Grüße 日本</title>".encode("utf-8-sig"), "iso-8859-1"),
        ("<title>Grüße 日本</title>".encode("utf-16"), ""),
        ("<title>Grüße 日本</title>".encode("gb18030"), "GB2312"),
        ("<title>Grüße 日本</title>".encode(), "utf-7"),
        ("<title>Grüße 日本</title>".encode(), "x" * 10_000),
        ("<title>Grüße 日本</title>".encode(), "../../bz2"),
        ("<title>Grüße 日本</title>".encode(), "\0"),
        ("<meta charset=utf-8><title>Grüße 日本</title><!--".encode() + b"\xff-->", ""),
        ('<meta content="text/html; charset=gbk"><title>Grüße 日本</title>'.encode("gb18030"), ""),
    ],
)  # fmt: skip
def test_pages_are_read_in_the_encoding_that_a_browser_would_use(html: bytes, charset: str) -> None:
    assert read_page(html, charset)["title"] == "Grüße 日本"


def test_undeclared_bytes_that_are_not_utf_8_are_read_as_browsers_read_them() -> None:
    assert read_page("<title>Grüße – 5 €</title>".encode("cp1252"), "")["title"] == "Grüße – 5 €"
    assert read_page("<title>日本</title>".encode("shift_jis"), "x-sjis")["title"] == "日本"


def test_texts_are_cut_to_their_limits_and_free_of_control_characters() -> None:
    properties = "".join(f'<meta property="og:p{number}" content="x">' for number in range(200))
    description = f"x\x00y\x1b[0m\n\n\t z\u202e{'b' * 9_000}"
    html = f"<title>{'a' * 10_000}</title><meta name=description content='{description}'>{properties}"
    found = read_page(html.encode(), "")
    assert len(found["properties"]) <= limits.PREVIEW_PROPERTIES_MAX
    assert len(found["title"]) == limits.PREVIEW_TITLE_CHARACTERS_MAX
    assert found["description"].startswith("xy [0m z b")
    assert len(found["description"]) == limits.PREVIEW_DESCRIPTION_CHARACTERS_MAX


HOSTILE = {
    "deep": b"<div>" * (MIB // 5),
    "deep links": b"<a>" * (MIB // 3),
    "formatting": b"<b><i><p>" * (MIB // 9),
    "tables": b"<table><tr><td>" * (MIB // 15),
    "attributes": b"<a " + b" ".join(b"x%d=1" % number for number in range(MIB // 8)) + b">",
    "one long attribute": b"<meta property=og:title content='" + b"y" * MIB,
    "angle brackets": b"<" * MIB,
    "comments": b"<!--" * (MIB // 4),
    "metas": b"<meta property=og:x content=y>" * (MIB // 30),
    "unclosed meta": b"<meta " * (MIB // 6),
    "entities": b"&amp;" * (MIB // 5),
    "entity bomb": b'<!DOCTYPE a [<!ENTITY a "aaaaaaaaaa">'
    + b"".join(b'<!ENTITY a%d "&a;&a;&a;">' % number for number in range(10_000))
    + b"]><title>&a9999;</title>",
    "external entity": b'<!DOCTYPE a [<!ENTITY a SYSTEM "file:///etc/passwd">]><title>&a;</title>',
    "headings": b"<h1>" + b"<b>x</b>" * (MIB // 8),
    "closing tags": b"</p>" * (MIB // 4),
    "scripts": b"<script>" + b"<!--<script>" * (MIB // 12),
    "zeros": bytes(MIB),
    "controls": b"<p>" + b"\x01" * MIB,
    "white space": b"<title>" + b" " * MIB,
}


@pytest.mark.parametrize("html", HOSTILE.values(), ids=HOSTILE.keys())
def test_no_page_is_expensive_to_read(html: bytes) -> None:
    began_s = time.process_time()
    found = read_page(html, "utf-8")
    assert time.process_time() - began_s < 2 * limits.PREVIEW_READ_TIMEOUT_S
    assert sum(map(len, found["properties"].values())) < 100_000
    assert "root:" not in str(found)
