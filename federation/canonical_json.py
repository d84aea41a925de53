"""Canonical JSON: the one encoding that is hashed and signed. Spec: appendices/#canonical-json"""

from __future__ import annotations

import json
from math import isfinite
from typing import Any

import orjson

DEPTH_MAX = 100
"""Deepest nesting of objects and arrays, the outermost counted as 1. Bounds every walk over what others sent."""

INT_MAX = 2**53 - 1
"""Integers lie within ±INT_MAX, which an IEEE double holds exactly."""

LENIENT_INT_MAX = 10**308
"""Where large integers are allowed they still lie within the range of a double, or readers in use fail on them."""


class NotCanonical(ValueError):
    """The value or text has no canonical JSON; the message says why in one sentence."""


def encode(value: object, *, strict: bool = True) -> bytes:
    """The canonical JSON. `strict=False` (room versions below 6) admits floats and large integers.

    Raises NotCanonical, and nothing else, for any value.
    """
    return encode_regular(value) if check(value, strict=strict) else _encode_irregular(value)


def check(value: object, *, strict: bool = True) -> bool:
    """Whether the value is regular: every number of it an integer within ±INT_MAX. If `strict`, it has to be.

    Raises NotCanonical for what has no JSON, except for keys that are no strings and for lone surrogates, which are
    left for the encoder to find.
    """
    regular = True
    depth = 0
    level: list[Any] = [(value,)]
    while level:
        if depth > DEPTH_MAX:
            raise NotCanonical(f"Nested deeper than {DEPTH_MAX}.")
        below: list[Any] = []
        for container in level:
            for item in container.values() if type(container) is dict else container:
                kind = type(item)
                if kind is str or kind is bool or item is None:
                    continue
                if kind is dict or kind is list or kind is tuple:
                    below.append(item)
                elif kind is not int or not -INT_MAX <= item <= INT_MAX:
                    _check_irregular(item, strict)
                    regular = False
        level = below
        depth += 1
    return regular


def encode_regular(value: object) -> bytes:
    """The canonical JSON of a value that `check` called regular: spares the second walk where one was taken."""
    try:
        return orjson.dumps(value, option=orjson.OPT_SORT_KEYS)
    except TypeError as error:
        raise NotCanonical(f"Not encodable: {error}.") from None


def decode(data: bytes, *, strict: bool = False) -> Any:
    """The value that UTF-8 JSON text stands for.

    Refuses (NotCanonical) duplicate keys, nesting deeper than DEPTH_MAX, NaN, lone surrogates, trailing data, and with
    `strict` floats and integers beyond ±INT_MAX.
    """
    try:
        value = orjson.loads(data)
    except orjson.JSONDecodeError as error:
        raise NotCanonical(f"Not JSON: {error}.") from None
    # orjson keeps the last of duplicate keys, and makes floats of integers beyond 64 bits. Most senders write compact
    # JSON, which is what orjson writes too: then both are ruled out. All else is read by the slower parser.
    if check(value, strict=strict) and orjson.dumps(value) == data:
        return value
    try:
        return json.loads(data.decode(), object_pairs_hook=_without_duplicates)
    except NotCanonical:
        raise
    except (ValueError, RecursionError) as error:
        raise NotCanonical(f"Not JSON: {error}.") from None


def _check_irregular(item: Any, strict: bool) -> None:
    kind = type(item)
    if kind is not int and kind is not float:
        raise NotCanonical(f"A value of type {kind.__name__} has no JSON.")
    if strict:
        raise NotCanonical("Numbers must be integers within ±(2^53-1).")
    if kind is float and not isfinite(item):
        raise NotCanonical("JSON has no NaN and no infinity.")
    if kind is int and not -LENIENT_INT_MAX <= item <= LENIENT_INT_MAX:
        raise NotCanonical("An integer must not exceed 10^308.")


def _encode_irregular(value: object) -> bytes:
    """Floats as Python writes them, like the servers that signed such events; integers with all their digits."""
    _check_keys(value)
    try:
        return json.dumps(value, ensure_ascii=False, separators=(",", ":"), sort_keys=True).encode()
    except (ValueError, RecursionError) as error:
        raise NotCanonical(f"Not encodable: {error}.") from None


def _check_keys(value: object) -> None:
    """Python's encoder would make strings of other keys. Only for values that `check` found bounded in depth."""
    containers: list[Any] = [(value,)]
    while containers:
        container = containers.pop()
        if type(container) is dict:
            if any(type(key) is not str for key in container):
                raise NotCanonical("An object's keys must be strings.")
            container = container.values()
        containers.extend(item for item in container if type(item) in (dict, list, tuple))


def _without_duplicates(pairs: list[tuple[str, object]]) -> dict[str, object]:
    value = dict(pairs)
    if len(value) != len(pairs):
        raise NotCanonical("An object has the same key twice.")
    return value
