"""Canonical JSON: the one encoding that is hashed and signed. Spec: appendices/#canonical-json"""

from __future__ import annotations

import json
from typing import Any, NoReturn

import orjson

DEPTH_MAX = 100
"""Deepest nesting of objects and arrays, the outermost counted as 1. Bounds every walk over what others sent."""

INT_MAX = 2**53 - 1
"""Integers lie within ±INT_MAX, which an IEEE double holds exactly."""

_OPTIONS = orjson.OPT_SORT_KEYS
_SCALARS = frozenset({str, bool, type(None)})


class NotCanonical(ValueError):
    """The value or text has no canonical JSON; the message says why in one sentence."""


def encode(value: object, *, strict: bool = True) -> bytes:
    """The canonical JSON. `strict=False` (room versions below 6) admits floats and large integers.

    Raises NotCanonical, and nothing else, for any value.
    """
    if not check(value, strict=strict):
        return encode_irregular(value)
    return encode_checked(value)


def check(value: object, *, strict: bool = True) -> bool:
    """Raises NotCanonical if the value has no canonical JSON; lone surrogates are left for the encoder to find.

    True: the value is regular, every number an integer within ±INT_MAX. False: it is not, which `strict` forbids.
    """
    regular = True
    depth = 1
    level: list[object] = [value]
    while level:
        below: list[object] = []
        for item in level:
            kind = type(item)
            if kind in _SCALARS:
                continue
            if kind is dict:
                for key in item:  # type: ignore[attr-defined]
                    if type(key) is not str:
                        raise NotCanonical("An object's keys must be strings.")
                below.extend(item.values())  # type: ignore[attr-defined]
            elif kind is list or kind is tuple:
                below.extend(item)  # type: ignore[arg-type]
            elif kind is int:
                if not -INT_MAX <= item <= INT_MAX:  # type: ignore[operator]
                    regular = False
            elif kind is float:
                if item != item or item in (float("inf"), float("-inf")):
                    raise NotCanonical("JSON has no NaN and no infinity.")
                regular = False
            else:
                raise NotCanonical(f"A {kind.__name__} has no JSON.")
            if not regular and strict:
                raise NotCanonical("Numbers must be integers within ±(2^53-1).")
        level = below
        depth += 1
        if depth > DEPTH_MAX + 2:
            raise NotCanonical(f"Nested deeper than {DEPTH_MAX}.")
    return regular


def encode_checked(value: object) -> bytes:
    """The canonical JSON of a value that `check` called regular."""
    try:
        return orjson.dumps(value, option=_OPTIONS)
    except TypeError as error:
        raise NotCanonical(str(error)) from None


def encode_irregular(value: object) -> bytes:
    """As the server that signed it encoded it: floats as Python writes them, integers of any size."""
    try:
        return json.dumps(value, ensure_ascii=False, separators=(",", ":"), sort_keys=True, allow_nan=False).encode()
    except (TypeError, ValueError, RecursionError) as error:
        raise NotCanonical(str(error)) from None


def decode(data: bytes, *, strict: bool = False) -> Any:
    """The value that UTF-8 JSON text stands for.

    Refuses (NotCanonical) duplicate keys, nesting deeper than DEPTH_MAX, NaN, lone surrogates, trailing data, and with
    `strict` floats and integers beyond ±INT_MAX.
    """
    try:
        value = orjson.loads(data)
    except orjson.JSONDecodeError as error:
        raise NotCanonical(f"Not JSON: {error}.") from None
    regular = check(value, strict=strict)
    if regular and orjson.dumps(value) == data:
        return value
    try:
        return json.loads(data, object_pairs_hook=_without_duplicates, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise NotCanonical(str(error)) from None


def _without_duplicates(pairs: list[tuple[str, object]]) -> dict[str, object]:
    value = dict(pairs)
    if len(value) != len(pairs):
        raise NotCanonical("An object has the same key twice.")
    return value


def _no_constant(name: str) -> NoReturn:
    raise NotCanonical(f"JSON has no {name}.")
