"""The one place that imports Whoosh: a dictionary of terms and their postings, in two files.

Whoosh 2.7.4 was written for older Pythons, whose compilers did not warn of its code. These warnings would reach the
user, so they are silenced here.

We use Whoosh's codec, with lists of postings of our own (`postings.py`), which codecs may bring. Whoosh stores a
hundred bytes for a term that occurs once, as most do, and reads lists one posting at a time. Its writers and searchers
are not used: they analyse, score and collect whole result sets, which takes a hundred times longer than stopping at the
first page.

The dictionary has, of each term, the number of documents and the postings, or where these are in the other file if they
are long.
"""

from __future__ import annotations

import struct
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from homeserver.search.postings import Postings, encode
from homeserver.search.sealed_files import PageReader, Pages, PageWriter

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from whoosh.codec.whoosh3 import W3Codec, W3FieldWriter, W3Segment, W3TermsReader
    from whoosh.fields import FieldType
    from whoosh.filedb.filestore import Storage
    from whoosh.filedb.structfile import StructFile
    from whoosh.formats import Existence

_FIELD = "text"
_NAME = "terms"
FILES = (f"{_NAME}_0.trm", f"{_NAME}_0.pst")
_INLINE_BYTES_MAX = 64  # longer lists are in the other file
_COUNT = struct.Struct("<I")
_EXTENT = struct.Struct("<IQI")
_ELSEWHERE = 1 << 31  # added to the number of documents if the list is in the other file


class TermPostings(NamedTuple):
    """A term in UTF-8, its documents, ascending, and how often those have it that do not have it once."""

    term: bytes
    documents: Sequence[int]
    repeated: Mapping[int, int]


class _Field(FieldType):  # type: ignore[misc]
    """Terms without positions, in UTF-8."""

    def __init__(self) -> None:
        self.format = Existence()


class _File(StructFile):  # type: ignore[misc]
    """A file of pages, for reading."""

    def __init__(self, reader: PageReader, name: str) -> None:
        super().__init__(reader, name=name)
        self.get = reader.get


class _Files(Storage):  # type: ignore[misc]
    """A folder whose files are sealed, if there is a key."""

    def __init__(self, folder: Path, key: bytes | None, pages: Pages) -> None:
        self._folder = folder
        self._key = key
        self._pages = pages

    def create_file(self, name: str, **_: Any) -> StructFile:
        return StructFile(PageWriter(self._folder / name, self._key), name=name)

    def open_file(self, name: str, **_: Any) -> _File:
        return _File(PageReader(self._folder / name, self._key, self._pages), name)

    def file_length(self, name: str) -> int:
        reader = PageReader(self._folder / name, self._key, self._pages)
        reader.close()
        return reader.size


class _Value:
    """What the dictionary has of a term, as Whoosh's writer wants it."""

    def __init__(self, value: bytes) -> None:
        self._value = value

    def to_bytes(self) -> bytes:
        return self._value


class _PostingsWriter:
    """Writes the postings of one term after the other, each at once."""

    def __init__(self, file: StructFile) -> None:
        self._file = file
        self.postings: TermPostings | None = None

    def start_postings(self, format_: object, terminfo: object) -> None:
        self.postings = None

    def finish_postings(self) -> _Value:
        assert self.postings is not None
        _, documents, repeated = self.postings
        data = encode(documents, repeated)
        if len(data) <= _INLINE_BYTES_MAX:
            return _Value(_COUNT.pack(len(documents)) + data)
        place = self._file.tell()
        self._file.write(data)
        return _Value(_EXTENT.pack(len(documents) | _ELSEWHERE, place, len(data)))


class _Codec(W3Codec):  # type: ignore[misc]
    def postings_writer(self, dbfile: StructFile, byteids: bool = False) -> _PostingsWriter:
        return _PostingsWriter(dbfile)


class _FieldWriter(W3FieldWriter):  # type: ignore[misc]
    def add_postings(self, postings: TermPostings) -> None:
        self.start_term(postings.term)
        self._postwriter.postings = postings
        self.finish_term()


class _TermsReader(W3TermsReader):  # type: ignore[misc]
    """Whoosh's reader of the dictionary, without its description of terms."""

    def find_value(self, term: bytes) -> bytes | None:
        key = self._keycoder(_FIELD, term)
        value: bytes | None = self._tindex.get(key)
        return value

    def list_values(self, start: bytes) -> Iterator[tuple[bytes, bytes]]:
        """Yields the terms ≥ start with their values."""
        skipped = len(self._keycoder(_FIELD, b""))
        for key, value in self._tindex.items_from(self._keycoder(_FIELD, start)):
            yield key[skipped:], value

    def read_postings(self, place: int, size: int, position: int, length: int) -> bytes:
        """Returns bytes of a list, up to its end if length < 0."""
        data: bytes = self._postfile.get(place + position, size - position if length < 0 else length)
        return data


def write_terms(folder: Path, key: bytes | None, terms: Iterable[TermPostings]) -> None:
    """Writes the files, sealed if there is a key. The terms are sorted. When it returns, they are on the disk."""
    codec = _Codec()
    segment = W3Segment(codec, _NAME, segid="0")
    writer = _FieldWriter(codec, _Files(folder, key, Pages()), segment)
    writer.start_field(_FIELD, _Field())
    for postings in terms:
        writer.add_postings(postings)
    writer.finish_field()
    writer.close()


class Terms:
    """Reads the files. key: with which they are sealed, None if they are not. Raises IndexDamaged, in each method."""

    def __init__(self, folder: Path, key: bytes | None, pages: Pages) -> None:
        files = _Files(folder, key, pages)
        dictionary = files.open_file(FILES[0])
        self._reader = _TermsReader(_Codec(), dictionary, dictionary.file.size, files.open_file(FILES[1]))

    def find(self, term: str) -> Postings | None:
        """Returns the postings of a term, None if no document has it."""
        value = self._reader.find_value(term.encode())
        return None if value is None else self._postings_of(value)

    def list_from(self, prefix: str, limit: int) -> list[Postings]:
        """Returns the postings of the first `limit` terms that begin with the prefix."""
        start = prefix.encode()
        found: list[Postings] = []
        for term, value in self._reader.list_values(start):
            if len(found) == limit or not term.startswith(start):
                break
            found.append(self._postings_of(value))
        return found

    def __iter__(self) -> Iterator[tuple[bytes, Postings]]:
        """Yields all terms, sorted."""
        for term, value in self._reader.list_values(b""):
            yield term, self._postings_of(value)

    def close(self) -> None:
        """Closes the files."""
        self._reader.close()

    def _postings_of(self, value: bytes) -> Postings:
        (documents,) = _COUNT.unpack_from(value)
        if documents & _ELSEWHERE:
            _, place, size = _EXTENT.unpack(value)
            return Postings(documents - _ELSEWHERE, partial(self._reader.read_postings, place, size))
        return Postings(documents, partial(_part_of, value))


def _part_of(value: bytes, position: int, length: int) -> bytes:
    start = _COUNT.size + position
    return value[start:] if length < 0 else value[start : start + length]
