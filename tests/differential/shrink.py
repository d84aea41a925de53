"""Makes what shows a difference smaller, as long as it still shows one."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

TRIES_MAX = 400


def shrink_json(value: Any, differs: Callable[[Any], bool]) -> Any:
    """A JSON value with keys and items taken out of it, for which `differs` still holds."""
    tries = 0
    shrunk = True
    while shrunk and tries < TRIES_MAX:
        shrunk = False
        for smaller in _smaller(value):
            tries += 1
            if tries >= TRIES_MAX:
                break
            if differs(smaller):
                value, shrunk = smaller, True
                break
    return value


def _smaller(value: Any) -> Iterator[Any]:
    """Each way to leave one thing out, the outer ones first."""
    for path in _paths(value):
        smaller = copy.deepcopy(value)
        holder = smaller
        for step in path[:-1]:
            holder = holder[step]
        del holder[path[-1]]
        yield smaller


def _paths(value: Any) -> Iterator[tuple[Any, ...]]:
    level: list[tuple[tuple[Any, ...], Any]] = [((), value)]
    while level:
        below: list[tuple[tuple[Any, ...], Any]] = []
        for path, holder in level:
            steps = [*holder] if isinstance(holder, dict) else [*range(len(holder))]
            for step in steps:
                yield (*path, step)
                if isinstance(holder[step], (dict, list)):
                    below.append(((*path, step), holder[step]))
        level = below
