"""A decoded block of the archive: the rows of its events, and what can be said of them at less cost."""

from __future__ import annotations

from binascii import a2b_base64
from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import accumulate, repeat
from typing import Any

import orjson

from homeserver.database import Row
from homeserver.federation.hashing import content_hash, event_id_from_hash, reference_hash
from homeserver.federation.room_versions import ROOM_VERSIONS
from homeserver.rooms.archive.format import NO_SHAPE, ORDERING_SHIFT, SPAN, Columns, fields_of
from homeserver.rooms.envelope import (
    Envelope,
    encode_envelope,
    event_id_of_key,
    event_key,
    restore,
    unpadded_base64,
)


class Block:
    """A decoded block. Threads share it: what it computes is the same for all of them.

    positions, orderings: of its events, ascending by ordering.
    """

    __slots__ = (
        "_auth_lists",
        "_columns",
        "_computed",
        "_contents",
        "_depths",
        "_event_ids",
        "_index_of",
        "_keys",
        "_signatures",
        "_times",
        "_version",
        "orderings",
        "positions",
        "size_bytes",
    )

    def __init__(self, columns: Columns, signatures: bytes) -> None:
        self._columns = columns
        self._version = ROOM_VERSIONS[columns.room_version]
        self.positions = list(accumulate(columns.positions))
        self.orderings = [
            (position << ORDERING_SHIFT) + offset
            for position, offset in zip(self.positions, columns.orderings, strict=True)
        ]
        self._times = list(accumulate(columns.times))
        self._depths = list(accumulate(columns.depths))
        self._index_of = {position: index for index, position in enumerate(self.positions)}
        self._auth_lists = [[columns.outside[-each][0] for each in cited] for cited in columns.auth_lists]
        self._keys = [columns.keys.get(index) for index in range(len(self.positions))]
        self._computed: dict[int, tuple[bytes, bytes | None]] = {}
        self._event_ids = {position: event_id_of_key(key) for position, key in columns.outside}
        for index, key in columns.keys.items():
            self._event_ids[self.positions[index]] = event_id_of_key(key)
        counts = iter(range(len(columns.signers)))
        self._signatures = [
            None if signer < 0 else (columns.key_ids[signer], _slice(signatures, next(counts)))
            for signer in columns.signers
        ]
        self._contents = _join_contents(columns)
        lengths = {
            len(each)
            for each in (
                self.positions, columns.orderings, columns.types, columns.senders, self._times, self._depths,
                columns.state_before, columns.prev_events, columns.auth_events, columns.signers, self._contents,
            )
        }  # fmt: skip
        if len(lengths) != 1 or not self.positions:
            raise ValueError("its columns have different lengths")
        # Each event is some objects of Python besides what is counted: measured, not exact.
        self.size_bytes = sum(map(len, self._contents)) + len(signatures) + 700 * len(self.positions)

    def __len__(self) -> int:
        return len(self.positions)

    @property
    def room_id(self) -> str:
        """The room of all events of the block."""
        return self._columns.room_id

    def find_index(self, position: int) -> int | None:
        """Returns the number of the event at a position, None if it is not in this block."""
        return self._index_of.get(position)

    def timestamp(self, index: int) -> int:
        """Returns the `origin_server_ts` of an event."""
        return self._times[index]

    def type_nid(self, index: int) -> int:
        """Returns the interned type of an event."""
        return self._columns.types[index]

    def sender_nid(self, index: int) -> int:
        """Returns the interned sender of an event."""
        return self._columns.senders[index]

    def content(self, index: int) -> bytes:
        """Returns the content of an event as JSON."""
        return self._contents[index]

    def key(self, index: int) -> bytes:
        """Returns the event key of an event."""
        key = self._keys[index]
        return self._compute(index)[0] if key is None else key

    def row(self, index: int) -> Row:
        """Returns an event as a row of `events`; its content is plain JSON."""
        columns = self._columns
        key, sha256 = self._compute(index)
        packed = self._envelope(index)
        packed.sha256, packed.signature = sha256, self._signatures[index]
        return (
            self.positions[index],
            key,
            columns.room_nid,
            self.orderings[index],
            columns.types[index],
            columns.state_keys.get(index),
            columns.senders[index],
            self._times[index],
            0,
            columns.redacted_by.get(index),
            columns.roots[columns.state_before[index]],
            columns.devices.get(index),
            columns.txns.get(index),
            encode_envelope(packed),
            self._contents[index],
        )

    def _compute(self, wanted: int) -> tuple[bytes, bytes | None]:
        """Returns the event key of an event and its `hashes.sha256`; the first time computes those of its span."""
        computed = self._computed.get(wanted)
        if computed is not None:
            return computed
        start = wanted - wanted % SPAN
        for index in range(start, min(start + SPAN, len(self))):
            fields = self._fields(index)
            pdu = restore(self._envelope(index), fields, self._event_ids)
            if index in self._columns.hashes:
                sha256 = self._columns.hashes[index]
            else:
                hashed = content_hash(pdu, self._version, is_checked=True)
                pdu["hashes"] = {"sha256": hashed}
                sha256 = a2b_base64(hashed + "=")
            key = self._keys[index]
            if key is None:
                if index in self._columns.hashes and sha256 is not None:
                    pdu["hashes"] = {"sha256": unpadded_base64(sha256)}
                digest = reference_hash(pdu, self._version, is_checked=True)
                event_id = event_id_from_hash(digest, self._version)
                key = digest if self._version.event_id_urlsafe else event_key(event_id)
                self._event_ids[self.positions[index]] = event_id
            self._computed[index] = (key, sha256)
        return self._computed[wanted]

    def _envelope(self, index: int) -> Envelope:
        """Returns the envelope without hash and signature."""
        columns = self._columns
        prev: list[int | bytes] | None
        auth: list[int | bytes] | None
        if index in columns.unknown:
            prev, auth = columns.unknown[index]
        else:
            numbers, listed = columns.prev_events[index], columns.auth_events[index]
            prev = None if numbers is None else [self._cited(index, number) for number in numbers]
            auth = None if listed is None else [*self._auth_lists[listed]]
        rest, irregular = columns.rest.get(index, {}), columns.irregular.get(index)
        return Envelope(self._depths[index], prev, auth, None, None, rest, irregular)

    def _cited(self, index: int, number: int) -> int:
        return self.positions[index - number] if number > 0 else self._columns.outside[-number][0]

    def _fields(self, index: int) -> dict[str, Any]:
        columns = self._columns
        key = self._keys[index]
        return fields_of(
            self._version,
            columns.room_id,
            columns.names[columns.types[index]],
            columns.names[columns.senders[index]],
            None if index not in columns.state_keys else columns.names[columns.state_keys[index]],
            self._times[index],
            self._contents[index],
            None if self._version.event_id_is_reference_hash or key is None else event_id_of_key(key),
        )


def _join_contents(columns: Columns) -> list[bytes]:
    texts = iter(columns.values)
    counts = Counter(columns.shape_of)
    rows: list[Iterator[bytes]] = []
    for number, keys in enumerate(columns.shapes):
        split = [next(texts).split(b"\n") for _ in keys]
        parts = [part for key in keys for part in (b"," + orjson.dumps(key) + b":",)]
        if any(len(values) != counts[number] for values in split):
            raise ValueError("a column of contents has another length")
        if not keys:
            rows.append(repeat(b"{}", counts[number]))
            continue
        parts[0] = b"{" + parts[0][1:]
        pieces: list[Iterable[bytes]] = []
        for part, values in zip(parts, split, strict=True):
            pieces += (repeat(part), values)
        rows.append(map(b"".join, zip(*pieces, repeat(b"}"))))
    shapeless = iter(columns.shapeless)
    return [next(shapeless if shape == NO_SHAPE else rows[shape]) for shape in columns.shape_of]


def _slice(signatures: bytes, number: int) -> bytes:
    signature = signatures[64 * number : 64 * number + 64]
    if len(signature) != 64:
        raise ValueError("a signature is missing")
    return signature
