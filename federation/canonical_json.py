"""Canonical JSON: the one encoding that is hashed and signed. Spec: appendices/#canonical-json"""

from __future__ import annotations

import json
from contextlib import suppress
from math import isfinite
from typing import Any

import orjson

DEPTH_MAX = 100
"""The deepest nesting of an event or a client's request body: objects and arrays, the outermost counted as 1.

All events have the same bound, whatever their source, so that everything that carries an event can be encoded and read.
"""

WRAPPED_DEPTH_MAX = 128
"""The deepest nesting of objects that carry events: transactions, answers, invites. The deepest wrapping in use is that
of /sync, with 8 levels. JSON readers written in Rust stop at 128."""

PARTS_DEPTH_MAX = 1000
"""The nesting that is read if each part is checked alone afterwards (`decode_parts`). Parsers stop at about this."""

INT_MAX = 2**53 - 1
"""Integers lie within ±INT_MAX, which an IEEE double holds exactly."""

LENIENT_INT_MAX = 10**308
"""Even where large integers are allowed they must fit the range of a double: common JSON readers fail on others."""


_INT_CHARACTERS_MAX = 310
"""The longest integer within ±LENIENT_INT_MAX, including its sign."""


class NotCanonical(ValueError):
    """The value or text has no canonical JSON; the message says why in one sentence."""


class UnfitNumber(NotCanonical):
    """The text is JSON, but one of its numbers cannot be passed on by any server. Spec: rooms/v6/#canonical-json"""


def encode(value: object, *, strict: bool = True, depth_max: int = DEPTH_MAX) -> bytes:
    """Returns the canonical JSON. `strict=False` (room versions below 6) allows floats and large integers.

    Raises NotCanonical, and nothing else, for any value without canonical JSON.
    """
    if check(value, strict=strict, depth_max=depth_max):
        try:
            return encode_regular(value)
        except NotCanonical:
            if depth_max <= WRAPPED_DEPTH_MAX:  # orjson writes 254 levels, Python's own encoder some more
                raise
    return _encode_irregular(value)


def check(value: object, *, strict: bool = True, depth_max: int = DEPTH_MAX) -> bool:
    """Returns whether the value is regular: all its numbers are integers within ±INT_MAX. `strict` requires that.

    Raises NotCanonical for values without JSON. Keys that are not strings and lone surrogates are left for the encoder
    to find.
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
    """Returns the canonical JSON of a value that `check` found regular, without checking it again."""
    try:
        return orjson.dumps(value, option=orjson.OPT_SORT_KEYS)
    except TypeError as error:
        raise NotCanonical(f"Not encodable: {error}.") from None


def decode(data: bytes, *, strict: bool = False, depth_max: int = DEPTH_MAX) -> Any:
    """Returns the value of UTF-8 JSON text.

    Raises NotCanonical for duplicate keys, nesting deeper than `depth_max`, NaN, lone surrogates and trailing data, and
    with `strict` for floats and integers beyond ±INT_MAX. Raises UnfitNumber for numbers beyond the range of a double.
    """
    try:
        value = orjson.loads(data)
    except orjson.JSONDecodeError as error:
        _find_unfit_number(data)
        raise NotCanonical(f"Not JSON: {error}.") from None
    # orjson keeps the last of several equal keys, and turns integers beyond 64 bits into floats. Most senders write
    # compact JSON, exactly as orjson does. If the text is the same again, neither has happened. Otherwise the slower
    # parser reads it.
    if check(value, strict=strict, depth_max=depth_max) and orjson.dumps(value) == data:
        return value
    try:
        return json.loads(data.decode(), object_pairs_hook=_without_duplicates)
    except NotCanonical:
        raise
    except (ValueError, RecursionError) as error:
        raise NotCanonical(f"Not JSON: {error}.") from None


def decode_parts(data: bytes) -> Any:
    """Returns the value of JSON text with parts by several authors, such as a transaction or a list of events.

    Raises NotCanonical only if the text cannot be read at all. Each part must then be checked alone with `check` or
    `encode`, as `event.parse_event` does: these refuse the parts that `decode` would refuse for their depth, numbers,
    lone surrogates or duplicate keys.
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
    """An object with duplicate keys. It is not a plain dict, so `check` refuses it."""


class _Refused(str):
    """A number that no server can pass on. It is not a plain string, so `check` refuses it."""

    __slots__ = ()


def _marking_duplicates(pairs: list[tuple[str, object]]) -> dict[str, object]:
    value = dict(pairs)
    return value if len(value) == len(pairs) else _Repeating(value)


def _find_unfit_number(data: bytes) -> None:
    """Raises UnfitNumber if such a number is the reason why the text cannot be read."""
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
        raise NotCanonical(f"A value of type {kind.__name__} cannot be written as JSON.")
    if strict:
        raise NotCanonical("Numbers must be integers within ±(2^53-1).")
    if kind is float and not isfinite(item):
        raise NotCanonical("JSON has no NaN and no infinity.")
    if kind is int and not -LENIENT_INT_MAX <= item <= LENIENT_INT_MAX:
        raise NotCanonical("An integer must not exceed 10^308.")


def _encode_irregular(value: object) -> bytes:
    """Encodes floats as Python writes them, like the servers that signed such events, and integers with all digits."""
    _check_keys(value)
    try:
        return json.dumps(value, ensure_ascii=False, separators=(",", ":"), sort_keys=True).encode()
    except (ValueError, RecursionError) as error:
        raise NotCanonical(f"Not encodable: {error}.") from None


def _check_keys(value: object) -> None:
    """Raises NotCanonical for keys that are not strings, which Python's encoder would convert.

    Only for values that `check` has found to be bounded in depth.
    """
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
