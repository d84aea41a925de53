"""Coalescing: an item that waits to be sent is dropped once newer items have news of all that it is about."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
from typing import Protocol, TypeVar


class Positioned(Protocol):
    """What can be delivered."""

    @property
    def position(self) -> int:
        """Its place in the stream. Several items may share one."""

    @property
    def subjects(self) -> frozenset[Hashable]:
        """What it is the latest news of. Empty for items that nothing replaces."""


T = TypeVar("T", bound=Positioned)


def without_replaced(waiting: Iterable[T], newer: Sequence[T]) -> list[T]:
    """Returns those of the waiting items that must still be sent if the newer ones are sent after them."""
    told = frozenset[Hashable]().union(*(each.subjects for each in newer))
    return [each for each in waiting if not each.subjects or not each.subjects <= told]
