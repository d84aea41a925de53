"""The multipart/mixed answer of federation media. Spec: server-server-api/#content-repository, RFC 2046 §5.1.1"""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator, Mapping
from email.parser import BytesParser
from email.policy import HTTP

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from homeserver.features.media.content_headers import clean_filename, content_disposition, read_filename
from homeserver.features.media.multipart import InvalidMultipart, MultipartReader, new_envelope, read_boundary


async def chunked(body: bytes, cuts: list[int]) -> AsyncIterator[bytes]:
    edges = sorted({min(cut, len(body)) for cut in cuts} | {0, len(body)})
    for start, end in itertools.pairwise(edges):
        yield body[start:end]


def read(body: bytes, boundary: bytes, cuts: list[int] | None = None) -> tuple[Mapping[str, str], bytes]:
    async def read_all() -> tuple[Mapping[str, str], bytes]:
        reader = MultipartReader(chunked(body, cuts or []), boundary)
        headers = await reader.read_headers()
        return headers, b"".join([chunk async for chunk in reader.media()])

    return trio.run(read_all)


cuts = st.lists(st.integers(0, 600), max_size=40)


@given(media=st.binary(max_size=400), filename=st.text(max_size=20), cuts=cuts)
def test_written_parts_are_read_back_wherever_chunks_are_cut(media: bytes, filename: str, cuts: list[int]) -> None:
    envelope = new_envelope("text/plain; charset=utf-8", content_disposition("text/plain", filename))
    body = envelope.head + media + envelope.tail
    headers, found = read(body, read_boundary(envelope.content_type), cuts)
    assert found == media
    assert headers["content-type"] == "text/plain; charset=utf-8"
    assert read_filename(headers["content-disposition"]) == clean_filename(filename)


@given(
    media=st.lists(st.sampled_from([b"\r", b"\n", b"-", b"b", b"--b", b"\r\n--", b"\r\n--c", b"x"]), max_size=60),
    cuts=cuts,
)
def test_near_delimiters_are_content(media: list[bytes], cuts: list[int]) -> None:
    content = b"".join(media)
    body = b"--bbb\r\nContent-Type: application/json\r\n\r\n{}\r\n--bbb\r\n\r\n" + content + b"\r\n--bbb--"
    if b"\r\n--bbb" in b"\r\n" + content:
        return
    assert read(body, b"bbb", cuts) == ({}, content)


@given(body=st.binary(max_size=300), cuts=cuts)
def test_garbage_is_refused(body: bytes, cuts: list[int]) -> None:
    with pytest.raises(InvalidMultipart):
        read(body, b"boundary-that-is-not-in-there", cuts)


@given(
    at=st.integers(0, 120),
    length=st.integers(0, 8),
    put=st.binary(max_size=8),
    cuts=st.lists(st.integers(0, 200), max_size=5),
)
def test_a_damaged_answer_is_read_or_refused(at: int, length: int, put: bytes, cuts: list[int]) -> None:
    whole = b"--b\r\nContent-Type: application/json\r\n\r\n{}\r\n--b\r\nContent-Type: image/png\r\n\r\nPNG\r\n--b--\r\n"
    body = bytearray(whole)
    body[at : at + length] = put
    try:
        read(bytes(body), b"b", cuts)
    except InvalidMultipart:
        pass


@given(media=st.binary(max_size=100))
def test_other_parsers_read_the_written_form(media: bytes) -> None:
    envelope = new_envelope("application/octet-stream", "attachment; filename=a.bin")
    head = f"Content-Type: {envelope.content_type}\r\nMIME-Version: 1.0\r\n\r\n".encode()
    message = BytesParser(policy=HTTP).parsebytes(head + envelope.head + media.hex().encode() + envelope.tail)
    metadata, content = message.iter_parts()
    assert metadata.get_content_type() == "application/json"
    assert metadata.get_payload() == "{}"
    assert content.get_filename() == "a.bin"
    assert content.get_payload() == media.hex()


@pytest.mark.parametrize(
    ("body", "headers", "media"),
    [
        # With a preamble, spaces after the delimiters, headers folded over lines, and an epilogue.
        (
            b"preamble\r\n--b  \r\ncontent-type:application/json\r\n\r\n{}\r\n--b\t\r\n"
            b"Content-Type: image/png;\r\n  x=y\r\n\r\nPNG\r\n--b--\r\nepilogue",
            {"content-type": "image/png; x=y"},
            b"PNG",
        ),
        # Nothing in the parts at all.
        (b"--b\r\nContent-Type: application/json\r\n\r\n--b\r\nLocation: https://a.example/x\r\n\r\n--b--",
         {"location": "https://a.example/x"}, b""),
        (b"--b\r\nContent-Type: application/json\r\n\r\n{}\r\n--b\r\n\r\n\r\n--b--", {}, b""),
    ],
)  # fmt: skip
def test_unusual_but_valid_forms_are_read(body: bytes, headers: dict[str, str], media: bytes) -> None:
    for cut in range(len(body)):
        assert read(body, b"b", [cut]) == (headers, media)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"--b--",
        b"--b\r\nContent-Type: text/html\r\n\r\n{}\r\n--b\r\n\r\nx\r\n--b--",
        b"--b\r\nContent-Type: application/json\r\n\r\n{}\r\n--b--",
        b"--b\r\nContent-Type: application/json\r\n\r\n{}\r\n--b\r\n\r\nx",
        b"--b\r\nContent-Type: application/json\r\n\r\n{}\r\n--b\r\n\r\nx\r\n--b\r\n\r\ny\r\n--b--",
        b"--b\r\nContent-Type: application/json\r\nno colon\r\n\r\n{}\r\n--b\r\n\r\nx\r\n--b--",
        b"--b\r\nContent-Type: application/json\r\n\r\n{}\r\n--b\r\nName\n: x\r\n\r\nx\r\n--b--",
        b"--b\r\n" + b"A: b\r\n" * 10_000 + b"\r\n{}\r\n--b\r\n\r\nx\r\n--b--",
        b"--b\r\nContent-Type: application/json\r\n\r\n" + b"{}" * 100_000 + b"\r\n--b\r\n\r\nx\r\n--b--",
        b" " * 100_000 + b"--b\r\nContent-Type: application/json\r\n\r\n{}\r\n--b\r\n\r\nx\r\n--b--",
    ],
)
def test_invalid_forms_are_refused(body: bytes) -> None:
    with pytest.raises(InvalidMultipart):
        read(body, b"b", list(range(0, len(body), 1000)))


@pytest.mark.parametrize(
    "content_type",
    [
        "", "multipart/mixed", "multipart/mixed; boundary=", "multipart/form-data; boundary=b",
        "multipart/mixed; boundary=" + "b" * 71, 'multipart/mixed; boundary="b "',
    ],
)  # fmt: skip
def test_a_content_type_without_a_boundary_is_refused(content_type: str) -> None:
    with pytest.raises(InvalidMultipart):
        read_boundary(content_type)


def test_a_quoted_boundary_is_read() -> None:
    assert read_boundary('Multipart/Mixed; charset=utf-8; Boundary="a b=c"') == b"a b=c"


def test_memory_is_bounded_while_a_long_body_is_read() -> None:
    async def run() -> None:
        async def chunks() -> AsyncIterator[bytes]:
            yield b"--b\r\nContent-Type: application/json\r\n\r\n{}\r\n--b\r\n\r\n"
            for _ in range(1000):
                yield b"\r\n--" * 1000
            yield b"\r\n--b--"

        reader = MultipartReader(chunks(), b"b")
        await reader.read_headers()
        total = 0
        async for chunk in reader.media():
            total += len(chunk)
            assert len(reader._buffer) < 10_000
        assert total == 4_000_000

    trio.run(run)
