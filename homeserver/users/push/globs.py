"""Glob patterns of push rules, in bounded time. Spec: appendices/#glob-style-matching

A pattern is cut at its asterisks, and its parts are searched for from left to right. Taking the leftmost place for each
part is always right, because an asterisk matches whatever lies between, so there is no backtracking. Every comparison
is paid for from a budget of steps. When the budget is used up, patterns match nothing more.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

STEPS_MAX = 200_000
"""Characters that the rules of one user may compare for one event: about 2 ms. A message of 1,000 characters takes 60
steps for each keyword."""
_FIND_SPEED = 16  # str.find compares this many characters in the time of one step

_WORD = frozenset("abcdefghijklmnopqrstuvwxyz0123456789_")  # texts are in lower case


class Steps:
    """What the rules of one user may still spend on one event."""

    __slots__ = ("left",)

    def __init__(self, left: int = STEPS_MAX) -> None:
        self.left = left

    def spend(self, steps: int) -> bool:
        """Returns whether that many steps were left."""
        self.left -= steps
        return self.left >= 0


class _Part:
    """A part of a pattern without asterisks. A question mark stands for any one character."""

    __slots__ = ("_regex", "text")

    def __init__(self, text: str) -> None:
        self.text = text
        self._regex = re.compile(".".join(map(re.escape, text.split("?"))), re.DOTALL) if "?" in text else None

    def is_at(self, value: str, at: int) -> bool:
        """Returns whether the part matches at this place."""
        if self._regex is None:
            return value.startswith(self.text, at)
        return self._regex.match(value, at) is not None

    def places(self, value: str, start: int, steps: Steps) -> Iterator[int]:
        """Yields the places from `start` on where the part matches, in order, as long as there are steps."""
        length = len(self.text)
        while True:
            if self._regex is None:
                at = value.find(self.text, start)
                cost = ((len(value) if at < 0 else at) - start + length) // _FIND_SPEED + 1
            else:
                found = self._regex.search(value, start, start + length + max(0, steps.left) // length)
                at = -1 if found is None else found.start()
                cost = ((len(value) if at < 0 else at) - start + 1) * length
            if not steps.spend(cost) or at < 0:
                return
            yield at
            start = at + 1


class Glob:
    """A compiled pattern. Letter case is ignored.

    words: it matches any part of a value that begins and ends at a word boundary, instead of the whole value.
    """

    __slots__ = ("_first", "_last", "_middle", "_words")

    def __init__(self, pattern: str, *, words: bool = False) -> None:
        parts = [_Part(text) for text in pattern.lower().split("*")]
        self._first = parts[0]
        self._middle = [part for part in parts[1:-1] if part.text]
        self._last = parts[-1] if len(parts) > 1 else None
        self._words = words

    def matches(self, value: str, steps: Steps) -> bool:
        """Returns whether the pattern matches the value; False if the steps do not suffice to find out."""
        value = value.lower()
        if not steps.spend(len(value) // _FIND_SPEED + 1):
            return False
        return self._matches_words(value, steps) if self._words else self._matches_whole(value, steps)

    def _matches_whole(self, value: str, steps: Steps) -> bool:
        first, last = self._first, self._last
        if last is None:
            return len(value) == len(first.text) and first.is_at(value, 0)
        if not first.is_at(value, 0):
            return False
        at = self._after_middle(value, len(first.text), steps)
        end = len(value) - len(last.text)
        return at is not None and end >= at and last.is_at(value, end)

    def _matches_words(self, value: str, steps: Steps) -> bool:
        for at in self._first.places(value, 0, steps):
            if not _is_boundary(value, at - 1):
                continue
            after = at + len(self._first.text)
            if self._last is not None:
                return self._ends_at_boundary(value, after, steps)
            if _is_boundary(value, after):
                return True
        return False

    def _ends_at_boundary(self, value: str, at: int, steps: Steps) -> bool:
        start = self._after_middle(value, at, steps)
        if start is None or self._last is None:
            return False
        length = len(self._last.text)
        return any(_is_boundary(value, at + length) for at in self._last.places(value, start, steps))

    def _after_middle(self, value: str, at: int, steps: Steps) -> int | None:
        """Returns where the parts between the first and the last end, None if one does not follow the others."""
        for part in self._middle:
            found = next(part.places(value, at, steps), None)
            if found is None:
                return None
            at = found + len(part.text)
        return at


def contains_words(value: str, words: str, steps: Steps) -> bool:
    """Returns whether the value contains these words, between word boundaries; they are not a pattern."""
    value, words = value.lower(), words.lower()
    if not words or not steps.spend(len(value) // _FIND_SPEED + 1):
        return False
    at = value.find(words)
    while at >= 0:
        if _is_boundary(value, at - 1) and _is_boundary(value, at + len(words)):
            return True
        at = value.find(words, at + 1)
        if not steps.spend(len(words) // _FIND_SPEED + 1):
            return False
    return False


def _is_boundary(value: str, at: int) -> bool:
    """Returns whether the character at this place is not part of a word, or does not exist."""
    return not 0 <= at < len(value) or value[at] not in _WORD
