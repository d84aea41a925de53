"""Canonical JSON: the one encoding that is hashed and signed. Spec: appendices/#canonical-json"""

from __future__ import annotations

import json
from contextlib import suppress
from math import isfinite
from typing import Any

import orjson

DEPTH_MAX = 100
"""Deepest nesting of an event and of every body of a client: objects and arrays, the outermost counted as 1.

One bound for events from wherever they come, so that everything that carries one can be encoded and read.
"""

WRAPPED_DEPTH_MAX = 128
"""Deepest nesting of what carries events: transactions, answers, invites. The deepest wrapping in use is /sync's, 8
levels; readers written in Rust stop at 128."""

PARTS_DEPTH_MAX = 1000
"""Nesting that is read where each part is judged alone afterwards (`decode_parts`). Parsers end at about this depth."""

INT_MAX = 2**53 - 1
"""Integers lie within ±INT_MAX, which an IEEE double holds exactly."""

LENIENT_INT_MAX = 10**308
"""Where large integers are allowed they still lie within the range of a double, or readers in use fail on them."""


_INT_CHARACTERS_MAX = 310
"""Of an integer within ±LENIENT_INT_MAX, with its sign."""


class NotCanonical(ValueError):
    """The value or text has no canonical JSON; the message says why in one sentence."""


class UnfitNumber(NotCanonical):
    """The text is JSON, with a number that no server can pass on. Spec: rooms/v6/#canonical-json"""


def encode(value: object, *, strict: bool = True, depth_max: int = DEPTH_MAX) -> bytes:
    """The canonical JSON. `strict=False` (room versions below 6) admits floats and large integers.

    Raises NotCanonical, and nothing else, for any value.
    """
    if check(value, strict=strict, depth_max=depth_max):
        try:
            return encode_regular(value)
        except NotCanonical:
            if depth_max <= WRAPPED_DEPTH_MAX:  # orjson writes 254 levels, Python's own encoder some more
                raise
    return _encode_irregular(value)


def check(value: object, *, strict: bool = True, depth_max: int = DEPTH_MAX) -> bool:
    """Whether the value is regular: every number of it an integer within ±INT_MAX. If `strict`, it has to be.

    Raises NotCanonical for what has no JSON, except for keys that are no strings and for lone surrogates, which are
    left for the encoder to find.
    """
    regular = True
    depth = 0
    level: list[Any] = [(value,)]
    while level:
        if depth > depth_max:
            raise NotCanonical(f"Nested deeper than {depth_max}.")
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


def decode(data: bytes, *, strict: bool = False, depth_max: int = DEPTH_MAX) -> Any:
    """The value that UTF-8 JSON text stands for.

    Refuses (NotCanonical) duplicate keys, nesting deeper than `depth_max`, NaN, lone surrogates, trailing data, and
    with `strict` floats and integers beyond ±INT_MAX. Numbers beyond the range of a double are UnfitNumber.
    """
    try:
        value = orjson.loads(data)
    except orjson.JSONDecodeError as error:
        _find_unfit_number(data)
        raise NotCanonical(f"Not JSON: {error}.") from None
    # orjson keeps the last of duplicate keys, and makes floats of integers beyond 64 bits. Most senders write compact
    # JSON, which is what orjson writes too: then both are ruled out. All else is read by the slower parser.
    if check(value, strict=strict, depth_max=depth_max) and orjson.dumps(value) == data:
        return value
    try:
        return json.loads(data.decode(), object_pairs_hook=_without_duplicates)
    except NotCanonical:
        raise
    except (ValueError, RecursionError) as error:
        raise NotCanonical(f"Not JSON: {error}.") from None


def decode_parts(data: bytes) -> Any:
    """The value of JSON text whose parts come from many: a transaction, a list of events. Each is to be judged alone.

    Refuses (NotCanonical) only what cannot be read at all. A part that `decode` would refuse, for its depth, numbers,
    lone surrogates or duplicate keys, is one that `check` and `encode` refuse; whoever takes a part has to call one of
    them, as `event.parse_event` does.
    """
    try:
        return decode(data, depth_max=WRAPPED_DEPTH_MAX)
    except NotCanonical:
        pass
    try:
        value = json.loads(
            data.decode(), object_pairs_hook=_marking_duplicates, parse_int=_parse_int, parse_constant=_Refused
        )
    except (ValueError, RecursionError) as error:
        raise NotCanonical(f"Not JSON: {error}.") from None
    if isinstance(value, _Repeating):
        raise NotCanonical("The outermost object has the same key twice.")
    return value


class _Repeating(dict[str, Any]):
    """An object with duplicate keys. Not a plain dict, so `check` refuses it."""


class _Refused(str):
    """A number that no server can pass on. Not a plain string, so `check` refuses it."""

    __slots__ = ()


def _marking_duplicates(pairs: list[tuple[str, object]]) -> dict[str, object]:
    value = dict(pairs)
    return value if len(value) == len(pairs) else _Repeating(value)


def _find_unfit_number(data: bytes) -> None:
    """Raises UnfitNumber if that is what keeps the text from being read."""
    with suppress(json.JSONDecodeError, UnicodeDecodeError, RecursionError):
        json.loads(data.decode(), parse_int=_check_range, parse_float=_check_range)


def _check_range(text: str) -> None:
    if not isfinite(float(text)):
        raise UnfitNumber("A number must not exceed 10^308.")


def _parse_int(text: str) -> int | _Refused:
    return int(text) if len(text) <= _INT_CHARACTERS_MAX else _Refused(text[:_INT_CHARACTERS_MAX])


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
