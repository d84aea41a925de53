"""Identifiers and their grammar. Spec: appendices/#identifier-grammar"""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from homeserver.federation.identifiers import (
    InvalidIdentifier,
    fits,
    is_valid_localpart,
    localpart_of,
    parse_event_id,
    parse_room_alias,
    parse_room_id,
    parse_server_name,
    parse_user_id,
    parse_user_ids,
    server_name_of,
)
from tests.federation.json_values import PROPERTY

HASH = "Rqnc-F-dvnEYJTyHq_iKxU2bZ1CI92-kuZq3a5lr5Zg"
NEAR_IDS = ("@a:a", "@ü:a", "a:a", "@:a", "@\0:a", f"@{'a' * 253}:a", f"@{'ü' * 127}:a")
NOT_STRINGS = [None, 1, 1.5, True, [], {}, b"example.org"]


@pytest.mark.parametrize(
    "name",
    [
        "matrix.org",
        "matrix.org:8888",
        "1.2.3.4",
        "1.2.3.4:1234",
        "[1234:5678::abcd]",
        "[1234:5678::abcd]:5678",
        "[::]",
        "[::ffff:1.2.3.4]",
        "localhost",
        "UPPER.case",
        "xn--bcher-kva.example",
        "example.org:0",
        "example.org:65535",
        "1.2.3.4.5",
    ],
)
def test_a_server_name_is_a_hostname_with_an_optional_port(name: str) -> None:
    assert parse_server_name(name) == name


@pytest.mark.parametrize(
    "name",
    [
        "",
        ":8448",
        "example.org:",
        "example.org:port",
        "example.org:123456",
        "example.org:65536",
        "example.org:-1",
        "example.org:８",
        "under_score.org",
        "sp ace.org",
        "example.org\n",
        "exämple.org",
        "a/b",
        "a@b",
        "256.1.1.1",
        "1.2.3.999:80",
        "[1234:5678::abcd",
        "[nonsense]",
        "[:::]",
        "[1::2::3]",
        "[::1%eth0]",
        "[::1]:65536",
        "[]",
        "::1",
        "x" * 256,
        "x" * 250 + ":65535",
        "\ud800",
        *NOT_STRINGS,
    ],
)
def test_other_server_names_are_refused(name: object) -> None:
    with pytest.raises(InvalidIdentifier):
        parse_server_name(name)


@pytest.mark.parametrize(
    "user_id",
    [
        "@alice:example.org",
        "@alice:example.org:8448",
        "@alice:[::1]:8448",
        "@a.b_c=d-e/f+g:example.org",
        "@UPPER:example.org",
        "@ünï cödé!:example.org",
        "@:example.org",
        "@line\nbreak:example.org",
        "@" + "a" * 242 + ":example.org",
    ],
)
def test_a_user_id_may_have_a_historical_localpart(user_id: str) -> None:
    assert parse_user_id(user_id) == user_id


@pytest.mark.parametrize(
    "user_id",
    [
        "",
        "@",
        "alice:example.org",
        "!alice:example.org",
        "@alice",
        "@alice:",
        "@nul\0:example.org",
        "@alice:bad_server",
        "@alice:example.org:x",
        "@\ud800:example.org",
        "@" + "a" * 243 + ":example.org",
        "@" + "ä" * 122 + ":example.org",
        *NOT_STRINGS,
    ],
)
def test_other_user_ids_are_refused(user_id: object) -> None:
    with pytest.raises(InvalidIdentifier):
        parse_user_id(user_id)


@PROPERTY
@given(
    st.lists(
        st.text("@:.\0aü", max_size=6) | st.sampled_from(["@a:a", "@ü:a", "a:a", "@:a", "@\0:a", f"@{'a' * 253}:a"])
    )
)
def test_several_user_ids_are_parsed_as_each_would_be(values: list[str]) -> None:
    try:
        expected = [parse_user_id(value) for value in values]
    except InvalidIdentifier as error:
        with pytest.raises(InvalidIdentifier, match=re.escape(str(error))):
            parse_user_ids(values)
    else:
        assert list(parse_user_ids(values)) == expected


def test_new_localparts_must_follow_the_current_grammar() -> None:
    assert is_valid_localpart("alice.b_c=d-e/f+g0")
    assert not any(map(is_valid_localpart, ["", "Alice", "älice", "a b", "a:b", "alice\n", "a@b", "a*"]))


@pytest.mark.parametrize("room_id", ["!room:example.org", "!a b/ü:example.org:8448", "!:example.org", "!" + HASH])
def test_a_room_id_has_a_domain_or_is_the_hash_of_a_create_event(room_id: str) -> None:
    assert parse_room_id(room_id) == room_id


@pytest.mark.parametrize(
    "room_id",
    [
        "",
        "!",
        "room:example.org",
        "#room:example.org",
        "!room",
        "!" + HASH[:42],
        "!" + HASH + "A",
        "!+" + HASH[1:],
        "!room:",
        "!room:bad_server",
        "!nul\0:example.org",
        "!" + "r" * 243 + ":example.org",
        *NOT_STRINGS,
    ],
)
def test_other_room_ids_are_refused(room_id: object) -> None:
    with pytest.raises(InvalidIdentifier):
        parse_room_id(room_id)


@pytest.mark.parametrize("event_id", ["$e", "$event:example.org", "$" + HASH, "$a/b+c", "$" + "e" * 254])
def test_event_ids_are_opaque(event_id: str) -> None:
    assert parse_event_id(event_id) == event_id


@pytest.mark.parametrize("event_id", ["", "$", "event", "!event", "$nul\0", "$" + "e" * 255, "$\ud800", *NOT_STRINGS])
def test_other_event_ids_are_refused(event_id: object) -> None:
    with pytest.raises(InvalidIdentifier):
        parse_event_id(event_id)


def test_a_room_alias_has_a_localpart_and_a_domain() -> None:
    assert parse_room_alias("#räum 1:example.org") == "#räum 1:example.org"
    for alias in ("#room", "room:example.org", "#nul\0:example.org", "#room:bad_server", None):
        with pytest.raises(InvalidIdentifier):
            parse_room_alias(alias)


def test_the_domain_is_everything_after_the_first_colon() -> None:
    assert server_name_of("@alice:example.org:8448") == "example.org:8448"
    assert server_name_of("!r:[::1]:80") == "[::1]:80"
    for identifier in ("$" + HASH, "@alice", "@alice:", ""):
        with pytest.raises(InvalidIdentifier):
            server_name_of(identifier)


def test_the_localpart_is_everything_between_the_sigil_and_the_first_colon() -> None:
    assert localpart_of("@alice:example.org:8448") == "alice"
    assert localpart_of("@:example.org") == ""
    assert localpart_of("$" + HASH) == HASH


def test_the_limit_is_in_bytes_of_utf_8() -> None:
    assert fits("x" * 255) and fits("ä" * 127)
    assert not fits("x" * 256) and not fits("ä" * 128) and not fits("\ud800")


@PROPERTY
@given(st.text() | st.text("@!$#:.[]ab1", max_size=8))
def test_any_text_is_parsed_or_refused(text: str) -> None:
    for parse in (parse_server_name, parse_user_id, parse_room_id, parse_event_id, parse_room_alias):
        try:
            assert parse(text) == text
        except InvalidIdentifier:
            continue
        assert len(text.encode()) <= 255
