"""The tables of thumbnails: which files are images, and which thumbnails of them are stored.

Spec: client-server-api/#thumbnails
"""

from __future__ import annotations

import msgspec

from homeserver.database import Transaction
from homeserver.errors import not_found
from homeserver.features.media.sealed_blobs import open_small, seal_small
from homeserver.features.media.storage import note_released


class Size(msgspec.Struct, frozen=True):
    """A requested thumbnail, with its dimensions already snapped to the available sizes."""

    method: str
    width: int
    height: int
    animated: bool


class Image(msgspec.Struct, frozen=True):
    """What is known of a file as an image, orientation applied. failure: "", or why it has no thumbnail."""

    content_type: str = ""
    width: int = 0
    height: int = 0
    is_animated: bool = False
    failure: str = ""
    checked_ms: int = 0


class Thumbnail(msgspec.Struct, frozen=True):
    """A stored thumbnail, or the original in its place. A small one has its `content` here and no blob."""

    content_type: str
    blob_key: str
    size_bytes: int
    content: bytes | None = None


def find_image(tx: Transaction, media_nid: int) -> Image | None:
    """Returns what is known of the file as an image; None if it has not been decoded yet."""
    row = tx.one(
        "SELECT content_type, width, height, is_animated, failure, checked_ms FROM media_images WHERE media_nid = ?",
        media_nid,
    )
    return None if row is None else Image(row[0], row[1], row[2], bool(row[3]), row[4], row[5])


def find_thumbnail(tx: Transaction, media_nid: int, size: Size) -> Thumbnail | None:
    """Returns the stored thumbnail of exactly this size."""
    row = tx.one(
        "SELECT content_type, blob_key, size_bytes, content FROM media_thumbnails"
        " WHERE media_nid = ? AND method = ? AND width = ? AND height = ? AND animated = ?",
        media_nid,
        size.method,
        size.width,
        size.height,
        int(size.animated),
    )
    if row is None:
        return None
    content_type, blob_key, size_bytes, content = row
    return Thumbnail(content_type, blob_key, size_bytes, None if content is None else open_small(tx, blob_key, content))


def count_thumbnails(tx: Transaction, media_nid: int) -> int:
    """Returns how many thumbnails of the file are stored."""
    row = tx.one("SELECT COUNT(*) FROM media_thumbnails WHERE media_nid = ?", media_nid)
    assert row is not None
    return row[0]


def store_image(tx: Transaction, media_nid: int, image: Image) -> None:
    """Stores what is known of a file as an image, if the file still exists."""
    if tx.one("SELECT 1 FROM media WHERE media_nid = ?", media_nid) is None:
        return
    tx.run(
        "INSERT INTO media_images (media_nid, content_type, width, height, is_animated, failure, checked_ms)"
        " VALUES (?, ?, ?, ?, ?, ?, ?) ON CONFLICT (media_nid) DO UPDATE SET content_type = excluded.content_type,"
        " width = excluded.width, height = excluded.height, is_animated = excluded.is_animated,"
        " failure = excluded.failure, checked_ms = excluded.checked_ms",
        media_nid,
        image.content_type,
        image.width,
        image.height,
        int(image.is_animated),
        image.failure,
        tx.now_ms,
    )


def store_thumbnail(tx: Transaction, media_nid: int, image: Image, size: Size, thumbnail: Thumbnail) -> Thumbnail:
    """Stores a thumbnail whose blob is durable. Returns the one to serve, another node's if that was faster.

    Raises M_NOT_FOUND if the file has been deleted meanwhile.
    """
    if tx.one("SELECT 1 FROM media WHERE media_nid = ?", media_nid) is None:
        raise not_found("This media has been deleted.")
    store_image(tx, media_nid, image)
    found = find_thumbnail(tx, media_nid, size)
    if found is not None:
        note_released(tx, thumbnail.blob_key)
        return found
    tx.run(
        "INSERT INTO media_thumbnails (media_nid, method, width, height, animated, content_type, blob_key, size_bytes,"
        " content) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
        media_nid,
        size.method,
        size.width,
        size.height,
        int(size.animated),
        thumbnail.content_type,
        thumbnail.blob_key,
        thumbnail.size_bytes,
        None if thumbnail.content is None else seal_small(tx, thumbnail.blob_key, thumbnail.content),
    )
    return thumbnail
