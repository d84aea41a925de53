"""Taking large JSON answers apart: every element comes out as it went in, however the bytes arrive."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from homeserver.federation.canonical_json import NotCanonical
from homeserver.federation.json_stream import DEPTH_MAX, MEMBERS_MAX, Splitter

TEXT = st.text(st.sampled_from('ab"\\[]{},:é\n \u2028'), max_size=8)
VALUE = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | TEXT,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT, inner, max_size=4),
    max_leaves=20,
)
WANTED = {"state", "auth_chain"}


def split(
    text: bytes, size: int = 5, *, arrays: Any = WANTED, members: Any = (), element_bytes_max: int = 1 << 20
) -> tuple[list[tuple[str, bytes | None]], dict[str, Any]]:
    """The elements and members of a text that comes in pieces of `size` bytes."""
    splitter = Splitter(arrays, members, element_bytes_max=element_bytes_max)
    found = [each for start in range(0, len(text), size) for each in splitter.feed(text[start : start + size])]
    return found, splitter.close()


@given(
    st.dictionaries(st.sampled_from(["state", "auth_chain", "event", "origin", 'é\\"']), VALUE | st.lists(VALUE)),
    st.booleans(),
    st.sampled_from([None, 2]),
    st.integers(1, 60),
)
def test_elements_are_returned_unchanged(
    answer: dict[str, Any], ascii_only: bool, indent: int | None, size: int
) -> None:
    text = json.dumps(answer, ensure_ascii=ascii_only, indent=indent).encode()
    found, members = split(text, size, members={"event"})
    elements = [
        (name, each) for name, value in answer.items() if name in WANTED and isinstance(value, list) for each in value
    ]
    assert [(name, json.loads(element or b"")) for name, element in found] == elements
    assert members == {name: value for name, value in answer.items() if name == "event"}


@pytest.mark.parametrize("levels", range(1, 13))
@pytest.mark.parametrize("opening, closing", [(b"[", b"]"), (b'{"a":', b"}"), (b'["x",{"a":1,"b":', b"}]")])
def test_nested_elements_may_be_cut_anywhere(levels: int, opening: bytes, closing: bytes) -> None:
    """Some versions of Python have faults in their regular expressions here."""
    element = opening * levels + b'"some \\" [ text"' + closing * levels
    text = b'{"state":[%b,{"body":"%b"}]}' % (element, b"x" * 20)
    for cut in range(len(text)):
        splitter = Splitter(WANTED)
        found = [element for part in (text[:cut], text[cut:]) for _, element in splitter.feed(part)]
        assert found == [element, b'{"body":"%b"}' % (b"x" * 20)]
        splitter.close()


@given(st.lists(VALUE), st.integers(1, 30), st.data())
def test_text_that_ends_early_is_refused(state: list[Any], size: int, data: st.DataObject) -> None:
    text = json.dumps({"state": state}).encode()
    with pytest.raises(NotCanonical):
        split(text[: data.draw(st.integers(0, len(text) - 1))], size)


@given(st.binary(max_size=60))
def test_any_text_is_split_or_refused(text: bytes) -> None:
    try:
        split(text, 3)
    except NotCanonical:
        pass


@pytest.mark.parametrize("size", [1, 4, 1000])
def test_an_answer_of_version_1_is_wrapped_in_an_array_with_its_status(size: int) -> None:
    assert split(b'[ 200 , {"state": [{}], "x": 1}]', size)[0] == [("state", b"{}")]


@pytest.mark.parametrize(
    "text",
    [
        b"", b"5", b"[]", b'"x"', b"[200]", b'[200,{"a":1}', b"[200,[200,{}]]", b'{"a":1,}', b'{"a" 1}', b"{,}",
        b'{"state":[,]}', b'{"state":[1,]}', b'{"state":[1 2]}', b'{"state":[}', b'{"state":[1}', b'{"state":{]',
        b"{}x", b"{1:2}",
        b'{"a":1,"a":2}', b'{"state":[],"state":[]}', b'{"' + b"k" * 1000 + b'":1}', b'{"state":[' + b"1" * 5000,
        b"{" + b",".join(b'"%d":1' % number for number in range(MEMBERS_MAX + 1)) + b"}",
        b'{"state":[' + b"[" * (DEPTH_MAX + 1),
    ],
)  # fmt: skip
@pytest.mark.parametrize("size", [1, 7, 10_000])
def test_malformed_text_is_refused(text: bytes, size: int) -> None:
    with pytest.raises(NotCanonical):
        split(text, size)


@pytest.mark.parametrize("size", [1, 16, 100_000])
@pytest.mark.parametrize(
    "large",
    [b'"%b"' % (b"x" * 5000), b'"%b"' % (b'\\"' * 3000), b"[%b1]" % (b"[]," * 2000), b'{"a":"%b"}' % (b"]" * 999)],
)
def test_an_oversized_element_is_skipped(large: bytes, size: int) -> None:
    text = b'{"state":[1,%b,{"b":2}],"more":%b,"event":%b}' % (large, large, large)
    splitter = Splitter(WANTED, {"event"}, element_bytes_max=500)
    found, most = [], 0
    for start in range(0, len(text), size):
        found += list(splitter.feed(text[start : start + size]))
        most = max(most, len(splitter._buffer))
    assert found == [("state", b"1"), ("state", None), ("state", b'{"b":2}')]
    assert splitter.close() == {}
    assert most <= 500 + size
