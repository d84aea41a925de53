"""Postings: which documents of a slice have a term, and how often. Encoded, and read in part.

Theory of operation. The documents of a term are ascending numbers. They are stored in blocks of BLOCK_DOCUMENTS: the
first number, and the distances between the others in as many bytes as the largest needs. If terms are repeated in
documents, the block also has which of its documents these are. A list of several blocks begins with a table of the last
document and the end of each block, so that a search reads only the blocks that it needs.

What is searched for is put together from such lists: `AllOf` are documents with several terms, `AnyOf` those with one
of several sequences, `Prefix` those with any term of a prefix. All of them have

- `documents`: how many there are at most, so that the shortest list can lead;
- `between(low, high)`: the documents low ≤ document < high, ascending;
- `having(documents)`: those of some ascending documents that are in the list.

Whole windows of documents at a time are compared by operations on sets and lists, which take a hundredth of the time
that Python needs to walk along lists.
"""

from __future__ import annotations

import sys
from array import array
from bisect import bisect_left
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import accumulate, chain, pairwise
from typing import Literal, Protocol

BLOCK_DOCUMENTS = 256
_CODES: Mapping[int, Literal["B", "H", "I"]] = {1: "B", 2: "H", 4: "I"}
_REPEATED = 0x80  # in the first byte of a block: it has frequencies; the rest is the width of distances
_HEAD_BYTES = 5

Read = Callable[[int, int], bytes]


class Documents(Protocol):
    """A list of documents, see above."""

    @property
    def documents(self) -> int:
        """How many there are at most."""
        ...

    def between(self, low: int, high: int) -> list[int]:
        """Returns the documents low ≤ document < high."""
        ...

    def having(self, documents: Sequence[int]) -> Iterable[int]:
        """Returns those of some documents that are in the list, in any order."""
        ...

    def frequencies(self, documents: Sequence[int]) -> dict[int, float]:
        """Returns those of some documents that are in the list, with what they count for in the rank."""
        ...


def encode(documents: Sequence[int], repeated: Mapping[int, int]) -> bytes:
    """Returns a list of ascending documents. repeated: the frequencies that are not 1."""
    blocks = [
        _encode_block(documents[start : start + BLOCK_DOCUMENTS], repeated)
        for start in range(0, len(documents), BLOCK_DOCUMENTS)
    ]
    if len(blocks) == 1:
        return blocks[0]
    lasts = [*documents[BLOCK_DOCUMENTS - 1 :: BLOCK_DOCUMENTS]]
    if len(lasts) < len(blocks):
        lasts.append(documents[-1])
    return b"".join((_bytes_of("I", lasts), _bytes_of("I", list(accumulate(map(len, blocks)))), *blocks))


def _encode_block(documents: Sequence[int], repeated: Mapping[int, int]) -> bytes:
    first = documents[0]
    distances = [after - before for before, after in pairwise(documents)]
    largest = max(distances, default=0)
    width = 1 if largest < 1 << 8 else 2 if largest < 1 << 16 else 4
    counts = b""
    if repeated:
        often = [at for at, document in enumerate(documents) if document in repeated]
        if often:
            counts = bytes((len(often) - 1, *often, *(repeated[documents[at]] for at in often)))
    head = bytes((width | (_REPEATED if counts else 0),)) + first.to_bytes(4, "little")
    return head + _bytes_of(_CODES[width], distances) + counts


class Postings:
    """The documents of a term. read(position, length): returns bytes of the encoded list."""

    def __init__(self, documents: int, read: Read) -> None:
        self.documents = documents
        self._read = read
        self._blocks = -(-documents // BLOCK_DOCUMENTS)
        self._table_bytes = 0 if self._blocks == 1 else 8 * self._blocks
        self._lasts: Sequence[int] = ()
        self._ends: Sequence[int] = ()

    def between(self, low: int, high: int) -> list[int]:
        """Returns the documents low ≤ document < high."""
        first, end = self._find_block(low), min(self._find_block(high - 1) + 1, self._blocks)
        if first >= end:
            return []
        found = [*chain.from_iterable(map(self._ids_of, *self._read_blocks(first, end)))]
        start = bisect_left(found, low)
        return found[start : bisect_left(found, high, start)]

    def having(self, documents: Sequence[int]) -> Iterable[int]:
        """Returns those of some documents that are in the list, in any order."""
        if not documents:
            return ()
        if len(documents) * BLOCK_DOCUMENTS >= self.documents or self._blocks == 1:
            return {*documents}.intersection(self.between(documents[0], documents[-1] + 1))
        by_block: dict[int, set[int]] = {}
        for document in documents:
            by_block.setdefault(self._find_block(document), set()).add(document)
        return chain.from_iterable(
            wanted.intersection(map_)
            for block, wanted in by_block.items()
            if block < self._blocks
            for map_ in map(self._ids_of, *self._read_blocks(block, block + 1))
        )

    def frequencies(self, documents: Sequence[int]) -> dict[int, float]:
        """Returns how often those of some documents that are in the list have the term."""
        if not documents:
            return {}
        found: dict[int, float] = dict.fromkeys(self.having(documents), 1.0)
        first, end = self._find_block(documents[0]), min(self._find_block(documents[-1]) + 1, self._blocks)
        for block, data in zip(*self._read_blocks(first, end), strict=True):
            for document, frequency in self._repeated_in(block, data):
                if document in found:
                    found[document] = frequency
        return found

    def read_all(self) -> tuple[list[int], dict[int, int]]:
        """Returns all documents, and the frequencies that are not 1."""
        numbers, blocks = self._read_blocks(0, self._blocks)
        repeated = chain.from_iterable(map(self._repeated_in, numbers, blocks))
        return [*chain.from_iterable(map(self._ids_of, numbers, blocks))], dict(repeated)

    def _find_block(self, document: int) -> int:
        """Returns the first block that may have a document or a later one; the number of blocks if there is none."""
        if not self._table_bytes:
            return 0
        if not self._lasts:
            table = _array_of("I", self._read(0, self._table_bytes))
            self._lasts, self._ends = table[: self._blocks], table[self._blocks :]
        return bisect_left(self._lasts, document)

    def _read_blocks(self, first: int, end: int) -> tuple[range, list[bytes]]:
        """Returns the numbers of some blocks, and their bytes."""
        if not self._table_bytes:
            return range(1), [self._read(0, -1)]
        self._find_block(0)
        numbers = range(first, end)
        begin = self._ends[first - 1] if first else 0
        data = self._read(self._table_bytes + begin, self._ends[end - 1] - begin)
        starts = [0, *(each - begin for each in self._ends[first:end])]
        return numbers, [data[starts[at] : starts[at + 1]] for at in range(len(numbers))]

    def _length_of(self, block: int) -> int:
        return min(BLOCK_DOCUMENTS, self.documents - block * BLOCK_DOCUMENTS)

    def _ids_of(self, block: int, data: bytes) -> Iterable[int]:
        width = data[0] & ~_REPEATED
        end = _HEAD_BYTES + (self._length_of(block) - 1) * width
        distances = data[_HEAD_BYTES:end]
        return accumulate(
            distances if width == 1 else _array_of(_CODES[width], distances),
            initial=int.from_bytes(data[1:_HEAD_BYTES], "little"),
        )

    def _repeated_in(self, block: int, data: bytes) -> Iterable[tuple[int, int]]:
        if not data[0] & _REPEATED:
            return ()
        start = _HEAD_BYTES + (self._length_of(block) - 1) * (data[0] & ~_REPEATED)
        count = data[start] + 1
        ids = [*self._ids_of(block, data)]
        often = data[start + 1 : start + 1 + count]
        return zip(map(ids.__getitem__, often), data[start + 1 + count :], strict=True)


class Prefix:
    """The documents with any of the terms of a prefix. How often they have them does not count."""

    def __init__(self, terms: Sequence[Postings]) -> None:
        self.documents = sum(each.documents for each in terms)
        self._terms = terms

    def between(self, low: int, high: int) -> list[int]:
        """Returns the documents low ≤ document < high."""
        return sorted({*chain.from_iterable(each.between(low, high) for each in self._terms)})

    def having(self, documents: Sequence[int]) -> Iterable[int]:
        """Returns those of some documents that are in the list, in any order."""
        return {*chain.from_iterable(each.having(documents) for each in self._terms)}

    def frequencies(self, documents: Sequence[int]) -> dict[int, float]:
        """Returns 1 for those of some documents that are in the list."""
        return dict.fromkeys(self.having(documents), 1.0)


class AllOf:
    """The documents that have all of some terms. weight: of an occurrence, for the rank."""

    def __init__(self, terms: Sequence[Documents], weight: float) -> None:
        self._terms = sorted(terms, key=lambda each: each.documents)
        self._weight = weight
        self.documents = self._terms[0].documents

    def between(self, low: int, high: int) -> list[int]:
        """Returns the documents low ≤ document < high."""
        return all_of(self._terms[0].between(low, high), self._terms[1:])

    def having(self, documents: Sequence[int]) -> Iterable[int]:
        """Returns those of some documents that are in the list, in any order."""
        return self._terms[0].having(documents) if len(self._terms) == 1 else all_of(documents, self._terms)

    def frequencies(self, documents: Sequence[int]) -> dict[int, float]:
        """Returns how often each of some documents can have the sequence at most, if it can."""
        terms = [each.frequencies(documents) for each in self._terms]
        first, weight = terms[0], self._weight
        if len(terms) == 1:
            return first if weight == 1.0 else {document: weight * count for document, count in first.items()}
        return {
            document: weight * min(each[document] for each in terms)
            for document in first
            if all(document in each for each in terms)
        }


class AnyOf:
    """The documents that have one of some sequences."""

    def __init__(self, sequences: Sequence[Documents]) -> None:
        self.documents = sum(each.documents for each in sequences)
        self._sequences = sequences

    def between(self, low: int, high: int) -> list[int]:
        """Returns the documents low ≤ document < high."""
        if len(self._sequences) == 1:
            return self._sequences[0].between(low, high)
        return sorted({*chain.from_iterable(each.between(low, high) for each in self._sequences)})

    def having(self, documents: Sequence[int]) -> Iterable[int]:
        """Returns those of some documents that are in the list, in any order."""
        return {*chain.from_iterable(each.having(documents) for each in self._sequences)}

    def frequencies(self, documents: Sequence[int]) -> dict[int, float]:
        """Returns the largest frequency of a sequence in each of some documents that have one."""
        found: dict[int, float] = {}
        for each in self._sequences:
            for document, count in each.frequencies(documents).items():
                if count > found.get(document, 0.0):
                    found[document] = count
        return found


class Listed:
    """Documents that are in memory, ascending."""

    def __init__(self, documents: Sequence[int]) -> None:
        self.documents = len(documents)
        self._list = documents

    def between(self, low: int, high: int) -> list[int]:
        """Returns the documents low ≤ document < high."""
        start = bisect_left(self._list, low)
        return [*self._list[start : bisect_left(self._list, high, start)]]

    def having(self, documents: Sequence[int]) -> Iterable[int]:
        """Returns those of some documents that are in the list, in any order."""
        return {*documents}.intersection(self.between(documents[0], documents[-1] + 1)) if documents else ()

    def frequencies(self, documents: Sequence[int]) -> dict[int, float]:
        """Returns 1 for those of some documents that are in the list."""
        return dict.fromkeys(self.having(documents), 1.0)


def all_of(documents: Sequence[int], lists: Iterable[Documents]) -> list[int]:
    """Returns those of some documents that are in all lists."""
    found = [*documents]
    for each in lists:
        if not found:
            break
        found = sorted(each.having(found))
    return found


def _bytes_of(code: Literal["B", "H", "I"], values: Sequence[int]) -> bytes:
    packed = array(code, values)
    if sys.byteorder == "big":
        packed.byteswap()
    return packed.tobytes()


def _array_of(code: Literal["B", "H", "I"], data: bytes) -> array[int]:
    values: array[int] = array(code)
    values.frombytes(data)
    if sys.byteorder == "big":
        values.byteswap()
    return values
