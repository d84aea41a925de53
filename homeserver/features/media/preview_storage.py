"""The tables of URL previews: what pages say about themselves, and which files are their pictures.

Both are limited, and the oldest make room for new ones. A picture is a file of this server that belongs to no user. It
outlives its preview, because clients go on showing it.

Spec: client-server-api/#get_matrixclientv1mediapreview_url
"""

from __future__ import annotations

import secrets

import msgspec

from homeserver.database import Transaction
from homeserver.features.media import storage
from homeserver.features.media.storage import Blob, Description
from homeserver.federation.identifiers import ServerName
from homeserver.limits.previews import (
    PREVIEW_PICTURE_LIFETIME_MS,
    PREVIEWS_STORED_MAX,
)
from homeserver.moments import latest

_EVICTED_AT_ONCE = 50


class Preview(msgspec.Struct, frozen=True):
    """A stored preview, as the JSON of the response. `body` is empty if the page could not be previewed."""

    body: bytes
    fetched_ms: int


def find_preview(tx: Transaction, url_sha256: bytes) -> Preview | None:
    """Returns the preview of a URL, which may be too old."""
    row = tx.one("SELECT body, fetched_ms FROM url_previews WHERE url_sha256 = ?", url_sha256)
    return None if row is None else Preview(bytes(row[0]), row[1])


def store_preview(tx: Transaction, url_sha256: bytes, body: bytes, media_id: str) -> None:
    """Stores the preview of a URL. `media_id`: that of its picture, or ""."""
    tx.run(
        "INSERT INTO url_previews (url_sha256, body, media_id, fetched_ms) VALUES (?, ?, ?, ?)"
        " ON CONFLICT (url_sha256) DO UPDATE SET body = excluded.body, media_id = excluded.media_id,"
        " fetched_ms = excluded.fetched_ms",
        url_sha256,
        body,
        media_id,
        tx.now_ms,
    )
    row = tx.one("SELECT COUNT(*) FROM url_previews")
    assert row is not None
    if row[0] > PREVIEWS_STORED_MAX:
        tx.run(
            "DELETE FROM url_previews WHERE url_sha256 IN"
            " (SELECT url_sha256 FROM url_previews ORDER BY fetched_ms LIMIT ?)",
            min(row[0] - PREVIEWS_STORED_MAX, _EVICTED_AT_ONCE),
        )


def store_picture(
    tx: Transaction, blob: Blob, server_name: ServerName, url_sha256: bytes, content_type: str, bytes_max: int
) -> str:
    """Makes a blob the picture of a URL's preview. Returns its media ID, the old one if the picture is the same.

    Deletes the pictures that have not been used for longest if all together have more than `bytes_max`.
    """
    media_id = _find_same_picture(tx, blob, server_name, url_sha256, content_type)
    if media_id is None:
        media_id = secrets.token_urlsafe(18)
        storage.insert_unowned(tx, blob, server_name, media_id, Description(content_type, None))
    tx.run(
        "INSERT INTO url_preview_pictures (media_id, size_bytes, used_ms) VALUES (?, ?, ?)"
        " ON CONFLICT (media_id) DO UPDATE SET used_ms = excluded.used_ms",
        media_id,
        blob.size_bytes,
        tx.now_ms,
    )
    row = tx.one("SELECT COALESCE(SUM(size_bytes), 0) FROM url_preview_pictures")
    assert row is not None
    excess_bytes = int(row[0]) - bytes_max
    if excess_bytes > 0:
        _delete_least_used(tx, server_name, excess_bytes, media_id)
    return media_id


def _find_same_picture(
    tx: Transaction, blob: Blob, server_name: ServerName, url_sha256: bytes, content_type: str
) -> str | None:
    row = tx.one("SELECT media_id FROM url_previews WHERE url_sha256 = ?", url_sha256)
    media = storage.find_media(tx, server_name, row[0]) if row is not None and row[0] else None
    if media is None or media.blob.sha256 != blob.sha256 or media.description.content_type != content_type:
        return None
    return row[0] if row is not None and media.blob.key == blob.key else None


def _delete_least_used(tx: Transaction, server_name: ServerName, excess_bytes: int, kept: str) -> None:
    oldest = tx.all(
        "SELECT media_id, size_bytes FROM url_preview_pictures WHERE media_id <> ? ORDER BY used_ms LIMIT ?",
        kept,
        _EVICTED_AT_ONCE,
    )
    for media_id, size_bytes in oldest:
        if excess_bytes <= 0:
            return
        _delete_picture(tx, server_name, media_id)
        excess_bytes -= size_bytes


def _delete_picture(tx: Transaction, server_name: ServerName, media_id: str) -> None:
    storage.delete_media(tx, server_name, media_id)
    tx.run("DELETE FROM url_preview_pictures WHERE media_id = ?", media_id)
    tx.run("DELETE FROM url_previews WHERE media_id = ? AND media_id <> ''", media_id)


def delete_expired_previews(tx: Transaction, server_name: ServerName, count: int) -> bool:
    """Deletes previews and up to `count` pictures that are too old. Returns whether there may be more."""
    tx.run(
        "DELETE FROM url_previews WHERE fetched_ms <= ? OR fetched_ms > ?",
        tx.now_ms - PREVIEW_PICTURE_LIFETIME_MS,
        latest(tx.now_ms, 0),
    )
    expired = tx.values(
        "SELECT media_id FROM url_preview_pictures WHERE used_ms <= ? OR used_ms > ? LIMIT ?",
        tx.now_ms - PREVIEW_PICTURE_LIFETIME_MS,
        latest(tx.now_ms, 0),
        count,
    )
    for media_id in expired:
        _delete_picture(tx, server_name, media_id)
    return len(expired) == count
