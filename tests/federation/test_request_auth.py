"""Request authentication. Spec: server-server-api/#request-authentication"""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from homeserver.federation.canonical_json import NotCanonical, decode
from homeserver.federation.request_auth import (
    InvalidAuthorization,
    XMatrix,
    authorize_body,
    build_authorization,
    is_x_matrix,
    parse_authorization,
    signed_object,
    verify,
    verify_text,
)
from homeserver.federation.signing import SigningKey

KEY = SigningKey("key1", b"\1" * 32)
ORIGIN = "origin.hs.example.com"
DESTINATION = "destination.hs.example.com"
URI = "/_matrix/federation/v1/send/1?a=b"
EXAMPLE = XMatrix(ORIGIN, DESTINATION, "ed25519:key1", "ABCDEF...")


def test_the_signed_object_follows_the_spec() -> None:
    assert signed_object("POST", "/target", ORIGIN, DESTINATION, {"a": 1}) == {
        "method": "POST",
        "uri": "/target",
        "origin": ORIGIN,
        "destination": DESTINATION,
        "content": {"a": 1},
    }
    assert "content" not in signed_object("GET", "/target", ORIGIN, DESTINATION, None)
    assert signed_object("POST", "/target", ORIGIN, DESTINATION, {})["content"] == {}


def test_the_header_is_readable_by_older_servers() -> None:
    header = build_authorization("GET", URI, ORIGIN, DESTINATION, KEY, None)
    signature = parse_authorization(header).signature
    assert header == f'X-Matrix origin="{ORIGIN}",destination="{DESTINATION}",key="ed25519:key1",sig="{signature}"'


@pytest.mark.parametrize("content", [None, {}, {"pdus": [], "origin": "x"}])
def test_built_headers_verify(content: object) -> None:
    credentials = parse_authorization(build_authorization("PUT", URI, ORIGIN, DESTINATION, KEY, content))
    key = KEY.verify_key_base64
    assert verify(credentials, "PUT", URI, DESTINATION, content, key)
    assert not verify(credentials, "POST", URI, DESTINATION, content, key)
    assert not verify(credentials, "PUT", URI + "x", DESTINATION, content, key)
    assert not verify(credentials, "PUT", URI, "other.example.com", content, key)
    assert not verify(credentials, "PUT", URI, DESTINATION, {"other": 1}, key)
    assert not verify(credentials, "PUT", URI, DESTINATION, content, SigningKey("key1", b"\2" * 32).verify_key_base64)
    assert not verify(credentials, "PUT", URI, DESTINATION, content, "not a key")


def test_content_that_cannot_be_signed_is_refused() -> None:
    with pytest.raises(NotCanonical):
        build_authorization("PUT", URI, ORIGIN, DESTINATION, KEY, {"a": float("nan")})
    assert not verify(EXAMPLE, "PUT", URI, DESTINATION, {"a": float("nan")}, KEY.verify_key_base64)


def test_the_destination_is_optional_for_senders_before_v1_3() -> None:
    built = parse_authorization(build_authorization("GET", URI, ORIGIN, DESTINATION, KEY, None))
    credentials = parse_authorization(f'X-Matrix origin={ORIGIN},key="{built.key_id}",sig="{built.signature}"')
    assert credentials.destination is None
    assert verify(credentials, "GET", URI, DESTINATION, None, KEY.verify_key_base64)
    assert not verify(credentials, "GET", URI, "other.example.com", None, KEY.verify_key_base64)


PARAMS = f'origin="{ORIGIN}",destination="{DESTINATION}",key="ed25519:key1",sig="ABCDEF..."'


@pytest.mark.parametrize(
    "header",
    [
        f"X-Matrix {PARAMS}",
        f"x-matrix {PARAMS}",
        f"X-MATRIX    {PARAMS}",
        f"X-Matrix {PARAMS},",
        f"X-Matrix ,,{PARAMS} , ,",
        f" X-Matrix {PARAMS}\t",
        f'X-Matrix {PARAMS},unknown="x, y",other=1',
        f'X-Matrix sig="ABCDEF...",key="ed25519:key1",destination="{DESTINATION}",origin="{ORIGIN}"',
        f'X-Matrix ORIGIN="{ORIGIN}" \t,\t Destination="{DESTINATION}" , kEy="ed25519:key1",Sig="ABCDEF..."',
        f"X-Matrix origin={ORIGIN},destination={DESTINATION},key=ed25519:key1,sig=ABCDEF...",
        f'X-Matrix origin = "{ORIGIN}", destination\t=\t{DESTINATION}, key= "ed25519:key1", sig ="ABCDEF..."',
        f'X-Matrix origin="\\o\\r\\igin.hs.example.com",destination={DESTINATION},key="ed25519\\:key1",sig="ABCDEF..."',
        f'X-Matrix origin="{ORIGIN}",destination="{DESTINATION}",key="ed25519:key1",signature="ABCDEF..."',
    ],
)
def test_every_form_of_the_grammar_is_read(header: str) -> None:
    assert is_x_matrix(header.strip())
    assert parse_authorization(header) == EXAMPLE


def test_names_may_have_ports_and_ipv6_literals() -> None:
    header = 'X-Matrix origin=a.org:8448,destination="[::1]:8448",key=ed25519:1,sig="a/b+c"'
    assert parse_authorization(header) == XMatrix("a.org:8448", "[::1]:8448", "ed25519:1", "a/b+c")


def test_escapes_are_decoded_once() -> None:
    header = 'X-Matrix origin=a.org,key="\\"\\\\\\k",sig=s'
    assert parse_authorization(header).key_id == '"\\k'


@pytest.mark.parametrize(
    "header",
    [
        "",
        "X-Matrix",
        "X-Matrix ",
        "X-Matrix ,",
        f"Bearer {PARAMS}",
        f"X-Matrix\t{PARAMS}",
        f"X-Matrix{PARAMS}",
        'X-Matrix destination="a.org",key="ed25519:1",sig="x"',
        'X-Matrix origin="a.org",sig="x"',
        'X-Matrix origin="a.org",key="ed25519:1"',
        'X-Matrix origin="",key="ed25519:1",sig="x"',
        'X-Matrix origin="not a name",key="ed25519:1",sig="x"',
        'X-Matrix origin="a.org",destination="",key="ed25519:1",sig="x"',
        'X-Matrix origin="a.org",key="ed25519:1",sig="x',
        'X-Matrix origin="a.org" key="ed25519:1",sig="x"',
        'X-Matrix origin="a.org"key="ed25519:1",sig="x"',
        'X-Matrix origin="a.org",key="ed25519:1",sig=a/b',
        "X-Matrix origin=a.org,key=ed25519:1,sig=x,sig=y",
        "X-Matrix origin=a.org,key=ed25519:1,sig=x,Origin=b.org",
        'X-Matrix origin=a.org,key=ed25519:1,sig="x\x00"',
        'X-Matrix origin=a.org,key=ed25519:1,sig="\u2603"',
        "X-Matrix origin=a.org,key=ed25519:1,sig=x," + "y" * 5000,
        "X-Matrix origin,key=ed25519:1,sig=x",
    ],
)
def test_malformed_headers_are_refused(header: str) -> None:
    with pytest.raises(InvalidAuthorization):
        parse_authorization(header)


def test_other_authorization_schemes_are_recognised() -> None:
    assert not is_x_matrix("Bearer abc")
    assert not is_x_matrix("X-Matrix")
    assert is_x_matrix("X-Matrix nonsense")


@given(st.text('Xx-Matrix origin=",\\:key sig.\t', max_size=80))
def test_any_header_raises_only_its_own_error(params: str) -> None:
    for header in (params, f"X-Matrix {params}", f"X-Matrix origin=a,key=b,sig=c,{params}"):
        try:
            parse_authorization(header)
        except InvalidAuthorization:
            pass


@given(st.dictionaries(st.text(max_size=5), st.integers(-(2**53) + 1, 2**53 - 1)), st.sampled_from(["GET", "PUT"]))
def test_any_content_can_be_signed(content: dict[str, int], method: str) -> None:
    credentials = parse_authorization(build_authorization(method, URI, ORIGIN, DESTINATION, KEY, content))
    assert verify(credentials, method, URI, DESTINATION, content, KEY.verify_key_base64)


def test_the_signature_may_cover_the_body_as_received() -> None:
    deep = b'{"pdus":[' + b"[" * 500 + b"]" * 500 + b"]}"
    credentials = parse_authorization(authorize_body("PUT", URI, ORIGIN, DESTINATION, KEY, deep))
    assert verify_text(credentials, "PUT", URI, DESTINATION, deep, KEY.verify_key_base64)
    other = deep.replace(b"pdus", b"edus")
    assert not verify_text(credentials, "PUT", URI, DESTINATION, other, KEY.verify_key_base64)
    assert not verify_text(credentials, "PUT", URI, DESTINATION, None, KEY.verify_key_base64)


@pytest.mark.parametrize("body", [b'{"a": 1, "b": [2]}', b'{"b":[2],"a":1}', b'{"a":1,"b":[2]}'])
def test_a_body_that_is_not_canonical_is_signed_in_its_canonical_form(body: bytes) -> None:
    credentials = parse_authorization(build_authorization("PUT", URI, ORIGIN, DESTINATION, KEY, {"a": 1, "b": [2]}))
    assert verify(credentials, "PUT", URI, DESTINATION, decode(body), KEY.verify_key_base64)
