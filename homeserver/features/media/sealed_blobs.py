"""Sealed blobs: files and thumbnails in the blob storage, sealed in chunks, so that any part of one can be read.

Theory of operation. A file has a key of its own (`rooms/keys.py`), because it arrives before anybody knows in which
conversations it will be shown. Its thumbnails are sealed with the same key. The number of the key is part of the blob's
name, so nothing else has to be known to read it. Each blob has a subkey, derived from the key and its name, which is
never used again, so the numbers of its chunks are nonces that are never used twice:

    nonce          number of the chunk, 23 bytes | 1 for the last chunk, 0 for all others
    sealed chunk   64 KiB of content, less in the last one, and a tag of 16 bytes

Chunks cannot be swapped, left out, or moved to another blob, and the end cannot be cut off. A range is read from the
chunks that it touches. Blobs without a number in their name are not sealed.
"""

from __future__ import annotations

import os
import re
from collections.abc import AsyncIterator, Mapping
from contextlib import aclosing
from hashlib import blake2b
from pathlib import Path

from nacl.bindings import crypto_aead_xchacha20poly1305_ietf_decrypt, crypto_aead_xchacha20poly1305_ietf_encrypt
from nacl.exceptions import CryptoError

from homeserver.blobs import BlobDamaged
from homeserver.database import DatabaseDamaged, Transaction
from homeserver.errors import not_found
from homeserver.process.sealing import SealBroken, SealingKey
from homeserver.resources import Resources
from homeserver.rooms.keys import create_key, find_key

CHUNK_BYTES = 64 << 10
_TAG_BYTES = 16
_SEALED_CHUNK_BYTES = CHUNK_BYTES + _TAG_BYTES
_SEALED_NAME = re.compile(r".*-k([0-9a-f]{1,8})", re.ASCII)
SEALED_PATTERN = "%-k%"
"""Matches the names of sealed blobs, in SQL."""


async def new_key(hs: Resources) -> int | None:
    """Returns the number of a new key for a file, None if new files are not to be sealed."""
    if not hs.config.at_rest.media:
        return None
    return (await hs.database.write(create_key, None)).number


def number_of(blob_key: str) -> int | None:
    """Returns the number of the key that seals a blob, None if it is not sealed."""
    match = _SEALED_NAME.fullmatch(blob_key)
    return None if match is None else int(match[1], 16)


def suffix_of(number: int | None) -> str:
    """Returns the end of the name of a blob that is sealed with the key of this number."""
    return "" if number is None else f"-k{number:x}"


def stored_bytes(blob_key: str, size_bytes: int) -> int:
    """Returns how long a blob with this much content is in the storage."""
    return size_bytes if number_of(blob_key) is None else size_bytes + _TAG_BYTES * _count_chunks(size_bytes)


def seal_small(tx: Transaction, blob_key: str, content: bytes) -> bytes:
    """Returns content that is stored in a row instead of a blob of this name, sealed if the name says so.

    Raises M_NOT_FOUND if the key was forgotten: the file has just been deleted.
    """
    number = number_of(blob_key)
    if number is None:
        return content
    key = find_key(tx, number, None)
    if key is None:
        raise not_found("This media has been deleted.")
    return key.seal(blob_key.encode("ascii"), content)


def open_small(tx: Transaction, blob_key: str, data: bytes) -> bytes:
    """Returns what `seal_small` got. Raises DatabaseDamaged, and M_NOT_FOUND if the key was forgotten."""
    number = number_of(blob_key)
    if number is None:
        return bytes(data)
    key = find_key(tx, number, None)
    if key is None:
        raise not_found("This media has been deleted.")
    try:
        return key.open(blob_key.encode("ascii"), bytes(data))
    except SealBroken as error:
        raise DatabaseDamaged(f"The thumbnail {blob_key} is damaged: {error}.") from None


async def put(hs: Resources, blob_key: str, data: bytes | Path, headers: Mapping[str, str]) -> None:
    """Stores content, sealed if the blob's name says so. Raises what `Blobs.put` raises."""
    secret = await _find_secret(hs, blob_key)
    if secret is None:
        await hs.blobs.put(blob_key, data, headers)
    elif isinstance(data, bytes):
        await hs.blobs.put(blob_key, b"".join(seal_content(secret, data)), headers)
    else:
        sealed = data.with_name(f"{data.name}.sealed")
        try:
            try:
                await hs.workers.run(_seal_file, secret, data, sealed)
            except OSError as error:
                raise hs.blobs.failure(error) from error
            await hs.blobs.put(blob_key, sealed, headers)
        finally:
            await hs.workers.run(_remove, sealed)


async def get(hs: Resources, blob_key: str, size_bytes: int) -> bytes:
    """Returns the whole content. Raises KeyError if there is none, or its key was forgotten; BlobDamaged."""
    secret = await _find_secret(hs, blob_key)
    data = await hs.blobs.get(blob_key, expected_bytes=stored_bytes(blob_key, size_bytes))
    if secret is None:
        return data
    chunks = [data[start : start + _SEALED_CHUNK_BYTES] for start in range(0, len(data), _SEALED_CHUNK_BYTES)]
    return b"".join(_open(hs, blob_key, secret, index, len(chunks), chunk) for index, chunk in enumerate(chunks))


async def stream(
    hs: Resources, blob_key: str, size_bytes: int, start: int = 0, end: int | None = None
) -> AsyncIterator[bytes]:
    """Yields the bytes start ≤ i < end of the content in chunks. Raises like `get`, before the first chunk."""
    end = size_bytes if end is None else min(end, size_bytes)
    secret = await _find_secret(hs, blob_key)
    stored = stored_bytes(blob_key, size_bytes)
    if secret is None:
        async with aclosing(hs.blobs.stream(blob_key, start, end, expected_bytes=stored)) as plain:  # type: ignore[type-var]
            async for chunk in plain:
                yield chunk
        return
    count, index = _count_chunks(size_bytes), start // CHUNK_BYTES
    last = max(end - 1, start) // CHUNK_BYTES
    skipped, left = start - index * CHUNK_BYTES, end - start
    waiting = bytearray()
    sealed_end = min((last + 1) * _SEALED_CHUNK_BYTES, stored)
    sealed = hs.blobs.stream(blob_key, index * _SEALED_CHUNK_BYTES, sealed_end, expected_bytes=stored)
    async with aclosing(sealed):  # type: ignore[type-var]
        async for piece in sealed:
            waiting += piece
            while len(waiting) >= (length := min(_SEALED_CHUNK_BYTES, stored - index * _SEALED_CHUNK_BYTES)) > 0:
                chunk = bytes(waiting[:length])
                del waiting[:length]
                content = _open(hs, blob_key, secret, index, count, chunk)[skipped : skipped + left]
                index, skipped, left = index + 1, 0, left - len(content)
                if content:
                    yield content


async def _find_secret(hs: Resources, blob_key: str) -> bytes | None:
    """Returns the subkey of a blob, None if it is not sealed. Raises KeyError if its key was forgotten."""
    number = number_of(blob_key)
    if number is None:
        return None
    key = await hs.database.read(find_key, number, None)
    if key is None:
        raise KeyError(blob_key)
    return subkey(key, blob_key)


def subkey(key: SealingKey, blob_key: str) -> bytes:
    """Returns the key that seals the chunks of one blob."""
    return blake2b(blob_key.encode("ascii"), digest_size=32, key=key.secret, person=b"homeserver/blob").digest()


def _count_chunks(size_bytes: int) -> int:
    return max(1, -(-size_bytes // CHUNK_BYTES))  # the last chunk proves where the end is, even if it is empty


def _nonce(index: int, count: int) -> bytes:
    return index.to_bytes(23, "big") + (b"\1" if index == count - 1 else b"\0")


def seal_content(secret: bytes, data: bytes) -> list[bytes]:
    """Returns the sealed chunks of content. secret: the subkey of its blob."""
    count = _count_chunks(len(data))
    return [
        crypto_aead_xchacha20poly1305_ietf_encrypt(
            data[index * CHUNK_BYTES : (index + 1) * CHUNK_BYTES], None, _nonce(index, count), secret
        )
        for index in range(count)
    ]


def _seal_file(secret: bytes, source: Path, target: Path) -> None:
    count = _count_chunks(source.stat().st_size)
    descriptor = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    with source.open("rb") as content, open(descriptor, "wb") as sealed:
        for index in range(count):
            chunk = content.read(CHUNK_BYTES)
            sealed.write(crypto_aead_xchacha20poly1305_ietf_encrypt(chunk, None, _nonce(index, count), secret))


def _remove(path: Path) -> None:
    path.unlink(missing_ok=True)  # the blob storage may have moved it


def _open(hs: Resources, blob_key: str, secret: bytes, index: int, count: int, chunk: bytes) -> bytes:
    try:
        return crypto_aead_xchacha20poly1305_ietf_decrypt(chunk, None, _nonce(index, count), secret)
    except (CryptoError, ValueError):
        damage = f"The blob {blob_key} is damaged: the seal of its part {index} is broken."
        hs.outages.damaged(damage)
        raise BlobDamaged(damage) from None
