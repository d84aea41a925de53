"""Pages of an exported room for people: plain HTML that works from a folder, without network and without scripts.

Everything that someone in the room has chosen is escaped, and appears as text only. Beside that, the policy in each
page allows nothing but its own style sheet and files of the folder, so even a mistake here could run no script and
fetch nothing. Formatted texts are shown by their plain text: cleaning HTML of strangers is not worth the risk.
"""

from __future__ import annotations

import hashlib
from base64 import b64encode
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from html import escape
from typing import Any

from homeserver.portability.files import PICTURES
from homeserver.portability.folders import NewFile, NewFolder
from homeserver.portability.shown import Quote, Shown

ENTRIES_PER_PAGE = 1_000
_SENDERS_NAMED = 10
_DAY = "%A, %d %B %Y"

_STYLE = """
:root { color-scheme: light dark; --line: #8883; --soft: #666; --chosen: #0001; }
@media (prefers-color-scheme: dark) { :root { --soft: #aaa; --chosen: #fff1; } }
body { font: 16px/1.45 system-ui, sans-serif; margin: 0 auto; max-width: 46rem; padding: 0 .8rem 3rem;
  overflow-wrap: anywhere; }
header, footer { padding: 1rem 0; border-bottom: 1px solid var(--line); }
footer { border: 0; display: flex; justify-content: space-between; gap: 1rem; }
h1 { font-size: 1.3rem; margin: 0; }
h2 { font-size: .85rem; text-align: center; color: var(--soft); margin: 1.5rem 0 .5rem; }
article { padding: .3rem .5rem; border-radius: .4rem; }
article:target { background: var(--chosen); }
article.thread { margin-left: 1.5rem; border-left: 3px solid var(--line); border-radius: 0; }
.who { font-weight: 600; }
time, .soft, .state { color: var(--soft); font-size: .85rem; }
.state { text-align: center; }
.text { white-space: pre-wrap; }
.emote .text, .deleted, .encrypted { font-style: italic; }
blockquote { margin: .2rem 0; padding-left: .6rem; border-left: 3px solid var(--line); color: var(--soft);
  font-size: .9rem; }
img, video { max-width: 100%; max-height: 24rem; border-radius: .4rem; display: block; }
.reaction { border: 1px solid var(--line); border-radius: 1rem; padding: 0 .5rem; margin-right: .3rem;
  font-size: .85rem; }
a { color: inherit; }
"""
_STYLE_HASH = b64encode(hashlib.sha256(_STYLE.encode()).digest()).decode()
POLICY = (
    f"default-src 'none'; style-src 'sha256-{_STYLE_HASH}'; img-src 'self' file:; media-src 'self' file:;"
    " base-uri 'none'; form-action 'none'"
)


class PageWriter:
    """Writes pages of ENTRIES_PER_PAGE entries: `index.html`, `page-2.html` …"""

    def __init__(self, folder: NewFolder, about: Mapping[str, Any]) -> None:
        """about: `name`, `topic`, `room_id`, `server_name`, `exported_ts`."""
        self._folder = folder
        self._about = about
        self._names: dict[str, str] = {}
        self._starts: list[int] = []  # the ordering of the first entry of each page
        self._entries = 0
        self._day = ""
        self._file: NewFile | None = None

    def write(self, entries: Sequence[Shown]) -> None:
        """Appends entries."""
        for entry in entries:
            if entry.member is not None:
                user_id, name = entry.member
                self._names[user_id] = name or user_id
            if self._file is None or self._entries == ENTRIES_PER_PAGE:
                self._turn(entry)
            assert self._file is not None
            day = _moment(entry.ts).strftime(_DAY)
            if day != self._day:
                self._file.write(f"<h2>{escape(day)}</h2>\n".encode())
                self._day = day
            self._file.write(self._entry(entry).encode(errors="replace"))
            self._entries += 1

    def finish(self) -> None:
        """Ends the last page. A room without history has one, too."""
        if self._file is None:
            self._begin()
        self._end(has_next=False)

    def _turn(self, entry: Shown) -> None:
        if self._file is not None:
            self._end(has_next=True)
        self._starts.append(entry.ordering)
        self._begin()

    def _begin(self) -> None:
        self._file = self._folder.begin(_page_name(len(self._starts) or 1))
        self._entries, self._day = 0, ""
        about = {name: escape(str(value)) for name, value in self._about.items()}
        moment = _moment(self._about["exported_ts"]).strftime("%d %B %Y, %H:%M UTC")
        self._file.write(
            f'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
            f'<meta http-equiv="Content-Security-Policy" content="{escape(POLICY)}">\n'
            f'<meta name="viewport" content="width=device-width, initial-scale=1">\n'
            f'<meta name="referrer" content="no-referrer">\n'
            f"<title>{about['name']}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n"
            f'<header><h1>{about["name"]}</h1>\n<div class="soft">{about["topic"]}</div>\n'
            f'<div class="soft">{about["room_id"]}, exported from {about["server_name"]} on {moment}. '
            f"Times are UTC.</div></header>\n<main>\n".encode(errors="replace")
        )

    def _end(self, *, has_next: bool) -> None:
        assert self._file is not None
        number = max(1, len(self._starts))
        before = f'<a rel="prev" href="{_page_name(number - 1)}">earlier</a>' if number > 1 else ""
        after = f'<a rel="next" href="{_page_name(number + 1)}">later</a>' if has_next else ""
        links = f"<span>{before}</span><span>page {number}</span><span>{after}</span>"
        self._file.write(f"</main>\n<footer>{links}</footer>\n</body>\n</html>\n".encode())
        self._folder.end(self._file)
        self._file = None

    def _entry(self, entry: Shown) -> str:
        moment = _moment(entry.ts)
        time = f'<time datetime="{moment.isoformat()}">{moment:%H:%M}</time>'
        name = f'<span class="who" title="{escape(entry.sender)}">{escape(self._name(entry.sender))}</span>'
        anchor = f'id="{_anchor(entry.event_id)}"'
        if entry.kind == "state":
            return f'<article class="state" {anchor}>{name} {escape(entry.text)} {time}</article>\n'
        parts = [f"{name} {time}"]
        if entry.before_edit is not None:
            parts.append(f'<span class="soft" title="{escape(entry.before_edit)}">edited</span>')
        if entry.thread is not None:
            parts.append(self._quoted(entry.thread, "in a thread"))
        if entry.reply is not None:
            parts.append(self._quoted(entry.reply, "answers"))
        parts.append(self._content(entry))
        for key, senders in entry.reactions.items():
            names = ", ".join(map(self._name, senders[:_SENDERS_NAMED]))
            parts.append(f'<span class="reaction" title="{escape(names)}">{escape(key)} {len(senders)}</span>')
        kinds = f"{entry.kind} thread" if entry.thread is not None else entry.kind
        return f'<article class="{kinds}" {anchor}>{" ".join(parts)}</article>\n'

    def _content(self, entry: Shown) -> str:
        if entry.kind == "deleted":
            return '<div class="text">deleted</div>'
        if entry.kind == "encrypted":
            return '<div class="text">encrypted: only the clients of the people in the room can read it</div>'
        if entry.kind != "file":
            return f'<div class="text">{escape(entry.text)}</div>'
        caption = f'<div class="text">{escape(entry.text)}</div>' if entry.text != entry.filename else ""
        if entry.file is None:
            return f'<div class="soft">{escape(entry.filename)} (not on this server, or encrypted)</div>{caption}'
        extension = entry.file.rpartition(".")[2]
        if extension in PICTURES:
            shown = f'<img loading="lazy" src="{entry.file}" alt="{escape(entry.filename)}">'
            return f'<a href="{entry.file}">{shown}</a>{caption}'
        if extension in ("mp4", "webm"):
            return f'<video controls preload="none" src="{entry.file}"></video>{caption}'
        return f'<div><a href="{entry.file}" download>{escape(entry.filename)}</a></div>{caption}'

    def _quoted(self, quote: Quote, word: str) -> str:
        if quote.ordering is None:
            return f"<blockquote>{word} (a message that is not here)</blockquote>"
        number = max(1, bisect_right(self._starts, quote.ordering))
        page = "" if number == len(self._starts) else _page_name(number)
        text = f"{escape(self._name(quote.sender))}: {escape(quote.text) or 'deleted'}"
        return f'<blockquote>{word} <a href="{page}#{_anchor(quote.event_id)}">{text}</a></blockquote>'

    def _name(self, user_id: str) -> str:
        return self._names.get(user_id, user_id)


def _page_name(number: int) -> str:
    return "index.html" if number == 1 else f"page-{number}.html"


def _anchor(event_id: str) -> str:
    return f"e{hashlib.sha256(event_id.encode()).hexdigest()[:20]}"


def _moment(ts: int) -> datetime:
    """Returns a time that can be shown: other servers may claim any."""
    return datetime.fromtimestamp(max(0, min(ts, 253_402_300_000_000)) / 1000, UTC)
