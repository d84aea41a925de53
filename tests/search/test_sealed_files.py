"""The files of an index are sealed if there is a key: a thief of the files learns no word."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from homeserver.search.documents import Deleted, Document, IndexDamaged, Wanted
from homeserver.search.index import Index, merge
from homeserver.search.postings import BLOCK_DOCUMENTS, Postings, encode
from homeserver.search.query import parse_query
from homeserver.search.sealed_files import PAGE_BYTES, TAG_BYTES, PageReader, Pages, PageWriter
from homeserver.search.service import Service
from homeserver.search.words import Stemmers

KEY, OTHER_KEY = bytes(range(32)), bytes(32)
STEMMERS = Stemmers()
TEXT = "nougat marzipan praline"


def write(path: Path, data: bytes, key: bytes | None) -> None:
    writer = PageWriter(path, key)
    for start in range(0, len(data), 1000):
        assert writer.tell() == start
        writer.write(data[start : start + 1000])
    writer.close()


def words_in(folder: Path) -> set[bytes]:
    data = b"".join(path.read_bytes() for path in folder.rglob("*") if path.is_file())
    return {word for word in TEXT.encode().split() if word in data}


def find(index: Index, text: str) -> list[int]:
    return [hit.number for hit in index.search(Wanted(parse_query(text, STEMMERS)), 60.0).hits]


@pytest.mark.parametrize("key", [None, KEY])
@pytest.mark.parametrize("size", [0, 1, PAGE_BYTES - 1, PAGE_BYTES, PAGE_BYTES + 1, 3 * PAGE_BYTES + 10])
def test_a_file_is_read_as_it_was_written(tmp_path: Path, key: bytes | None, size: int) -> None:
    data = bytes(number * number % 251 for number in range(size))
    write(tmp_path / "file", data, key)
    reader = PageReader(tmp_path / "file", key, Pages())
    assert reader.size == size and reader.read() == data
    for start, length in ((0, 10), (PAGE_BYTES - 5, 10), (PAGE_BYTES, PAGE_BYTES), (10, 5 * PAGE_BYTES)):
        assert reader.get(start, length) == data[start : start + length]
    reader.close()
    assert key is None or not data[:20] or data[:20] not in (tmp_path / "file").read_bytes()


@pytest.mark.parametrize("what", ["bit", "swapped", "name", "key"])
def test_a_page_that_is_not_what_was_sealed_there_is_damage(tmp_path: Path, what: str) -> None:
    path = tmp_path / "file"
    write(path, bytes(2 * PAGE_BYTES), KEY)
    stored = path.read_bytes()
    page = PAGE_BYTES + TAG_BYTES
    if what == "bit":
        path.write_bytes(bytes([stored[0] ^ 1]) + stored[1:])
    elif what == "swapped":
        path.write_bytes(stored[page:] + stored[:page])
    elif what == "name":
        path = path.rename(tmp_path / "another")
    reader = PageReader(path, OTHER_KEY if what == "key" else KEY, Pages())
    with pytest.raises(IndexDamaged, match="seal"):
        reader.get(0, 1)
    reader.close()


def test_an_index_with_a_key_has_no_word_in_its_files(tmp_path: Path) -> None:
    index = Index(tmp_path / "index", STEMMERS, KEY)
    for number in (1, 2):
        index.add([Document(number, number, 1, 1, 1, TEXT)], Deleted(), number)
        index.store()
    assert find(index, "marzipan") == [2, 1] and words_in(tmp_path) == set()
    names = index.slice_names()
    index.adopt(names, merge(index.folder, names, KEY))
    assert find(index, "marzipan") == [2, 1] and words_in(tmp_path) == set()
    index.close()


def test_slices_from_before_there_was_a_key_are_sealed_one_by_one(tmp_path: Path) -> None:
    index = Index(tmp_path / "index", STEMMERS)
    for number in (1, 2):
        index.add([Document(number, number, 1, 1, 1, TEXT)], Deleted(), number)
        index.store()
    index.close()
    assert words_in(tmp_path)
    index = Index(tmp_path / "index", STEMMERS, KEY)
    assert find(index, "marzipan") == [2, 1]
    while names := index.plan_merge():
        assert len(names) == 1
        index.adopt(names, merge(index.folder, names, KEY))
    assert find(index, "marzipan") == [2, 1] and words_in(tmp_path) == set()
    index.close()


@pytest.mark.parametrize("key", [None, OTHER_KEY])
def test_an_index_without_its_key_is_reset_and_says_why(tmp_path: Path, key: bytes | None) -> None:
    document = [1, 1, 1, 1, 1, TEXT]
    service = Service(str(tmp_path))
    service.unlock(KEY)
    service.begin("h")
    assert service.add(0, 1, [document], [[], [], []])
    service.close()
    service = Service(str(tmp_path))
    service.unlock(key)
    assert service.search("marzipan", {}, 60.0) is None
    _, position, _, damage = service.begin("h")
    assert position == 0 and "seal" in damage
    assert service.add(0, 1, [document], [[], [], []])
    found = service.search("marzipan", {}, 60.0)
    assert found is not None and [hit[2] for hit in found[0]] == [1]
    service.close()


@settings(max_examples=100, deadline=None)
@given(
    documents=st.sets(st.integers(0, 70_000), min_size=1, max_size=3 * BLOCK_DOCUMENTS),
    often=st.sets(st.integers(0, 3 * BLOCK_DOCUMENTS)),
    low=st.integers(0, 70_000),
    span=st.integers(1, 70_000),
    asked=st.sets(st.integers(0, 70_000), max_size=20),
)
def test_postings_are_read_as_they_were_written(
    documents: set[int], often: set[int], low: int, span: int, asked: set[int]
) -> None:
    ascending = sorted(documents)
    repeated = {each: 2 + at % 250 for at, each in enumerate(ascending) if at in often}
    data = encode(ascending, repeated)

    def read(position: int, length: int) -> bytes:
        return data[position:] if length < 0 else data[position : position + length]

    postings = Postings(len(ascending), read)
    assert postings.read_all() == (ascending, repeated)
    assert postings.between(low, low + span) == [each for each in ascending if low <= each < low + span]
    mixed = sorted(asked | set(ascending[::7]))
    assert sorted(postings.having(mixed)) == sorted(documents.intersection(mixed))
    assert postings.frequencies(mixed) == {each: float(repeated.get(each, 1)) for each in documents.intersection(mixed)}
