"""Content-Type and Content-Disposition. Spec: client-server-api/#serving-inline-content, RFC 6266, RFC 8187"""

from __future__ import annotations

from email.message import Message

import pytest
from hypothesis import given
from hypothesis import strategies as st

from homeserver.features.media.content_headers import (
    INLINE_TYPES,
    clean_content_type,
    clean_filename,
    content_disposition,
    read_filename,
)

filenames = st.text(min_size=1, max_size=60).filter(lambda name: clean_filename(name) is not None)


@given(filename=filenames)
def test_filenames_survive_the_header(filename: str) -> None:
    header = content_disposition("image/png", filename)
    header.encode("ascii")
    assert "\r" not in header and "\n" not in header and "\0" not in header
    assert read_filename(header) == filename


@given(filename=filenames)
def test_other_parsers_read_the_same_filename(filename: str) -> None:
    message = Message()
    message["Content-Disposition"] = content_disposition("image/png", filename)
    found = message.get_filename()
    # The parser of the standard library collapses white space inside quotes.
    assert found is not None and found.split() == filename.split()


@given(header=st.text(max_size=120))
def test_any_header_is_read_without_an_error(header: str) -> None:
    found = read_filename(header)
    assert found is None or clean_filename(found) == found


@given(value=st.text(max_size=80))
def test_a_stored_content_type_can_be_sent(value: str) -> None:
    cleaned = clean_content_type(value)
    cleaned.encode("ascii")
    assert "\r" not in cleaned and "\n" not in cleaned and "/" in cleaned


@pytest.mark.parametrize(
    ("filename", "header"),
    [
        ("cat.png", "inline; filename=cat.png"),
        ("my cat.png", 'inline; filename="my cat.png"'),
        ('a"b\\c', 'inline; filename="a\\"b\\\\c"'),
        ("Käse.png", "inline; filename*=utf-8''K%C3%A4se.png"),
        ("100%25 sure", "inline; filename*=utf-8''100%2525%20sure"),
        ("a\r\nSet-Cookie: x", "inline; filename*=utf-8''a%0D%0ASet-Cookie%3A%20x"),
        (None, "inline"),
    ],
)
def test_content_disposition_is_written(filename: str | None, header: str) -> None:
    assert content_disposition("image/png", filename) == header


@pytest.mark.parametrize(
    ("header", "filename"),
    [
        (None, None),
        ("", None),
        ("attachment", None),
        ("attachment; filename=", None),
        ('attachment; filename=""', None),
        ("attachment; filename=a.txt", "a.txt"),
        ('attachment;filename="a b.txt"', "a b.txt"),
        ("attachment; FileName=a.txt; filename*=UTF-8'en'b%20c.txt", "b c.txt"),
        ("attachment; filename*=iso-8859-1''caf%E9", "café"),
        ("attachment; filename*=koi8-r''x; filename=fallback", "fallback"),
        ("attachment; filename*=utf-8''%00; filename=fallback", "fallback"),
        ('attachment; filename="\xc3\xa4.txt"', "ä.txt"),
        ('attachment; filename="\xe4.txt"', "ä.txt"),
        ('attachment; filename="unclosed', None),
        ("filename=a.txt", None),
        ("; filename=a.txt", "a.txt"),
        ("attachment; filename=" + "a" * 2000, None),
    ],
)
def test_content_disposition_of_others_is_read(header: str | None, filename: str | None) -> None:
    assert read_filename(header) == filename


@pytest.mark.parametrize(
    ("given_type", "kept"),
    [
        (None, "application/octet-stream"),
        ("", "application/octet-stream"),
        ("image/png", "image/png"),
        (" text/plain; charset=utf-8 ", "text/plain; charset=utf-8"),
        ("text/plain\r\nSet-Cookie: a=b", "application/octet-stream"),
        ("text", "application/octet-stream"),
        ("text/plain, text/html", "application/octet-stream"),
        ("text/pl\xe4in", "application/octet-stream"),
        ("a/" + "b" * 300, "application/octet-stream"),
    ],
)
def test_content_types_are_sanitised(given_type: str | None, kept: str) -> None:
    assert clean_content_type(given_type) == kept


@pytest.mark.parametrize(
    "content_type", ["text/html", "image/svg+xml", "application/pdf", "application/javascript", "TEXT/HTML"]
)
def test_executable_content_is_sent_as_an_attachment(content_type: str) -> None:
    assert content_disposition(content_type, None) == "attachment"


@pytest.mark.parametrize("content_type", [*sorted(INLINE_TYPES), "Image/PNG", "text/plain; charset=utf-8"])
def test_types_allowed_by_the_spec_are_inline(content_type: str) -> None:
    assert content_disposition(content_type, None) == "inline"
