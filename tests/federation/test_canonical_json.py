"""Canonical JSON. Spec: appendices/#canonical-json"""

from __future__ import annotations

import contextlib
import datetime
import enum
import inspect
import json
import sys
import uuid
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from homeserver.federation.canonical_json import (
    DEPTH_MAX,
    INT_MAX,
    WRAPPED_DEPTH_MAX,
    NotCanonical,
    check,
    decode,
    decode_parts,
    encode,
    encode_regular,
)
from tests.federation.json_values import PROPERTY, lenient_values, nested, strict_values


class Shade(enum.StrEnum):
    DARK = "dark"


class Text(str):
    pass


def test_examples_of_the_specification() -> None:
    examples = [
        (b"{}", b"{}"),
        (b'{"one": 1, "two": "Two"}', b'{"one":1,"two":"Two"}'),
        (b'{"b": "2", "a": "1"}', b'{"a":"1","b":"2"}'),
        (b'{"b":"2","a":"1"}', b'{"a":"1","b":"2"}'),
        (
            b'{"auth": {"success": true, "mxid": "@john.doe:example.com", "profile": {"display_name": "John Doe",'
            b'"three_pids": [{"medium": "email", "address": "john.doe@example.org"},'
            b'{"medium": "msisdn", "address": "123456789"}]}}}',
            b'{"auth":{"mxid":"@john.doe:example.com","profile":{"display_name":"John Doe","three_pids":['
            b'{"address":"john.doe@example.org","medium":"email"},{"address":"123456789","medium":"msisdn"}]},'
            b'"success":true}}',
        ),
        ('{"a": "日本語"}'.encode(), '{"a":"日本語"}'.encode()),
        ('{"本": 2, "日": 1}'.encode(), '{"日":1,"本":2}'.encode()),
        (b'{"a": "\\u65E5"}', '{"a":"日"}'.encode()),
        (b'{"a": null}', b'{"a":null}'),
        (b'{"a": -0}', b'{"a":0}'),
    ]
    for text, canonical in examples:
        assert encode(decode(text, strict=True)) == canonical


def test_keys_are_sorted_by_code_point() -> None:
    """By UTF-16, as some languages sort, U+FFFF would come last."""
    assert encode({"\U00010000": 1, "\uffff": 2, "b": 3, "B": 4}) == '{"B":4,"b":3,"\uffff":2,"\U00010000":1}'.encode()


def test_the_shortest_escapes_are_used() -> None:
    text = "\b\t\n\f\r\"\\/\0\x01\x1f\x7f\u2028<>&'"
    assert encode(text) == b'"\\b\\t\\n\\f\\r\\"\\\\/\\u0000\\u0001\\u001f\x7f\xe2\x80\xa8<>&\'"'


@PROPERTY
@given(strict_values)
def test_output_equals_that_of_the_specifications_example_code(value: Any) -> None:
    example = json.dumps(value, ensure_ascii=False, separators=(",", ":"), sort_keys=True).encode()
    assert encode(value) == encode(value, strict=False) == encode_regular(value) == example


@PROPERTY
@given(strict_values)
def test_encoding_and_decoding_round_trip(value: Any) -> None:
    assert decode(encode(value), strict=True) == value
    assert encode(decode(encode(value))) == encode(value)


@PROPERTY
@given(strict_values, st.booleans(), st.sampled_from([None, 1, "\t"]))
def test_any_spelling_decodes_to_the_same_value(value: Any, ascii_only: bool, indent: Any) -> None:
    text = json.dumps(value, ensure_ascii=ascii_only, indent=indent, separators=(" , ", " : ")).encode()
    assert decode(text, strict=True) == value


@PROPERTY
@given(lenient_values)
def test_numbers_of_old_room_versions_round_trip(value: Any) -> None:
    """Numbers keep their type, and integers all their digits."""
    again = decode(encode(value, strict=False))
    assert repr(again) == repr(value) or again == value
    assert encode(again, strict=False) == encode(value, strict=False)


@pytest.mark.parametrize("number", [1.0, 0.5, -0.0, 1e300, INT_MAX + 1, -INT_MAX - 1, 2**64, 10**308])
def test_strict_encoding_refuses_integers_beyond_53_bits(number: Any) -> None:
    for value in (number, [number], {"a": {"b": [1, number]}}):
        with pytest.raises(NotCanonical):
            encode(value)
        with pytest.raises(NotCanonical):
            decode(json.dumps(value).encode(), strict=True)
        assert decode(encode(value, strict=False)) == value
        assert check(value, strict=False) is False


@pytest.mark.parametrize("number", [0, 1, -1, INT_MAX, -INT_MAX])
def test_strict_encoding_accepts_integers_of_53_bits(number: int) -> None:
    assert encode(number) == str(number).encode()
    assert decode(str(number).encode(), strict=True) == number
    assert check(number) is True


def test_floats_of_old_room_versions_are_written_as_python_writes_them() -> None:
    """Their events were signed so, and no other encoding gives the hashes that they carry."""
    assert encode([1.0, 1e20, 1e-7, 50.5], strict=False) == b"[1.0,1e+20,1e-07,50.5]"


@pytest.mark.parametrize(
    "number",
    [float("nan"), float("inf"), float("-inf"), -(10**308) - 1, pytest.param(10**5000, id="5000 digits")],
)
def test_numbers_without_json_are_refused_even_leniently(number: Any) -> None:
    with pytest.raises(NotCanonical):
        encode([number], strict=False)


@pytest.mark.parametrize(
    "value",
    [
        {1: "a"},
        {None: "a"},
        {Shade.DARK: 1},
        {Text("a"): 1},
        "\ud800",
        {"a": ["\udfff"]},
        {"\ud800": 1},
        b"bytes",
        {"a": {1, 2}},
        object(),
        Shade.DARK,
        Text("a"),
        uuid.UUID(int=1),
        datetime.datetime(2020, 1, 1),
        NotCanonical,
    ],
)
def test_values_that_are_not_json_are_refused(value: Any) -> None:
    for strict in (True, False):
        with pytest.raises(NotCanonical):
            encode(value, strict=strict)
        with pytest.raises(NotCanonical):
            encode([value, 1.5], strict=False)


def test_tuples_are_arrays() -> None:
    assert encode({"a": (1, (2,))}) == b'{"a":[1,[2]]}'
    assert encode({"a": (1, (2.5,))}, strict=False) == b'{"a":[1,[2.5]]}'


def test_nesting_is_bounded() -> None:
    deepest = nested(DEPTH_MAX)
    assert decode(encode(deepest), strict=True) == deepest
    assert encode([deepest[0], 1.5], strict=False)
    for depth in (DEPTH_MAX + 1, 900, 100_000):
        with pytest.raises(NotCanonical):
            encode(nested(depth))
        with pytest.raises(NotCanonical):
            decode(b"[" * depth + b"]" * depth)
        with pytest.raises(NotCanonical):
            decode(b'{"a":' * depth + b"1" + b"}" * depth)


def test_nesting_costs_no_stack() -> None:
    """A caller deep in its own stack is answered or refused, but never gets a RecursionError."""

    def dive(frames: int, act: Callable[[], object]) -> object:
        return act() if frames == 0 else dive(frames - 1, act)

    deepest = [nested(DEPTH_MAX - 1), 1.5]
    frames = sys.getrecursionlimit() - len(inspect.stack()) - 50
    text = b" " + encode(nested(DEPTH_MAX))
    for act in (lambda: encode(deepest, strict=False), lambda: decode(text)):
        with contextlib.suppress(NotCanonical):
            dive(frames, act)
    assert encode(deepest, strict=False)


def test_a_value_containing_itself_is_refused() -> None:
    value: list[Any] = []
    value.append(value)
    with pytest.raises(NotCanonical):
        encode(value)


@pytest.mark.parametrize(
    "text",
    [
        b'{"a":1,"a":2}',
        b'{"a":1,"a":1}',
        b'{"a" : 1, "a"\n:\t2}',
        b'{"a":1,"\\u0061":1}',
        b'{"a":1,"b":{"c":[{"d":1,"d":2}]}}',
        b'{"":1,"":1}',
        b'{"a":{"b":1},"a":{"b":1}}',
        b'{"a":"\\":","a":1,"b":1e1}',
        b'{"a":1.5,"a":1.5}',
    ],
)
def test_duplicate_keys_are_refused(text: bytes) -> None:
    with pytest.raises(NotCanonical):
        decode(text)


def test_text_that_looks_like_a_key_is_not_a_duplicate() -> None:
    for value in ({"a": '"a":', "b": '"a" : 1'}, {"\\": '\\"', '"': '\\":'}, ["a", "a"], [{"a": 1}, {"a": 1}]):
        assert decode(json.dumps(value).encode()) == value
        assert decode(encode(value)) == value


@PROPERTY
@given(st.lists(st.tuples(st.sampled_from(["a", "b", '"', "\\", ":"]), strict_values), max_size=4))
def test_duplicate_keys_are_found_at_any_depth(pairs: list[tuple[str, Any]]) -> None:
    members = b",".join(encode(key) + b":" + encode(value) for key, value in pairs)
    text = b'[{"outer":{' + members + b"}}]"
    if len({key for key, _ in pairs}) < len(pairs):
        with pytest.raises(NotCanonical):
            decode(text)
    else:
        assert decode(text) == [{"outer": dict(pairs)}]


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b" ",
        b"{",
        b"{}{}",
        b"{} x",
        b"[1,]",
        b'{"a":1,}',
        b"{'a':1}",
        b"{a:1}",
        b"NaN",
        b"Infinity",
        b"-Infinity",
        b"[NaN]",
        b"1e999",
        b"01",
        b"+1",
        b".5",
        b"1.",
        b"tru",
        b'"\\ud800"',
        b'"\\udc00\\ud800"',
        b'{"\\ud800":1}',
        b'"\x00"',
        b'"\n"',
        b'"\\x"',
        b'"\xff"',
        b'"\xed\xa0\x80"',
        b"\xef\xbb\xbf{}",
        "{}".encode("utf-16"),
        pytest.param(b"1" * 5000, id="5000 digits"),
        b"// comment\n{}",
    ],
)
def test_text_that_is_not_json_is_refused(text: bytes) -> None:
    with pytest.raises(NotCanonical):
        decode(text)


def test_whitespace_around_a_value_is_allowed() -> None:
    assert decode(b' \r\n\t{ "a" : [ ] } \n') == {"a": []}


def test_integers_keep_all_their_digits() -> None:
    text = b'{"a":123456789012345678901234567890,"b":-9223372036854775809,"c":18446744073709551616}'
    assert decode(text) == {"a": 123456789012345678901234567890, "b": -(2**63) - 1, "c": 2**64}
    assert encode(decode(text), strict=False) == text


@PROPERTY
@given(st.binary(max_size=40) | st.text('{}[]":,\\ 0-1.eE+anul', max_size=24).map(str.encode))
def test_any_bytes_are_decoded_or_refused(data: bytes) -> None:
    try:
        value = decode(data)
    except NotCanonical:
        return
    assert decode(encode(value, strict=False)) == value


@pytest.mark.parametrize(
    "part",
    [
        b"[" * 400 + b"]" * 400,
        b'{"a":1,"a":1}',
        b'{"deep":{"a":1,"a":2}}',
        b"NaN",
        b"[1e400]",
        b"1" * 400,
        b"-" + b"1" * 9000,
        rb'"\ud800"',
        rb'{"\ud800":1}',
    ],
)
def test_a_refused_part_does_not_affect_its_neighbours(part: bytes) -> None:
    good, bad, also_good = decode_parts(b'[{"good":1},' + part + b",[2.5]]")
    assert (good, also_good) == ({"good": 1}, [2.5])
    with pytest.raises(NotCanonical):
        encode(bad, strict=False)
    with pytest.raises(NotCanonical):
        decode(part)


@pytest.mark.parametrize("data", [b"", b"{", b"\xff", b"[1,]", b"{} {}", b'{"a":1,"a":2}', b"[" * 100_000])
def test_parts_that_cannot_be_separated_are_refused_together(data: bytes) -> None:
    with pytest.raises(NotCanonical):
        decode_parts(data)


def test_wrappers_of_events_may_be_deeper_than_events() -> None:
    event = nested(DEPTH_MAX)
    carried = {"a": [{"b": {"c": {"d": [event]}}}]}
    with pytest.raises(NotCanonical):
        encode(carried)
    text = encode(carried, depth_max=WRAPPED_DEPTH_MAX)
    assert decode(text, depth_max=WRAPPED_DEPTH_MAX) == decode_parts(text) == carried
