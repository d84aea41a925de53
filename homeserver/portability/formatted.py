"""Cleans formatted texts for pages: HTML that other people have written. Spec: client-server-api/#mroommessage-msgtypes

Theory of operation. Nothing of the original is copied. It is read token by token, and what is known to be harmless is
written again: tags of the specification's list, in lower case and properly nested, and of their attributes only the
address of a link, the start of a list, and the language of code. Everything else is escaped text, or left out. So the
result cannot contain a script, a style, a picture, an event handler, or the end of the element that it is put into.
"""

from __future__ import annotations

import re
from html import escape
from html.parser import HTMLParser

_TAGS = frozenset(
    {"a", "b", "blockquote", "caption", "code", "del", "details", "div", "em", "h1", "h2", "h3", "h4", "h5", "h6", "i",
     "li", "ol", "p", "pre", "s", "span", "strike", "strong", "sub", "summary", "sup", "table", "tbody", "td", "th",
     "thead", "tr", "u", "ul"}
)  # fmt: skip
_WITHOUT_CONTENT = frozenset({"br", "hr"})
# What these have inside is not for readers; `mx-reply` repeats what is answered.
_DROPPED = frozenset({"mx-reply", "script", "style", "title", "textarea", "template", "noscript", "iframe"})
_NESTED_MAX = 100  # as the specification asks
# Reading malformed HTML takes as long as its length times its tags: 10 ms at most.
_EFFORT_MAX = 3_000_000
_LANGUAGE = re.compile(r"language-[A-Za-z0-9_+-]{1,30}", re.ASCII)
_LINK = re.compile(r"(?:https?|mailto|matrix):[^\s\"'<>\\]{1,2000}", re.ASCII)
_LINK_IN_TEXT = re.compile(r"https?://[^\s\"'<>\\]{1,2000}[^\s\"'<>\\.,;:!?)\]]", re.ASCII)


def clean(html: str) -> str | None:
    """Returns harmless HTML with the same text. None if the HTML is too intricate: then the plain text is shown."""
    if len(html) * html.count("<") > _EFFORT_MAX:
        return None
    cleaner = _Cleaner()
    try:
        cleaner.feed(html)
        cleaner.close()
    except (AssertionError, ValueError):  # the parser of some Pythons gives up on malformed declarations
        return None
    return cleaner.finish()


def link(text: str) -> str:
    """Returns plain text as HTML, in which addresses are links."""
    parts: list[str] = []
    at = 0
    for found in _LINK_IN_TEXT.finditer(text):
        parts.append(escape(text[at : found.start()]))
        parts.append(f"{_begin_link(found.group())}{escape(found.group())}</a>")
        at = found.end()
    parts.append(escape(text[at:]))
    return "".join(parts)


def _begin_link(address: str) -> str:
    return f'<a href="{escape(address)}" rel="noopener noreferrer nofollow">'


class _Cleaner(HTMLParser):
    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self._parts: list[str] = []
        self._open: list[str] = []
        self._dropped: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag in _DROPPED:
            self._dropped.append(tag)
        elif self._dropped:
            return
        elif tag in _WITHOUT_CONTENT:
            self._parts.append(f"<{tag}>")
        elif tag in _TAGS and len(self._open) < _NESTED_MAX:
            self._open.append(tag)
            self._parts.append(_begin(tag, dict(attrs)))

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in _WITHOUT_CONTENT:
            self.handle_endtag(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag in self._dropped:
            while self._dropped.pop() != tag:
                pass
        elif not self._dropped and tag in self._open:
            while (last := self._open.pop()) != tag:
                self._parts.append(f"</{last}>")
            self._parts.append(f"</{tag}>")

    def handle_data(self, data: str) -> None:
        if not self._dropped:
            self._parts.append(escape(data) if "a" in self._open or "code" in self._open else link(data))

    def finish(self) -> str:
        self._parts += [f"</{tag}>" for tag in reversed(self._open)]
        return "".join(self._parts)


def _begin(tag: str, attributes: dict[str, str | None]) -> str:
    """Returns a tag with those of its attributes that are harmless."""
    if tag == "a":
        address = attributes.get("href") or ""
        return _begin_link(address) if _LINK.fullmatch(address) else "<a>"
    if tag == "ol":
        start = attributes.get("start") or ""
        return f'<ol start="{int(start)}">' if re.fullmatch(r"[0-9]{1,9}", start, re.ASCII) else "<ol>"
    if tag == "code":
        language = attributes.get("class") or ""
        return f'<code class="{language}">' if _LANGUAGE.fullmatch(language) else "<code>"
    if tag == "span" and "data-mx-spoiler" in attributes:
        return '<span class="spoiler" tabindex="0">'
    return f"<{tag}>"
