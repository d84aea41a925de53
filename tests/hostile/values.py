"""Values of the wrong kind, and bodies in which one value is wrong."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal, NewType, get_args, get_origin

import msgspec

WRONG: tuple[Any, ...] = (
    None, True, 0, -1, 2**53, 2**63, 10**30, 1.5, 1e300, "", "x", "\0", "\ud800", "a" * 70_000, "@:", "!:", "$", "#x", "mxc://",
    [], [None], [[]], [1, "x"], {}, {"": {}}, {"x": None}, {"type": 7}, [{}],
)  # fmt: skip

NOT_JSON = (
    b"{", b"}", b"[", b"nonsense", b'{"a":}', b"{'a': 1}", b'{"a": 1,}', b'{"a": NaN}', b'{"a": Infinity}', b"{} {}",
    b"\xff\xfe{\x00}\x00", b'{"a": "\xc3\x28"}', b'{"a": "\x01"}', b'{"\xed\xa0\x80": 1}', b'{"a": "\\ud800"}',
    b'{"a": 1, "a": 2}', b'{"a": {"b": 1, "b": 1}}', b'{"a": 01}', b'{"a": 1e}', b"\x00", b"\xef\xbb\xbf{}x",
    b'{"a":' * 1000 + b"1" + b"}" * 1000, b"[" * 3_000, b'{"a": ' + b"[" * 101 + b"]" * 101 + b"}",
)  # fmt: skip

NOT_AN_OBJECT = (b"[]", b'"text"', b"7", b"null", b"true", b"1.5", b"[{}]", b' "" ')


@dataclass(frozen=True, slots=True)
class Change:
    """A body with one wrong value. `is_refused`: the handler's own Struct does not take it."""

    where: str
    body: bytes
    is_refused: bool


def encode(value: Any) -> bytes:
    """JSON, of lone surrogates and huge numbers too."""
    return json.dumps(value).encode()


def changes(base: Mapping[str, Any], kind: Any, schema: Mapping[str, Any]) -> Iterator[Change]:
    """Bodies like `base` with one value replaced or left out: in every place of the base, the Struct and the schema."""
    fields = {}
    if isinstance(kind, type) and issubclass(kind, msgspec.Struct):
        fields = {field.encode_name: field for field in msgspec.structs.fields(kind)}
    for name in dict.fromkeys([*base, *fields, *properties(schema)]):
        field = fields.get(name)
        for wrong in WRONG:
            refused = field is not None and not takes(field.type, wrong)
            yield Change(name, encode({**base, name: wrong}), refused)
        rest = {key: value for key, value in base.items() if key != name}
        yield Change(f"without {name}", encode(rest), field is not None and field.required)
    for path in list(inner_places(base)):
        for wrong in WRONG:
            yield Change(".".join(map(str, path)), encode(replaced(base, path, wrong)), False)


def properties(schema: Mapping[str, Any]) -> Iterator[str]:
    """The top-level properties that a JSON schema names."""
    yield from schema.get("properties", {})
    for part in (*schema.get("allOf", ()), *schema.get("oneOf", ()), *schema.get("anyOf", ())):
        yield from properties(part)


def inner_places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Yields the places of values below the top level of a body."""
    if len(path) > 1:
        yield path
    if len(path) < 5:
        inside = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
        for key, each in inside:
            yield from inner_places(each, (*path, key))


def replaced(value: Any, path: tuple[Any, ...], wrong: Any) -> Any:
    """A copy of `value` with another one at `path`."""
    if not path:
        return wrong
    if isinstance(value, dict):
        return {key: replaced(each, path[1:], wrong) if key == path[0] else each for key, each in value.items()}
    return [replaced(each, path[1:], wrong) if at == path[0] else each for at, each in enumerate(value)]


def takes(kind: Any, value: Any) -> bool:
    """Returns whether a field of that type accepts the value."""
    try:
        msgspec.convert(value, kind)
    except (msgspec.ValidationError, UnicodeEncodeError):
        return False
    return True


def sample(kind: Any, known: Mapping[Any, Any]) -> Any:
    """A value of a type; of identifiers the known ones."""
    if kind in known:
        return known[kind]
    origin, inner = get_origin(kind), get_args(kind)
    if origin is Literal:
        return inner[0]
    if origin in (list, tuple, set, frozenset):
        return [sample(inner[0], known)]
    if origin is dict or kind is dict or kind is Any:
        return {}
    if inner:  # a union, or Annotated
        return sample(next(each for each in inner if each is not type(None)), known)
    if isinstance(kind, NewType):
        return sample(kind.__supertype__, known)
    if isinstance(kind, type) and issubclass(kind, msgspec.Struct):
        return {field.encode_name: sample(field.type, known) for field in msgspec.structs.fields(kind)}
    return {bool: True, int: 1, float: 1.0}.get(kind, "text")


def wrong_query_values(kind: type[msgspec.Struct]) -> Iterator[tuple[str, str, bool]]:
    """Name, percent-encoded value, and whether it must be refused: for each parameter of a query Struct."""
    tries = (
        "", "x", "-1", "1.5", "99999999999999999999999999", "true", "null", "%00", "%ED%A0%80", "%FF", "%", "%2", "+",
        "é", "[]", "a" * 7_000, "%F0%9F%98%80", "b", "f", "&", ";", "s1", "t1", "s-1", "s99999999999999999999",
        "t99999999999999999", "%7B%22room%22%3A7%7D",
        "%7B%22room%22%3A%7B%22timeline%22%3A%7B%22limit%22%3A-5%7D%7D%7D",
        "%7B", "%5B%5D", "%7B%7D",
    )  # fmt: skip
    for field in msgspec.structs.fields(kind):
        for text in tries:
            refused = text in ("%ED%A0%80", "%FF")  # no UTF-8
            yield field.encode_name, text, refused
