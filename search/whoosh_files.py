"""The one place that imports Whoosh: a dictionary of terms and their postings, in two files.

Whoosh 2.7.4 was written for older Pythons, whose compilers did not warn of its code. These warnings would reach the
user, so they are silenced here.

We use Whoosh's codec (blocks of postings with skipping, a sorted dictionary) and not its writers and searchers: these
analyse, score and collect whole result sets, which takes a hundred times longer than stopping at the first page.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from homeserver.search.postings import Of

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from whoosh.codec.whoosh3 import W3Codec, W3Segment
    from whoosh.fields import FieldType
    from whoosh.filedb.filestore import FileStorage
    from whoosh.formats import Existence
    from whoosh.reading import TermNotFound

_FIELD = "text"
_NAME = "terms"
FILES = (f"{_NAME}_0.trm", f"{_NAME}_0.pst")


class TermPostings(NamedTuple):
    """A term, and its documents, ascending, each with the frequency of the term."""

    term: str
    postings: Iterable[tuple[int, int]]


class _Field(FieldType):  # type: ignore[misc]
    """Terms without positions, in UTF-8."""

    def __init__(self) -> None:
        self.format = Existence()


def _segment(codec: W3Codec) -> W3Segment:
    return W3Segment(codec, _NAME, segid="0")


def write_terms(folder: Path, terms: Iterable[TermPostings]) -> None:
    """Writes the files. The terms are sorted by their UTF-8."""
    codec = W3Codec()
    field = _Field()
    writer = codec.field_writer(FileStorage(str(folder)), _segment(codec))
    writer.start_field(_FIELD, field)
    for term, postings in terms:
        writer.start_term(term.encode())
        for document, frequency in postings:
            writer.add(document, frequency, b"", None)
        writer.finish_term()
    writer.finish_field()
    writer.close()


class Terms:
    """Reads the files."""

    def __init__(self, folder: Path) -> None:
        codec = W3Codec()
        self._format = Existence()
        self._reader: Any = codec.terms_reader(FileStorage(str(folder)), _segment(codec))

    def find(self, term: str) -> Of | None:
        """Returns the postings of a term, None if no document has it."""
        text = term.encode()
        try:
            documents = self._reader.doc_frequency(_FIELD, text)
            return Of(self._reader.matcher(_FIELD, text, self._format), documents)
        except (TermNotFound, KeyError):
            return None

    def list_from(self, prefix: str, limit: int) -> list[str]:
        """Returns the first `limit` terms that begin with the prefix."""
        start = prefix.encode()
        found: list[str] = []
        for _, text in self._reader.terms_from(_FIELD, start):
            if len(found) == limit or not text.startswith(start):
                break
            found.append(text.decode())
        return found

    def __iter__(self) -> Iterator[bytes]:
        """Yields all terms, sorted."""
        for _, text in self._reader.terms():
            yield text

    def read(self, text: bytes) -> list[tuple[int, int]]:
        """Returns all postings of a term."""
        matcher = self._reader.matcher(_FIELD, text, self._format)
        found: list[tuple[int, int]] = []
        while matcher.is_active():
            found.append((matcher.id(), int(matcher.weight())))
            matcher.next()
        return found

    def close(self) -> None:
        """Closes the files."""
        self._reader.close()
