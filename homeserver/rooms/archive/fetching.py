"""Gets blocks from the blob storage, for the reads and writes that need them, and checks them."""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import sha256

import trio

from homeserver.blobs import BlobDamaged, Blobs
from homeserver.database import DatabaseDamaged
from homeserver.process.sealing import SealBroken, SealingKey
from homeserver.process.workers import Workers
from homeserver.rooms.archive.block import Block
from homeserver.rooms.archive.blocks import BlockRow, GivenBlocks, given_block
from homeserver.rooms.archive.codec import decode

_AT_ONCE_MAX = 8  # blocks of one call that are fetched in parallel


async def fetch_blocks(
    blobs: Blobs, workers: Workers, wanted: Sequence[tuple[BlockRow, SealingKey | None]]
) -> GivenBlocks:
    """Returns the blocks as transactions are given them.

    Raises BlobError if the storage cannot be reached.
    """
    given: GivenBlocks = {}
    failures: list[Exception] = []
    limiter = trio.CapacityLimiter(_AT_ONCE_MAX)

    async def fetch(row: BlockRow, key: SealingKey | None) -> None:
        async with limiter:
            try:
                given.update(given_block(row, await fetch_block(blobs, workers, row, key)))
            except DatabaseDamaged as error:
                given.update(given_block(row, error))
            except Exception as error:  # whatever it is, the caller gets it, without the nursery's group around it
                failures.append(error)
                nursery.cancel_scope.cancel()

    async with trio.open_nursery() as nursery:
        for row, key in wanted:
            nursery.start_soon(fetch, row, key)
    for error in failures:
        raise error
    return given


async def fetch_block(blobs: Blobs, workers: Workers, row: BlockRow, key: SealingKey | None) -> Block:
    """Returns a block, opened with the key if it is sealed.

    Raises DatabaseDamaged if it is lost or damaged, BlobError if the storage cannot be reached.
    """
    try:
        data = await blobs.get(row.blob, expected_bytes=row.size_bytes)
    except KeyError:
        raise DatabaseDamaged(f"The archived block {row.blob} is lost.") from None
    except BlobDamaged as error:
        raise DatabaseDamaged(f"The archived block {row.blob} is damaged: {error}") from error
    return await workers.run(_open, data, row, key)


def _open(data: bytes, row: BlockRow, key: SealingKey | None) -> Block:
    if sha256(data).digest() != row.checksum:
        raise DatabaseDamaged(f"The archived block {row.blob} is damaged: its checksum is wrong.")
    try:
        return decode(data if key is None else key.open(sealed_where(row.blob), data))
    except SealBroken as error:
        raise DatabaseDamaged(f"The archived block {row.blob} is damaged: {error}.") from error


def sealed_where(blob: str) -> bytes:
    """Returns the place for which a block is sealed: a blob under another name does not open."""
    return b"archived block " + blob.encode()
