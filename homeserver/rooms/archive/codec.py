"""The format of an archived block: events of one room in columns, compressed together.

Theory of operation. A block has the rows of a room's events in the order of the timeline. What one event has in common
with its neighbours is stored once or as a difference: positions, times and depths as differences, states and auth
events as numbers of a table, contents by key, so that all texts lie together. Two things are not stored at all, because
they follow from the rest: `hashes.sha256` is the hash of the content, and the event ID is the hash of the event. The
encoder computes both, and stores those that do not follow: of redacted events, and of room versions whose
IDs are not hashes. What remains of a message is its signature, which no compression can shorten, and its text.

An event refers to its prev_events, so its ID follows from theirs. To compute a few IDs without computing all, a block
is divided into spans of `SPAN` events: the ID of an event that another span refers to is stored. A decoded `Block`
computes the IDs of a span when a row of it is first read.

`decode(encode(rows)) == rows` for every row, whatever its content; `homeserver/rooms/archiving.py` checks it for each
block before the rows leave the database.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import msgspec
import orjson

from homeserver.database import DatabaseDamaged, Row
from homeserver.database.compression import CorruptData, compress_large, decompress
from homeserver.federation.hashing import content_hash, event_id_of
from homeserver.federation.room_versions import RoomVersion
from homeserver.rooms.archive.block import Block
from homeserver.rooms.archive.format import (
    CONTENT,
    DEVICE,
    ENVELOPE,
    EVENT_ID,
    NO_SHAPE,
    ORDERING,
    ORDERING_SHIFT,
    POSITION,
    REDACTED_BY,
    SENDER,
    SPAN,
    STATE_BEFORE,
    STATE_KEY,
    TS,
    TXN,
    TYPE,
    Columns,
    fields_of,
)
from homeserver.rooms.envelope import Envelope, event_id_of_key, event_key, exact_bytes, restore, unpack

BLOCK_DATA_BYTES_MAX = 64 << 20  # what a block may decompress to; no more than 4 MiB of rows are put into one
_FORMAT = 1


class _File(msgspec.Struct, array_like=True):
    format: int
    columns: bytes
    signatures: bytes


_encode_columns = msgspec.msgpack.Encoder().encode
_decode_columns = msgspec.msgpack.Decoder(Columns).decode
_decode_file = msgspec.msgpack.Decoder(_File).decode
_decode_object = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode


class RoomOfBlock(msgspec.Struct, frozen=True):
    """The room of a block, and its version."""

    nid: int
    room_id: str
    version: RoomVersion


def encode(room: RoomOfBlock, rows: Sequence[Row], names: Mapping[int, str], event_keys: Mapping[int, bytes]) -> bytes:
    """Returns a block of these rows, which have their content as plain JSON, in the order of their orderings.

    names: of all strings that the rows refer to. event_keys: of all events that the rows refer to, by position.
    """
    encoder = _Encoder(room, rows, names, event_keys)
    for index in range(len(rows)):
        encoder.add(index)
    return encoder.finish()


def decode(data: bytes) -> Block:
    """Returns the block. Raises DatabaseDamaged if it is none."""
    try:
        file = _decode_file(data)
        if file.format != _FORMAT:
            raise DatabaseDamaged(
                f"A block of the archive has the format {file.format}, which this program cannot read."
            )
        return Block(_decode_columns(decompress(file.columns, BLOCK_DATA_BYTES_MAX)), file.signatures)
    except (msgspec.DecodeError, CorruptData, KeyError, IndexError, ValueError) as error:
        raise DatabaseDamaged(f"A block of the archive is damaged: {error}.") from error


class _Table(dict[Any, int]):
    """Numbers values in the order of their first use."""

    def number(self, value: Any) -> int:
        return self.setdefault(value, len(self))


class _Encoder:
    def __init__(
        self, room: RoomOfBlock, rows: Sequence[Row], names: Mapping[int, str], event_keys: Mapping[int, bytes]
    ) -> None:
        self.room = room
        self.rows = rows
        self.names = names
        self.index_of = {row[POSITION]: index for index, row in enumerate(rows)}
        self.event_ids = {position: event_id_of_key(key) for position, key in event_keys.items()}
        self.event_ids |= {row[POSITION]: event_id_of_key(bytes(row[EVENT_ID])) for row in rows}
        self.outside, self.roots, self.auth_lists = _Table(), _Table(), _Table()
        self.key_ids, self.shapes = _Table(), _Table()
        self.of_keys: dict[tuple[int, str], list[bytes]] = {}
        self.signatures: list[bytes] = []
        self.depth = 0
        deltas = [rows[0][POSITION], *(after[POSITION] - before[POSITION] for before, after in pairwise(rows))]
        times = [rows[0][TS], *(after[TS] - before[TS] for before, after in pairwise(rows))]
        self.columns = Columns(
            room.nid, room.room_id, room.version.id, {}, [], [], [], [], [],
            positions=deltas,
            orderings=[row[ORDERING] - (row[POSITION] << ORDERING_SHIFT) for row in rows],
            types=[row[TYPE] for row in rows],
            senders=[row[SENDER] for row in rows],
            times=times,
            depths=[], state_before=[], prev_events=[], auth_events=[], signers=[], shape_of=[], values=[],
            shapeless=[], keys={}, hashes={}, state_keys={}, redacted_by={}, devices={}, txns={}, rest={},
            irregular={}, unknown={},
        )  # fmt: skip

    def add(self, index: int) -> None:
        """Adds one row to all columns."""
        columns, row = self.columns, self.rows[index]
        packed = unpack(bytes(row[ENVELOPE]))
        columns.state_before.append(self.roots.number(bytes(row[STATE_BEFORE])))
        columns.depths.append(packed.depth - self.depth)
        self.depth = packed.depth
        for column, values in (
            (STATE_KEY, columns.state_keys),
            (REDACTED_BY, columns.redacted_by),
            (DEVICE, columns.devices),
            (TXN, columns.txns),
        ):
            if row[column] is not None:
                values[index] = row[column]
        self._add_references(index, packed)
        if packed.signature is None:
            columns.signers.append(-1)
        else:
            columns.signers.append(self.key_ids.number(packed.signature[0]))
            self.signatures.append(packed.signature[1])
        if packed.rest:
            columns.rest[index] = packed.rest
        if packed.irregular is not None:
            columns.irregular[index] = packed.irregular
        self._add_content(bytes(row[CONTENT]))
        self._add_hashes(index, packed)

    def _add_references(self, index: int, packed: Envelope) -> None:
        columns = self.columns
        prev, auth = packed.prev_events, packed.auth_events
        is_known = all(isinstance(each, int) for each in (*(prev or ()), *(auth or ())))
        if not is_known or (auth is not None and any(each in self.index_of for each in auth)):
            columns.unknown[index] = (prev, auth)
            for position in (*(prev or ()), *(auth or ())):
                if isinstance(position, int):
                    self._refer(index, position)
            prev = auth = None
        columns.prev_events.append(None if prev is None else [self._refer(index, each) for each in prev])
        columns.auth_events.append(
            None if auth is None else self.auth_lists.number(tuple(self._refer(index, each) for each in auth))
        )

    def _refer(self, index: int, position: int | bytes) -> int:
        assert isinstance(position, int)
        cited = self.index_of.get(position)
        if cited is None:
            return -self.outside.number(position)
        if cited >= index or cited // SPAN != index // SPAN:
            self.columns.keys[cited] = bytes(self.rows[cited][EVENT_ID])
        if cited >= index:  # a page of the past may have been stored in an odd order
            return -self.outside.number(position)
        return index - cited

    def _add_content(self, content: bytes) -> None:
        keys: list[str] | None = None
        try:
            values = _decode_object(content)
            if b"\n" not in content and _join(list(values), [bytes(value) for value in values.values()]) == content:
                keys = list(values)
        except msgspec.DecodeError:
            pass
        if keys is None:
            self.columns.shape_of.append(NO_SHAPE)
            self.columns.shapeless.append(content)
            return
        shape = self.shapes.number(tuple(keys))
        self.columns.shape_of.append(shape)
        for key, value in values.items():
            self.of_keys.setdefault((shape, key), []).append(bytes(value))

    def _add_hashes(self, index: int, packed: Envelope) -> None:
        columns, row, version = self.columns, self.rows[index], self.room.version
        key = bytes(row[EVENT_ID])
        fields = fields_of(
            version,
            self.room.room_id,
            self.names[row[TYPE]],
            self.names[row[SENDER]],
            None if row[STATE_KEY] is None else self.names[row[STATE_KEY]],
            row[TS],
            bytes(row[CONTENT]),
            None if version.event_id_is_reference_hash else event_id_of_key(key),
        )
        pdu = restore(packed, fields, self.event_ids)
        if packed.sha256 != exact_bytes(content_hash(pdu, version), 32):
            columns.hashes[index] = packed.sha256
        if not version.event_id_is_reference_hash or event_key(event_id_of(pdu, version)) != key:
            columns.keys[index] = key

    def finish(self) -> bytes:
        """Returns the block."""
        columns = self.columns
        used = {nid for row in self.rows for nid in (row[TYPE], row[SENDER], row[STATE_KEY]) if nid is not None}
        columns.names = {nid: self.names[nid] for nid in sorted(used)}
        columns.outside = [(position, event_key(self.event_ids[position])) for position in self.outside]
        columns.roots = list(self.roots)
        columns.auth_lists = [list(each) for each in self.auth_lists]
        columns.key_ids = list(self.key_ids)
        columns.shapes = [list(each) for each in self.shapes]
        columns.values = [b"\n".join(self.of_keys[number, key]) for keys, number in self.shapes.items() for key in keys]
        packed = compress_large(_encode_columns(columns))
        return _encode_columns(_File(_FORMAT, packed, b"".join(self.signatures)))


def _join(keys: Sequence[str], values: Sequence[bytes]) -> bytes:
    """Returns the object with these keys and encoded values, as canonical JSON has it."""
    return b"{" + b",".join([orjson.dumps(key) + b":" + value for key, value in zip(keys, values, strict=True)]) + b"}"
