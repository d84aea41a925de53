"""The rows of files and thumbnails that are not sealed yet, see `sealing_old.py`."""

from __future__ import annotations

from homeserver.database import Transaction
from homeserver.features.media.sealed_blobs import SEALED_PATTERN
from homeserver.features.media.storage import Blob, forget_unused_key, is_blob_used, note_released, replace_blob


def list_unsealed(tx: Transaction, after: int, limit: int) -> list[tuple[int, str, Blob]]:
    """Returns number, type and blob of some files that are not sealed, in the order of the numbers, above `after`."""
    rows = tx.all(
        "SELECT media_nid, content_type, blob_key, sha256, size_bytes FROM media"
        " WHERE media_nid > ? AND blob_key NOT LIKE ? ORDER BY media_nid LIMIT ?",
        after, SEALED_PATTERN, limit,
    )  # fmt: skip
    return [(nid, kind, Blob(key, bytes(sha256), size_bytes)) for nid, kind, key, sha256, size_bytes in rows]


def count_unsealed(tx: Transaction) -> int:
    """Returns how many files are not sealed."""
    (count,) = tx.values("SELECT COUNT(*) FROM media WHERE blob_key NOT LIKE ?", SEALED_PATTERN)
    return int(count)


def delete_unsealed_thumbnails(tx: Transaction, limit: int) -> int:
    """Deletes some thumbnails that are not sealed although their files are. Returns how many."""
    rows = tx.all(
        "SELECT t.media_nid, t.method, t.width, t.height, t.animated, t.blob_key FROM media_thumbnails t"
        " JOIN media m ON m.media_nid = t.media_nid WHERE m.blob_key LIKE ? AND t.blob_key NOT LIKE ? LIMIT ?",
        SEALED_PATTERN, SEALED_PATTERN, limit,
    )  # fmt: skip
    for *which, blob_key in rows:
        tx.run(
            "DELETE FROM media_thumbnails"
            " WHERE media_nid = ? AND method = ? AND width = ? AND height = ? AND animated = ?",
            *which,
        )
        note_released(tx, blob_key)
    return len(rows)


def store_sealed(tx: Transaction, old: Blob, new: Blob) -> None:
    """Makes all files with this content refer to its sealed blob, and releases the old one."""
    replace_blob(tx, old.key, new)
    if not is_blob_used(tx, new.key):  # the file was deleted, or sealed by another process, meanwhile
        note_released(tx, new.key)
        forget_unused_key(tx, new.key)
