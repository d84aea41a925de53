"""Lists of document numbers that a query walks through together: postings of terms, and what combines them.

Each has `advance(target)`, which returns the first document ≥ `target`, or END. Targets never decrease. So a query
reads no more of a long list than a short one requires, and stops when it has found enough.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from typing import Any, Protocol

END = 1 << 32


class Postings(Protocol):
    """documents: how many it has at most; the cheapest one leads."""

    documents: int

    def advance(self, target: int) -> int:
        """Returns the first document ≥ target, or END."""
        ...


class Of:
    """The documents of a term, read block by block by a matcher of Whoosh."""

    def __init__(self, matcher: Any, documents: int) -> None:
        self.documents = documents
        self._matcher = matcher
        self._current = int(matcher.id()) if matcher.is_active() else END

    def advance(self, target: int) -> int:
        """Returns the first document ≥ target, or END."""
        if self._current < target:
            matcher = self._matcher
            matcher.skip_to(target)
            self._current = int(matcher.id()) if matcher.is_active() else END
        return self._current

    def frequency_at(self, document: int) -> int:
        """Returns how often the term occurs in a document; 0 unless that is the current one."""
        return int(self._matcher.weight()) if self._current == document else 0


class Listed:
    """Documents that are in memory, ascending."""

    def __init__(self, documents: Sequence[int]) -> None:
        self.documents = len(documents)
        self._list = documents
        self._at = 0

    def advance(self, target: int) -> int:
        """Returns the first document ≥ target, or END."""
        at = self._at
        if at < len(self._list) and self._list[at] < target:
            at = self._at = bisect_left(self._list, target, at)
        return self._list[at] if at < len(self._list) else END

    def frequency_at(self, document: int) -> int:
        """Returns 1 if the document is in the list."""
        return int(self.advance(document) == document)


class AnyOf:
    """The documents that are in at least one list."""

    def __init__(self, lists: Sequence[Postings]) -> None:
        self.documents = sum(each.documents for each in lists)
        self._lists = lists

    def advance(self, target: int) -> int:
        """Returns the first document ≥ target, or END."""
        return min((each.advance(target) for each in self._lists), default=END)


class AllOf:
    """The documents that are in all lists."""

    def __init__(self, lists: Sequence[Postings]) -> None:
        self._lists = sorted(lists, key=lambda each: each.documents)
        self.documents = self._lists[0].documents

    def advance(self, target: int) -> int:
        """Returns the first document ≥ target, or END."""
        lists = self._lists
        at = 0
        while at < len(lists):
            found = lists[at].advance(target)
            if found == target:
                at += 1
            elif found == END:
                return END
            else:
                target, at = found, int(at == 0)  # the leader is there already
        return target
