"""Pages of an exported room for people: plain HTML that works from a folder, without network and without scripts.

Everything that someone in the room has chosen is escaped, or made harmless (`formatted.py`). Beside that, the policy in
each page allows nothing but its own style sheet and files of the folder, so even a mistake here could run no script and
fetch nothing.
"""

from __future__ import annotations

import hashlib
from bisect import bisect_right
from collections.abc import Collection, Iterable, Mapping, Sequence, Set
from datetime import UTC, datetime
from html import escape
from typing import Any

from homeserver.portability.files import PICTURES
from homeserver.portability.folders import NewFile, NewFolder
from homeserver.portability.formatted import link
from homeserver.portability.page_style import COLOURS, POLICY, STYLE
from homeserver.portability.shown import Member, Quote, Shown

ENTRIES_PER_PAGE = 1_000
_TOGETHER_MS = 5 * 60 * 1000  # messages of one person that follow each other so closely share their head
_SENDERS_NAMED = 10
_DAY = "%A, %d %B %Y"


class PageWriter:
    """Writes pages of ENTRIES_PER_PAGE entries: `index.html`, `page-2.html` …"""

    def __init__(self, folder: NewFolder, about: Mapping[str, Any]) -> None:
        """about: `name`, `topic`, `picture`, `room_id`, `server_name`, `exported_ts`."""
        self._folder = folder
        self._about = about
        self._members: dict[str, Member] = {}
        self._avatars: set[str] = set()
        self._starts: list[int] = []  # the ordering of the first entry of each page
        self._entries = 0
        self._day = ""
        self._last: Shown | None = None
        self._file: NewFile | None = None

    @property
    def known(self) -> Set[str]:
        """The users whose names are known."""
        return self._members.keys()

    def know(self, members: Iterable[Member]) -> None:
        """Takes the names of users who may have come before the history began."""
        self._members |= {member.user_id: member for member in members}

    def write(self, entries: Sequence[Shown]) -> Collection[str]:
        """Appends entries. Returns the URIs of the avatars in them."""
        self._avatars.clear()
        for entry in entries:
            if entry.member is not None:
                self.know([entry.member])
            if self._file is None or self._entries == ENTRIES_PER_PAGE:
                self._turn(entry)
            assert self._file is not None
            day = _moment(entry.ts).strftime(_DAY)
            if day != self._day:
                self._file.write(f"<h2>{escape(day)}</h2>\n".encode())
                self._day, self._last = day, None
            self._file.write(self._entry(entry).encode(errors="replace"))
            self._entries += 1
            self._last = entry
        return {*self._avatars}

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
        self._entries, self._day, self._last = 0, "", None
        about = {name: escape(str(value)) for name, value in self._about.items()}
        moment = _moment(self._about["exported_ts"]).strftime("%d %B %Y, %H:%M UTC")
        self._file.write(
            f'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
            f'<meta http-equiv="Content-Security-Policy" content="{escape(POLICY)}">\n'
            f'<meta name="viewport" content="width=device-width, initial-scale=1">\n'
            f'<meta name="referrer" content="no-referrer">\n'
            f"<title>{about['name']}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n"
            f"<header>{_picture_of(self._about['room_id'], self._about['name'], self._about['picture'])}\n<div>"
            f"<h1>{about['name']}</h1>\n<div>{about['topic']}</div>\n"
            f'<div class="soft">{about["room_id"]}, exported from {about["server_name"]} on {moment}. '
            f"Times are UTC.</div></div></header>\n<main>\n".encode(errors="replace")
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
        anchor = f'id="{_anchor(entry.event_id)}"'
        if entry.kind == "state":
            name = f'<span class="who" title="{escape(entry.sender)}">{escape(self._name(entry.sender))}</span>'
            return f'<article class="state" {anchor}>{name} {escape(entry.text)} {time}</article>\n'
        is_first = not self._follows(entry)
        kinds = f"{entry.kind}{' thread' if entry.thread is not None else ''} {'first' if is_first else 'more'}"
        body = f"{self._above(entry)}{self._content(entry)}{self._reactions(entry)}"
        if not is_first:
            return f'<article class="{kinds}" {anchor}><div class="at">{time}</div><div>{body}</div></article>\n'
        who = f"who c{_colour_of(entry.sender)}"
        name = f'<span class="{who}" title="{escape(entry.sender)}">{escape(self._name(entry.sender))}</span>'
        return (
            f'<article class="{kinds}" {anchor}>{self._avatar(entry.sender)}<div>{name}{time}{body}</div></article>\n'
        )

    def _follows(self, entry: Shown) -> bool:
        """Returns whether an entry belongs to the same person's message before it."""
        last = self._last
        return (
            last is not None
            and last.kind != "state"
            and (last.sender, last.thread is None) == (entry.sender, entry.thread is None)
            and 0 <= entry.ts - last.ts < _TOGETHER_MS
        )

    def _avatar(self, user_id: str) -> str:
        member = self._members.get(user_id)
        if member is not None and member.avatar:
            self._avatars.add(member.avatar)
        return _picture_of(user_id, self._name(user_id), "" if member is None else member.file)

    def _above(self, entry: Shown) -> str:
        parts = []
        if entry.before_edit is not None:
            parts.append(f'<span class="soft" title="{escape(entry.before_edit)}">edited</span>')
        if entry.thread is not None:
            parts.append(self._quoted(entry.thread, "in a thread"))
        if entry.reply is not None:
            parts.append(self._quoted(entry.reply, "answers"))
        return " ".join(parts)

    def _reactions(self, entry: Shown) -> str:
        parts = []
        for key, senders in entry.reactions.items():
            names = ", ".join(map(self._name, senders[:_SENDERS_NAMED]))
            parts.append(f'<span class="reaction" title="{escape(names)}">{escape(key)} {len(senders)}</span>')
        return f'<div class="reactions">{"".join(parts)}</div>' if parts else ""

    def _content(self, entry: Shown) -> str:
        if entry.kind == "deleted":
            return '<div class="text">deleted</div>'
        if entry.kind == "encrypted":
            return '<div class="text">encrypted: only the clients of the people in the room can read it</div>'
        text = f'<div class="text">{link(entry.text)}</div>'
        if entry.html is not None:
            text = f'<div class="html">{entry.html}</div>'
        if entry.kind != "file":
            return text
        caption = text if entry.text != entry.filename else ""
        if entry.file is None:
            return f'<div class="soft">{escape(entry.filename)} (not on this server, or encrypted)</div>{caption}'
        extension = entry.file.rpartition(".")[2]
        if extension in PICTURES:
            shown = f'<img class="shown" loading="lazy" src="{entry.file}" alt="{escape(entry.filename)}">'
            return f'<a href="{entry.file}">{shown}</a>{caption}'
        if extension in ("mp4", "webm"):
            return f'<video controls preload="none" src="{entry.file}"></video>{caption}'
        if extension in ("mp3", "ogg", "m4a"):
            return f'<audio controls preload="none" src="{entry.file}"></audio>{caption}'
        return f'<a class="download" href="{entry.file}" download>{escape(entry.filename)}</a>{caption}'

    def _quoted(self, quote: Quote, word: str) -> str:
        if quote.ordering is None:
            return f"<blockquote>{word} (a message that is not here)</blockquote>"
        number = max(1, bisect_right(self._starts, quote.ordering))
        page = "" if number == len(self._starts) else _page_name(number)
        text = f"{escape(self._name(quote.sender))}: {escape(quote.text) or 'deleted'}"
        return f'<blockquote>{word} <a href="{page}#{_anchor(quote.event_id)}">{text}</a></blockquote>'

    def _name(self, user_id: str) -> str:
        member = self._members.get(user_id)
        return user_id if member is None else member.name or user_id


def _page_name(number: int) -> str:
    return "index.html" if number == 1 else f"page-{number}.html"


def _picture_of(identifier: str, name: str, file: str) -> str:
    """Returns a picture, or the first letter of a name in a colour that belongs to the identifier."""
    if file:
        return f'<img class="avatar" loading="lazy" src="{file}" alt="">'
    letter = next((character for character in name if character.isalnum()), "?").upper()
    return f'<div class="avatar c{_colour_of(identifier)}" aria-hidden="true">{escape(letter)}</div>'


def _colour_of(identifier: str) -> int:
    return hashlib.sha256(identifier.encode()).digest()[0] % COLOURS


def _anchor(event_id: str) -> str:
    return f"e{hashlib.sha256(event_id.encode()).hexdigest()[:20]}"


def _moment(ts: int) -> datetime:
    """Returns a time that can be shown: other servers may claim any."""
    return datetime.fromtimestamp(max(0, min(ts, 253_402_300_000_000)) / 1000, UTC)
