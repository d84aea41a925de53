"""The rows of resumable uploads: how much of each is durable, whose it is, and what it has become.

An upload whose `offset_bytes` is its length has a `media_id`, and only then: both are written in the transaction that
makes its content a file of the repository. Until then its length counts towards the user's quota.
"""

from __future__ import annotations

from typing import Any

import msgspec
import orjson

from homeserver.config import BlobsSection
from homeserver.database import Transaction
from homeserver.errors import MatrixError, not_found
from homeserver.features.media.storage import Description, check_space
from homeserver.federation.identifiers import UserID
from homeserver.limits import RESUMABLE_LIFETIME_MS, RESUMABLE_PER_USER_MAX
from homeserver.moments import latest


class Upload(msgspec.Struct, frozen=True):
    """A resumable upload. metadata: the header as its client sent it. media_id: "" until it is complete.

    info: describes the finished file, see `information`.
    """

    upload_id: str
    length_bytes: int
    offset_bytes: int
    description: Description
    metadata: str
    expires_ms: int
    media_id: str = ""
    info: Any = None


def create_upload(tx: Transaction, quotas: BlobsSection, owner: UserID, upload: Upload) -> None:
    """Stores a new upload. Raises M_USER_LIMIT_EXCEEDED or, if the user has too many unfinished ones,
    M_LIMIT_EXCEEDED.
    """
    check_space(tx, quotas, owner, upload.length_bytes)
    owner_nid = tx.intern(owner)
    row = tx.one(
        "SELECT COUNT(*), MIN(expires_ms) FROM media_uploads WHERE owner_nid = ? AND media_id = ''"
        " AND expires_ms > ? AND expires_ms <= ?",
        owner_nid, *_unexpired(tx),
    )  # fmt: skip
    assert row is not None
    if row[0] >= RESUMABLE_PER_USER_MAX:
        wait_ms = row[1] - tx.now_ms
        raise MatrixError(429, "M_LIMIT_EXCEEDED", "Finish or delete your unfinished uploads.", retry_after_ms=wait_ms)
    tx.run(
        "INSERT INTO media_uploads (upload_id, owner_nid, length_bytes, offset_bytes, content_type, filename, metadata,"
        " expires_ms, media_id, info) VALUES (?, ?, ?, 0, ?, ?, ?, ?, '', '')",
        upload.upload_id,
        owner_nid,
        upload.length_bytes,
        upload.description.content_type,
        upload.description.filename,
        upload.metadata,
        upload.expires_ms,
    )


def find_upload(tx: Transaction, owner: UserID, upload_id: str) -> Upload:
    """Returns the user's upload. Raises M_NOT_FOUND if it is another user's, has expired, or never was."""
    row = tx.one(
        "SELECT length_bytes, offset_bytes, content_type, filename, metadata, expires_ms, media_id, info"
        " FROM media_uploads WHERE upload_id = ? AND owner_nid = ? AND expires_ms > ? AND expires_ms <= ?",
        upload_id, tx.find(owner), *_unexpired(tx),
    )  # fmt: skip
    if row is None:
        raise not_found("There is no such upload, or it has expired.")
    length_bytes, offset_bytes, content_type, filename, metadata, expires_ms, media_id, info = row
    return Upload(
        upload_id, length_bytes, offset_bytes, Description(content_type, filename), metadata, expires_ms, media_id,
        orjson.loads(info) if info else None,
    )  # fmt: skip


def store_offset(tx: Transaction, upload: Upload, offset_bytes: int, expires_ms: int) -> None:
    """Stores that the bytes up to `offset_bytes` are durable. Raises M_NOT_FOUND if the upload has ended meanwhile."""
    changed = tx.run(
        "UPDATE media_uploads SET offset_bytes = ?, expires_ms = ? WHERE upload_id = ? AND media_id = ''",
        offset_bytes, expires_ms, upload.upload_id,
    )  # fmt: skip
    if not changed:
        raise not_found("This upload has been deleted or has expired.")


def store_finished(tx: Transaction, upload: Upload, media_id: str, info: Any) -> None:
    """Stores that the upload has become a file. Call it before `storage.store_upload`, which then counts the file.

    Raises M_NOT_FOUND if the upload has ended meanwhile.
    """
    changed = tx.run(
        "UPDATE media_uploads SET offset_bytes = length_bytes, media_id = ?, info = ?"
        " WHERE upload_id = ? AND media_id = ''",
        media_id, orjson.dumps(info).decode(), upload.upload_id,
    )  # fmt: skip
    if not changed:
        raise not_found("This upload has been deleted or has expired.")


def delete_upload(tx: Transaction, owner: UserID, upload_id: str) -> None:
    """Deletes an upload. The file that it may have become stays. Raises M_NOT_FOUND."""
    sql = "DELETE FROM media_uploads WHERE upload_id = ? AND owner_nid = ?"
    if not tx.run(sql, upload_id, tx.find(owner)):
        raise not_found("There is no such upload, or it has expired.")


def delete_expired_uploads(tx: Transaction) -> int:
    """Deletes the uploads that have expired, finished or not. Returns how many."""
    return tx.run("DELETE FROM media_uploads WHERE expires_ms <= ? OR expires_ms > ?", *_unexpired(tx))


def list_unfinished(tx: Transaction) -> list[str]:
    """Returns the IDs of all uploads that are not finished."""
    return tx.values("SELECT upload_id FROM media_uploads WHERE media_id = ''")


def _unexpired(tx: Transaction) -> tuple[int, int]:
    """Returns the expiry times of uploads that have not expired yet: after the first, up to the second."""
    return tx.now_ms, latest(tx.now_ms, RESUMABLE_LIFETIME_MS)
