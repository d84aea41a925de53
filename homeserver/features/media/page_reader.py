"""Reads a web page in a separate process (`homeserver.process.workers`), because the page may be hostile.

It imports nothing of the server but its limits, so that the process starts quickly and offers little to exploit. Spec:
client-server-api/#get_matrixclientv1mediapreview_url; the properties are those of https://ogp.me/. Encodings are found
as browsers find them: https://encoding.spec.whatwg.org/
"""

from __future__ import annotations

import codecs
import re
from collections.abc import Iterator, Mapping
from typing import Any

from lxml import etree

from homeserver.features.media.text import clean
from homeserver.limits.previews import (
    PREVIEW_DESCRIPTION_CHARACTERS_MAX,
    PREVIEW_ELEMENTS_MAX,
    PREVIEW_PICTURES_TRIED_MAX,
    PREVIEW_PROPERTIES_MAX,
    PREVIEW_PROPERTY_CHARACTERS_MAX,
    PREVIEW_TITLE_CHARACTERS_MAX,
)

_BYTE_ORDER_MARKS = ((b"\xef\xbb\xbf", "utf-8"), (b"\xfe\xff", "utf-16-be"), (b"\xff\xfe", "utf-16-le"))
# Python's names of the encodings that browsers know. It has others, which would turn a page into something else.
_ENCODINGS = frozenset({
    "ascii", "big5", "big5hkscs", "cp1250", "cp1251", "cp1252", "cp1253", "cp1254", "cp1255", "cp1256", "cp1257",
    "cp1258", "cp866", "cp874", "cp932", "cp949", "euc_jp", "euc_kr", "gb18030", "gb2312", "gbk", "iso2022_jp",
    "iso8859-1", "iso8859-10", "iso8859-11", "iso8859-13", "iso8859-14", "iso8859-15", "iso8859-16", "iso8859-2",
    "iso8859-3", "iso8859-4", "iso8859-5", "iso8859-6", "iso8859-7", "iso8859-8", "iso8859-9", "koi8-r", "koi8-u",
    "mac-cyrillic", "mac-roman", "shift_jis", "tis-620", "utf-16", "utf-16-be", "utf-16-le", "utf-8",
})  # fmt: skip
# What browsers take instead, because pages say the one and mean the other.
_MEANT = {
    "ascii": "cp1252",
    "iso8859-1": "cp1252",
    "iso8859-9": "cp1254",
    "iso8859-11": "cp874",
    "tis-620": "cp874",
    "gb2312": "gb18030",
    "gbk": "gb18030",
    "shift_jis": "cp932",
    "euc_kr": "cp949",
    "utf-16": "utf-16-le",
}
_LABEL = re.compile(r"[A-Za-z0-9_:.-]{1,40}", re.ASCII)
_META_CHARSET = re.compile(rb"""<meta\b[^>]{0,500}?\bcharset\s{0,9}=\s{0,9}["']?\s{0,9}([A-Za-z0-9_:.-]{1,40})""", re.I)
_META_WITHIN_BYTES = 4096  # browsers look at the first 1024 bytes; some pages have a longer comment there

_NOTED = frozenset({"meta", "link", "base", "img", "title", "h1", "h2"})
# Elements whose text is not what a page is about.
_NOT_TEXT = frozenset({
    "aside", "audio", "button", "canvas", "dialog", "figure", "footer", "form", "head", "header", "iframe", "math",
    "nav", "noscript", "object", "script", "select", "style", "svg", "template", "textarea", "title", "video",
})  # fmt: skip
_INLINE = frozenset({
    "a", "abbr", "b", "bdi", "bdo", "cite", "code", "em", "font", "i", "ins", "kbd", "mark", "q", "s", "small",
    "span", "strong", "sub", "sup", "time", "u", "wbr",
})  # fmt: skip
_WHITE_SPACE = re.compile(r"\s+")
_PIECE_BYTES = 16 * 1024  # parsed at once
_TITLE_PIECES_MAX = 50  # a title or heading has one, and one more for each element or entity in it
_PICTURE_SIDE_MIN = 48  # smaller ones are icons and counters
_PICTURE_PROPERTIES = (
    "og:image:secure_url",
    "og:image",
    "og:image:url",
    "twitter:image",
    "twitter:image:src",
)


def read_page(data: bytes, charset: str) -> dict[str, Any]:
    """Returns what a page says about itself, all of it cleaned and cut to the limits.

    `properties`: its OpenGraph properties. `title`, `description`: "" if there is none. `pictures`: URLs, the best
    first. `oembed`: the URL of its oEmbed description, or "". `base`: what these URLs are relative to, or "".
    charset: what the Content-Type says, or "".
    """
    page = _Page()
    _parse(decode(data, charset), page)
    return {
        "properties": page.properties,
        "title": page.best_title(),
        "description": page.best_description(),
        "pictures": list(dict.fromkeys(page.best_pictures()))[:PREVIEW_PICTURES_TRIED_MAX],
        "oembed": page.oembed,
        "base": page.base,
    }


def decode(data: bytes, charset: str) -> str:
    """Returns the text of a page: by its byte order mark, the `charset` of its header, its own <meta>, or a guess."""
    for mark, marked in _BYTE_ORDER_MARKS:
        if data.startswith(mark):
            return data[len(mark) :].decode(marked, "replace")
    encoding = _find_encoding(charset)
    if encoding is None and (found := _META_CHARSET.search(data, 0, _META_WITHIN_BYTES)) is not None:
        encoding = _find_encoding(found[1].decode("ascii"))
        if encoding is not None and encoding.startswith("utf-16"):
            encoding = "utf-8"  # or its <meta> could not have been read
    if encoding is not None:
        return data.decode(encoding, "replace")
    # The last character may have been cut in two.
    text = codecs.utf_8_decode(data, "replace", False)[0]
    return text if "\ufffd" not in text else data.decode("cp1252", "replace")


def _find_encoding(label: str) -> str | None:
    if not _LABEL.fullmatch(label):
        return None
    try:
        name = codecs.lookup(label.lower().removeprefix("x-")).name
    except (LookupError, ValueError):
        return None
    return _MEANT.get(name, name) if name in _ENCODINGS else None


def _parse(text: str, page: _Page) -> None:
    # The page receives elements as they are read; a tree would be slow for an element with very many attributes. No
    # entities are declared in HTML, and nothing is loaded.
    parser = etree.HTMLParser(target=page, encoding="utf-8", no_network=True, recover=True, huge_tree=False)
    data = text.replace("\0", "").encode("utf-8", "replace")
    try:
        for start in range(0, len(data), _PIECE_BYTES):
            parser.feed(data[start : start + _PIECE_BYTES])
            if page.is_complete:
                return
        parser.close()
    except etree.LxmlError:  # the rest cannot be read
        return


class _Page:
    """What has been found in a page. The parser calls `start`, `data` and `end`, in the order of the page."""

    def __init__(self) -> None:
        self.meta: dict[str, str] = {}
        self.properties: dict[str, str] = {}
        self.title = ""
        self.heading = ""
        self.oembed = ""
        self.base = ""
        self.image_src = ""
        self.images: list[str] = []
        self._text: list[str] = []
        self._text_characters = 0
        self._elements = 0
        self._skipped: list[str] = []  # the element whose content is skipped, and those of the same name in it
        self._open: dict[str, list[str]] = {}  # the texts of a title or heading that has not ended

    @property
    def is_complete(self) -> bool:
        """Whether reading on would cost more than it could bring."""
        return self._elements > PREVIEW_ELEMENTS_MAX

    def start(self, tag: str, attributes: Mapping[str, str]) -> None:
        """Reads an element's attributes."""
        self._elements += 1
        if self.is_complete:
            return
        self._break(tag)
        if tag in _NOTED:
            self._read_element(tag, attributes)
        if self._skipped:
            if tag == self._skipped[0]:
                self._skipped.append(tag)
        elif tag in _NOT_TEXT:
            self._skipped.append(tag)

    def end(self, tag: str) -> None:
        """Ends a title, a heading, or what is skipped."""
        self._break(tag)
        if self._skipped and tag == self._skipped[0]:
            self._skipped.pop()
        if (texts := self._open.pop(tag, None)) is not None:
            text = clean("".join(texts), PREVIEW_TITLE_CHARACTERS_MAX)
            if tag == "title":
                self.title = self.title or text
            else:
                self.heading = self.heading or text

    def data(self, text: str) -> None:
        """Adds text to what it is part of."""
        for texts in self._open.values():
            if len(texts) < _TITLE_PIECES_MAX:
                texts.append(text[:_PIECE_BYTES])
        if not self._skipped and self._text_characters <= PREVIEW_DESCRIPTION_CHARACTERS_MAX:
            squeezed = _WHITE_SPACE.sub(" ", text[:_PIECE_BYTES])
            if squeezed != " ":
                self._text.append(squeezed)
                self._text_characters += len(squeezed)

    def close(self) -> None:
        """Ends the page."""

    def _break(self, tag: str) -> None:
        if tag not in _INLINE and self._text and self._text[-1] != " ":
            self._text.append(" ")

    def _read_element(self, tag: str, attributes: Mapping[str, str]) -> None:
        if tag == "meta":
            self._read_meta(attributes)
        elif tag == "link":
            self._read_link(attributes)
        elif tag == "base":
            self.base = self.base or _url(attributes.get("href"))
        elif tag == "img":
            if len(self.images) < PREVIEW_PICTURES_TRIED_MAX:
                if not (_is_small(attributes.get("width")) or _is_small(attributes.get("height"))):
                    self.images += filter(None, [_url(attributes.get("src"))])
        elif not self._skipped or tag == "title":
            self._open.setdefault(tag, [])

    def _read_meta(self, attributes: Mapping[str, str]) -> None:
        name = (attributes.get("property") or attributes.get("name") or "").strip().lower()
        content = clean(attributes.get("content"), PREVIEW_PROPERTY_CHARACTERS_MAX)
        if not content or len(name) > 100:
            return
        if name.startswith(("og:", "twitter:")) or name == "description":
            if len(self.meta) < 2 * PREVIEW_PROPERTIES_MAX:
                self.meta.setdefault(name, content)
        if name.startswith("og:") and not name.startswith("og:image") and len(self.properties) < PREVIEW_PROPERTIES_MAX:
            self.properties.setdefault(name, content)

    def _read_link(self, attributes: Mapping[str, str]) -> None:
        relations = (attributes.get("rel") or "").lower().split()
        if "alternate" in relations and not self.oembed:
            if (attributes.get("type") or "").strip().lower() == "application/json+oembed":
                self.oembed = _url(attributes.get("href"))
        elif "image_src" in relations and not self.image_src:
            self.image_src = _url(attributes.get("href"))

    def best_title(self) -> str:
        """Returns the title by which others are to know the page, or else what it calls itself."""
        found = self.meta.get("og:title") or self.meta.get("twitter:title") or self.title or self.heading
        return clean(found, PREVIEW_TITLE_CHARACTERS_MAX)

    def best_description(self) -> str:
        """Returns the description of the page, or else how its text begins."""
        named = (self.meta.get(name) for name in ("og:description", "twitter:description", "description"))
        return clean(next(filter(None, named), "".join(self._text)), PREVIEW_DESCRIPTION_CHARACTERS_MAX)

    def best_pictures(self) -> Iterator[str]:
        """Yields the URLs of pictures: first those that the page names for previews."""
        yield from filter(None, (_url(self.meta.get(name)) for name in _PICTURE_PROPERTIES))
        if self.image_src:
            yield self.image_src
        yield from self.images


def _url(value: str | None) -> str:
    value = (value or "").strip()
    return value if 0 < len(value) <= PREVIEW_PROPERTY_CHARACTERS_MAX and not value.startswith("data:") else ""


def _is_small(side: str | None) -> bool:
    digits = (side or "").strip().removesuffix("px")
    return digits.isascii() and digits.isdigit() and int(digits[:6]) < _PICTURE_SIDE_MIN
