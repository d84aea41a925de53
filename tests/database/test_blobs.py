"""Blobs are stored whole and durably, read in ranges, and never outside of their folder."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import trio
import trio.testing
from hypothesis import given
from hypothesis import strategies as st

from homeserver.blobs import BlobDamaged, BlobError, Blobs, _check_key
from homeserver.limits import BLOB_CHUNK_BYTES
from tests.support.object_store import running_object_store


@pytest.fixture(params=["file", "file inline", "memory", pytest.param("s3", marks=pytest.mark.sockets)])
def blobs(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Blobs]:
    """In a folder, in memory, and in an object store across HTTP."""
    if request.param == "memory":
        yield Blobs("memory:")
    elif request.param == "s3":
        with running_object_store() as (environment, _):
            for name, value in environment.items():
                monkeypatch.setenv(name, value)
            yield Blobs("s3://bucket/some/prefix")
    else:
        yield Blobs(f"file:{tmp_path}/blobs", inline=request.param.endswith("inline"))


async def read_all(chunks: AsyncIterator[bytes]) -> bytes:
    return b"".join([chunk async for chunk in chunks])


async def test_a_blob_that_was_put_can_be_read(blobs: Blobs) -> None:
    for key, data in (("media/ab/cd", b"hello"), ("empty", b""), ("a.b-c_d/E.F", bytes(range(256)))):
        assert not await blobs.exists(key)
        await blobs.put(key, data)
        assert await blobs.get(key) == data
        assert await read_all(blobs.stream(key)) == data
        assert await blobs.size_bytes(key) == len(data)
        assert await blobs.exists(key)
    await blobs.put("media/ab/cd", b"replaced")
    assert await blobs.get("media/ab/cd") == b"replaced"


async def test_a_file_can_be_put(blobs: Blobs, tmp_path: Path) -> None:
    source = tmp_path / "upload"
    source.write_bytes(b"x" * 1_000_000)
    await blobs.put("media/file", source)
    source.unlink()
    assert await blobs.get("media/file") == b"x" * 1_000_000
    with pytest.raises((ValueError, KeyError, BlobError)):
        await blobs.put("media/missing", tmp_path / "missing")
    assert not await blobs.exists("media/missing")


async def test_ranges_of_a_blob_can_be_read(blobs: Blobs) -> None:
    data = os.urandom(BLOB_CHUNK_BYTES * 3 + 17)
    await blobs.put("big", data)
    for start, end in ((0, None), (0, 1), (5, 5), (1, BLOB_CHUNK_BYTES + 2), (len(data) - 1, None), (7, 10**9)):
        assert await read_all(blobs.stream("big", start, end)) == data[start:end]
    assert await read_all(blobs.stream("big", len(data) + 5)) == b""
    chunks = [chunk async for chunk in blobs.stream("big")]
    assert max(map(len, chunks)) <= BLOB_CHUNK_BYTES
    for start, end in ((-1, None), (5, 4)):
        with pytest.raises(ValueError, match="range"):
            await read_all(blobs.stream("big", start, end))


async def test_missing_blobs_are_reported(blobs: Blobs) -> None:
    for call in (blobs.get("no/such"), blobs.size_bytes("no/such"), read_all(blobs.stream("no/such"))):
        with pytest.raises(KeyError):
            await call
    await blobs.delete("no/such")


async def test_a_blob_of_another_size_than_expected_is_damaged(blobs: Blobs) -> None:
    await blobs.put("media/ab", b"hello")
    assert await blobs.get("media/ab", expected_bytes=5) == b"hello"
    for size_bytes in (0, 4, 6):
        with pytest.raises(BlobDamaged):
            await blobs.get("media/ab", expected_bytes=size_bytes)
        with pytest.raises(BlobDamaged):
            await read_all(blobs.stream("media/ab", expected_bytes=size_bytes))


async def test_a_blob_that_has_become_larger_than_the_memory_is_not_read(tmp_path: Path) -> None:
    blobs = Blobs(f"file:{tmp_path}/blobs")
    await blobs.put("media/ab", b"hello")
    os.truncate(tmp_path / "blobs" / "media" / "ab", 1 << 43)
    with pytest.raises(BlobDamaged):
        await blobs.get("media/ab", expected_bytes=5)


async def test_blobs_can_be_deleted(blobs: Blobs) -> None:
    await blobs.put("a/b", b"1")
    await blobs.delete("a/b")
    assert not await blobs.exists("a/b")


async def test_blobs_can_be_listed(blobs: Blobs) -> None:
    for key in ("media/a/1", "media/a/2", "media/b/3", "mediators", "x"):
        await blobs.put(key, key.encode())
    assert sorted([entry async for entry in blobs.list("media")]) == [
        ("media/a/1", 9),
        ("media/a/2", 9),
        ("media/b/3", 9),
    ]
    assert len([entry async for entry in blobs.list()]) == 5
    assert [entry async for entry in blobs.list("nothing")] == []


async def test_a_blob_can_be_replaced_while_it_is_read(blobs: Blobs) -> None:
    old, new = b"o" * BLOB_CHUNK_BYTES * 4, b"n" * BLOB_CHUNK_BYTES * 4
    await blobs.put("key", old)
    reader = blobs.stream("key")
    seen = await anext(reader)
    await blobs.put("key", new)
    async for chunk in reader:
        seen += chunk
    assert seen == old
    assert await blobs.get("key") == new


@pytest.mark.parametrize(
    "key",
    [
        "",
        "/",
        "/a",
        "a/",
        "a//b",
        "..",
        "a/../b",
        "a/..",
        ".hidden",
        "a/.b",
        "a b",
        "a\\b",
        "ä",
        "a\0",
        "a\n",
        "x" * 600,
    ],
)
async def test_keys_that_could_leave_the_folder_are_refused(blobs: Blobs, key: str) -> None:
    for call in (
        blobs.get(key),
        blobs.put(key, b""),
        blobs.delete(key),
        blobs.exists(key),
        read_all(blobs.stream(key)),
    ):
        with pytest.raises(ValueError, match="key"):
            await call


@given(st.text(max_size=30))
def test_no_key_leaves_its_folder(key: str) -> None:
    try:
        _check_key(key)
    except ValueError:
        return
    path = Path("/folder", key)
    assert os.path.normpath(path) == str(path) and path.is_relative_to("/folder") and path != Path("/folder")


async def test_a_failed_put_leaves_nothing_behind(tmp_path: Path) -> None:
    blobs = Blobs(f"file:{tmp_path}/blobs")
    await blobs.put("a/b", b"1")
    with pytest.raises(BlobError, match="failed"):
        await blobs.put("a", b"2")  # a folder is there
    left = sorted(os.path.relpath(entry, tmp_path) for entry in tmp_path.rglob("*"))
    assert left == ["blobs", "blobs/.incoming", "blobs/a", "blobs/a/b"]


@pytest.mark.sockets
async def test_keys_are_stored_below_the_prefix_of_the_url(monkeypatch: pytest.MonkeyPatch) -> None:
    with running_object_store() as (environment, objects):
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        await Blobs("s3://bucket/some/prefix").put("media/a", b"1")
        assert objects == {"some/prefix/media/a": b"1"}


@pytest.mark.sockets
async def test_an_unreachable_store_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    with running_object_store() as (environment, _):
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
    blobs = Blobs("s3://bucket")
    with pytest.raises(BlobError, match="blob storage failed"):
        await blobs.get("a")


async def test_many_blobs_can_be_put_at_once(blobs: Blobs) -> None:
    async def put_and_get(number: int) -> None:
        await blobs.put(f"n/{number}", str(number).encode())
        assert await blobs.get(f"n/{number}") == str(number).encode()

    async with trio.open_nursery() as nursery:
        for number in range(50):
            nursery.start_soon(put_and_get, number)


def test_inline_works_under_a_virtual_clock(tmp_path: Path) -> None:
    async def main() -> None:
        blobs = Blobs(f"file:{tmp_path}", inline=True)
        with trio.fail_after(0.001):
            await blobs.put("a", b"x" * 1000)
            assert await read_all(blobs.stream("a")) == b"x" * 1000

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))


def test_nothing_is_created_before_it_is_needed(tmp_path: Path) -> None:
    Blobs(f"file:{tmp_path}/blobs")
    assert list(tmp_path.iterdir()) == []
