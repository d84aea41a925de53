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

_SPACED_COLONS = (b" :", b"\n:", b"\t:", b"\r:")


class NotCanonical(ValueError):
    """The value or text has no canonical JSON; the message says why in one sentence."""


def encode(value: object, *, strict: bool = True) -> bytes:
    """The canonical JSON. `strict=False` (room versions below 6) admits floats and large integers.

    Raises NotCanonical, and nothing else, for any value.
    """
    return encode_regular(value) if check(value, strict=strict) else _encode_irregular(value)


def check(value: object, *, strict: bool = True) -> bool:
    """Whether the value is regular: every number of it an integer within ±INT_MAX. If `strict`, it has to be.

    Raises NotCanonical for what has no JSON, except for lone surrogates, which the encoder finds.
    """
    return _walk(value, strict)[0]


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
    regular, keys = _walk(value, strict)
    # orjson keeps the last of duplicate keys, and makes floats of integers beyond 64 bits. In text without a space
    # before any colon each key stands before `":`, so where that occurs no more often than the value has keys, no key
    # was lost. In all other text, rare and seldom long, the slower parser looks.
    if regular and data.count(b'":') == keys and not any(colon in data for colon in _SPACED_COLONS):
        return value
    try:
        return json.loads(data.decode(), object_pairs_hook=_without_duplicates)
    except (ValueError, RecursionError) as error:
        raise NotCanonical(f"Not JSON: {error}.") from None


def _walk(value: object, strict: bool) -> tuple[bool, int]:
    """Whether the value is regular, and how many keys all its objects have."""
    regular = True
    keys = 0
    depth = 0
    level: list[Any] = [(value,)]
    while level:
        if depth > DEPTH_MAX:
            raise NotCanonical(f"Nested deeper than {DEPTH_MAX}.")
        below: list[Any] = []
        for container in level:
            if type(container) is dict:
                keys += len(container)
                _check_keys(container)
                container = container.values()
            for item in container:
                kind = type(item)
                if kind is str or kind is bool or item is None:
                    continue
                if kind is dict or kind is list or kind is tuple:
                    below.append(item)
                elif kind is int and -INT_MAX <= item <= INT_MAX:
                    continue
                else:
                    _check_irregular(item, strict)
                    regular = False
        level = below
        depth += 1
    return regular, keys


def _check_keys(container: dict[Any, Any]) -> None:
    try:
        "".join(container)  # the quickest way to learn that every key is a string
    except TypeError:
        raise NotCanonical("An object's keys must be strings.") from None


def _check_irregular(item: object, strict: bool) -> None:
    kind = type(item)
    if kind is not int and kind is not float:
        raise NotCanonical(f"A value of type {kind.__name__} has no JSON.")
    if strict:
        raise NotCanonical("Numbers must be integers within ±(2^53-1).")
    if kind is float and not isfinite(item):  # type: ignore[arg-type]
        raise NotCanonical("JSON has no NaN and no infinity.")


def _encode_irregular(value: object) -> bytes:
    """Floats as Python writes them, like the servers that signed such events; integers of any size."""
    try:
        return json.dumps(value, ensure_ascii=False, separators=(",", ":"), sort_keys=True).encode()
    except (ValueError, RecursionError) as error:
        raise NotCanonical(f"Not encodable: {error}.") from None


def _without_duplicates(pairs: list[tuple[str, object]]) -> dict[str, object]:
    value = dict(pairs)
    if len(value) != len(pairs):
        raise NotCanonical("An object has the same key twice.")
    return value
