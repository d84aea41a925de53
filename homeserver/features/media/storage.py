"""The files of the content repository, by `mxc://` URI, and the blobs that store them.

A blob's key is never reused or overwritten. So a reader that has found a key in a row needs no lock, and deleting a
blob never collides with storing one. Rows with the same content hash share a blob.

Spec: client-server-api/#content-repository
"""

from __future__ import annotations

from collections.abc import Collection

import msgspec

from homeserver.config import BlobsSection
from homeserver.database import Transaction
from homeserver.errors import MatrixError, forbidden, not_found
from homeserver.features.media.sealed_blobs import number_of
from homeserver.federation.identifiers import ServerName, UserID
from homeserver.limits import (
    MEDIA_PENDING_LIFETIME_MS,
    MEDIA_PENDING_PER_USER_MAX,
)
from homeserver.moments import latest
from homeserver.rooms.keys import forget_key
from homeserver.users.figures import note_figure


class Blob(msgspec.Struct, frozen=True):
    """Content that is durable in the blob store."""

    key: str
    sha256: bytes
    size_bytes: int


class Description(msgspec.Struct, frozen=True):
    """What an uploader or another server says about the content. `filename` is None if it has none."""

    content_type: str
    filename: str | None


class Media(msgspec.Struct, frozen=True):
    """One file of the repository. `is_public`: the deprecated endpoints serve it too, without a token.

    is_quarantined: an administrator has taken it, or a file of the same content, out of service (`quarantine`).
    """

    media_nid: int
    blob: Blob
    description: Description
    is_remote: bool
    is_public: bool
    used_ms: int
    created_ms: int = 0
    is_quarantined: bool = False


class Pending(msgspec.Struct, frozen=True):
    """A URI that was created and has no content yet. `position`: the stream position of this read."""

    uploader: UserID
    expires_ms: int
    position: int


class BlobGone(Exception):
    """The blob that was to be shared has been deleted meanwhile."""


# --- reading ---


def find_media(tx: Transaction, server_name: ServerName, media_id: str) -> Media | None:
    """Returns the file of a URI, None if this server does not have its content."""
    row = tx.one(
        "SELECT media_nid, blob_key, sha256, size_bytes, content_type, filename, uploader_nid, is_public, used_ms,"
        " created_ms,"
        " EXISTS (SELECT 1 FROM media_quarantine WHERE media_quarantine.sha256 = media.sha256),"
        " EXISTS (SELECT 1 FROM media_quarantine WHERE media_quarantine.server_nid = media.server_nid"
        " AND media_quarantine.media_id = media.media_id)"
        " FROM media WHERE server_nid = ? AND media_id = ?",
        tx.find(server_name),
        media_id,
    )
    if row is None:
        return None
    nid, key, sha256, size_bytes, content_type, filename, uploader_nid, is_public, used_ms, created_ms, *by = row
    return Media(
        nid,
        Blob(key, bytes(sha256), size_bytes),
        Description(content_type, filename),
        is_remote=uploader_nid is None,
        is_public=bool(is_public),
        used_ms=used_ms,
        created_ms=created_ms,
        is_quarantined=any(by),
    )


def find_served(tx: Transaction, server_name: ServerName, media_id: str) -> Media | None:
    """Returns the file of a URI to serve it, None if this server does not have its content.

    Raises M_NOT_FOUND if it is in quarantine, even if this server does not have it: then it must not be fetched.
    """
    media = find_media(tx, server_name, media_id)
    if media.is_quarantined if media is not None else is_uri_in_quarantine(tx, server_name, media_id):
        raise quarantined()
    return media


def quarantined() -> MatrixError:
    """Returns the error for a file in quarantine."""
    return not_found("An administrator of this server has taken this media out of service.")


def is_uri_in_quarantine(tx: Transaction, server_name: ServerName, media_id: str) -> bool:
    """Returns whether an administrator has put a URI into quarantine, no matter whether its content is stored."""
    sql = "SELECT 1 FROM media_quarantine WHERE server_nid = ? AND media_id = ?"
    return tx.one(sql, tx.find(server_name), media_id) is not None


def find_local(tx: Transaction, server_name: ServerName, media_id: str) -> Media | Pending | None:
    """Returns the file of a URI of this server, or the Pending if its content has not been uploaded yet.

    Raises M_NOT_FOUND if it is in quarantine.
    """
    return find_served(tx, server_name, media_id) or find_pending(tx, media_id)


def find_pending(tx: Transaction, media_id: str) -> Pending | None:
    """Returns a URI of this server that waits for its content and has not expired."""
    row = tx.one(
        "SELECT uploader_nid, expires_ms FROM media_pending WHERE media_id = ? AND expires_ms > ? AND expires_ms <= ?",
        media_id,
        *_pending_between(tx),
    )
    return None if row is None else Pending(UserID(tx.name(row[0])), row[1], tx.position)


def find_uploader(tx: Transaction, server_name: ServerName, media_id: str) -> UserID | None:
    """Returns the uploader of a file of this server."""
    nid = tx.find(server_name)
    row = tx.one("SELECT uploader_nid FROM media WHERE server_nid = ? AND media_id = ?", nid, media_id)
    return None if row is None or row[0] is None else UserID(tx.name(row[0]))


def find_blob_key(tx: Transaction, sha256: bytes) -> str | None:
    """Returns the key of a blob with this content."""
    row = tx.one("SELECT blob_key FROM media WHERE sha256 = ? LIMIT 1", sha256)
    return None if row is None else row[0]


# --- uploading ---


def store_pending(tx: Transaction, media_id: str, uploader: UserID, expires_ms: int) -> None:
    """Creates a URI without content. Raises M_LIMIT_EXCEEDED if the user has too many of them."""
    uploader_nid = tx.intern(uploader)
    row = tx.one(
        "SELECT COUNT(*), MIN(expires_ms) FROM media_pending WHERE uploader_nid = ? AND expires_ms > ?"
        " AND expires_ms <= ?",
        uploader_nid,
        *_pending_between(tx),
    )
    assert row is not None
    if row[0] >= MEDIA_PENDING_PER_USER_MAX:
        wait_ms = row[1] - tx.now_ms
        raise MatrixError(429, "M_LIMIT_EXCEEDED", "Finish your pending uploads first.", retry_after_ms=wait_ms)
    tx.run(
        "INSERT INTO media_pending (media_id, uploader_nid, expires_ms) VALUES (?, ?, ?)",
        media_id,
        uploader_nid,
        expires_ms,
    )


def check_may_upload(
    tx: Transaction,
    server_name: ServerName,
    quotas: BlobsSection,
    uploader: UserID,
    media_id: str | None,
    size_bytes: int,
) -> None:
    """Raises M_USER_LIMIT_EXCEEDED if the user's space is used up. For a created `media_id` see `check_pending`."""
    if media_id is not None:
        check_pending(tx, server_name, uploader, media_id)
    check_space(tx, quotas, uploader, size_bytes)


def check_space(tx: Transaction, quotas: BlobsSection, uploader: UserID, size_bytes: int) -> None:
    """Raises M_USER_LIMIT_EXCEEDED if the user has no space for another file. Unfinished resumable uploads count."""
    uploader_nid = tx.find(uploader)
    row = tx.one("SELECT files, size_bytes FROM media_usage WHERE uploader_nid = ?", uploader_nid)
    files, used_bytes = row if row is not None else (0, 0)
    unfinished = tx.one(
        "SELECT COUNT(*), COALESCE(SUM(length_bytes), 0) FROM media_uploads WHERE owner_nid = ? AND media_id = ''",
        uploader_nid,
    )
    assert unfinished is not None
    files, used_bytes = files + unfinished[0], used_bytes + int(unfinished[1])
    if files >= quotas.user_files_max or used_bytes + size_bytes > quotas.user_bytes_max:
        raise MatrixError(
            403, "M_USER_LIMIT_EXCEEDED", "You have used up the space that this server has for your uploads.",
            info_uri=quotas.quota_info_url or tx.server.config.base_url,
        )  # fmt: skip


def check_pending(tx: Transaction, server_name: ServerName, uploader: UserID, media_id: str) -> None:
    """Raises M_NOT_FOUND, M_FORBIDDEN or M_CANNOT_OVERWRITE_MEDIA unless the user may now upload the ID's content."""
    pending = find_pending(tx, media_id)
    owner = pending.uploader if pending is not None else find_uploader(tx, server_name, media_id)
    if owner is None:
        raise not_found("This media ID was never created or has expired.")
    if owner != uploader:
        raise forbidden("This media ID belongs to another user.")
    if pending is None:
        raise MatrixError(409, "M_CANNOT_OVERWRITE_MEDIA", "This media ID already has its content.")


def store_upload(
    tx: Transaction,
    blob: Blob,
    server_name: ServerName,
    quotas: BlobsSection,
    media_id: str,
    uploader: UserID,
    description: Description,
    *,
    is_pending: bool,
    is_public: bool,
) -> None:
    """Makes a blob the content of a URI of this server, and wakes waiters. Raises what `check_may_upload` raises."""
    check_may_upload(tx, server_name, quotas, uploader, media_id if is_pending else None, blob.size_bytes)
    uploader_nid = tx.intern(uploader)
    _insert_media(tx, blob, server_name, media_id, description, uploader_nid, is_public)
    tx.run(
        "INSERT INTO media_usage (uploader_nid, files, size_bytes) VALUES (?, 1, ?)"
        " ON CONFLICT (uploader_nid) DO UPDATE SET files = media_usage.files + 1,"
        " size_bytes = media_usage.size_bytes + excluded.size_bytes",
        uploader_nid,
        blob.size_bytes,
    )
    note_figure(tx, "media_files")
    note_figure(tx, "media_bytes", blob.size_bytes)
    if is_pending:
        tx.run("DELETE FROM media_pending WHERE media_id = ?", media_id)
        tx.wake(wake_key(media_id))


def insert_unowned(
    tx: Transaction, blob: Blob, server_name: ServerName, media_id: str, description: Description
) -> None:
    """Makes a blob the content of a URI of this server that belongs to no user."""
    _insert_media(tx, blob, server_name, media_id, description, tx.intern(""), False)


def wake_key(media_id: str) -> str:
    """Returns the stream key that is woken when a created URI gets its content."""
    return f"media/{media_id}"


def store_remote(
    tx: Transaction, blob: Blob, server_name: ServerName, media_id: str, description: Description
) -> Media:
    """Stores another server's file. If another node was faster, its row stays and is returned."""
    found = find_media(tx, server_name, media_id)
    if found is None:
        _insert_media(tx, blob, server_name, media_id, description, None, False)
        found = find_media(tx, server_name, media_id)
        assert found is not None
        if found.is_quarantined:  # because of its content: its URI is added, so that it is not fetched again
            tx.run(
                "INSERT INTO media_quarantine (server_nid, media_id, sha256, by_nid)"
                " SELECT CAST(? AS INTEGER), CAST(? AS TEXT), sha256, by_nid FROM media_quarantine"
                " WHERE sha256 = ? LIMIT 1 ON CONFLICT (server_nid, media_id) DO NOTHING",
                tx.intern(server_name),
                media_id,
                blob.sha256,
            )
    elif found.blob.key != blob.key:
        note_released(tx, blob.key)
    return found


def _insert_media(
    tx: Transaction,
    blob: Blob,
    server_name: ServerName,
    media_id: str,
    description: Description,
    uploader_nid: int | None,
    is_public: bool,
) -> None:
    tx.run(
        "INSERT INTO media (server_nid, media_id, blob_key, sha256, size_bytes, content_type, filename, uploader_nid,"
        " created_ms, used_ms, is_public) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        tx.intern(server_name),
        media_id,
        blob.key,
        blob.sha256,
        blob.size_bytes,
        description.content_type,
        description.filename,
        uploader_nid,
        tx.now_ms,
        tx.now_ms,
        int(is_public),
    )


def check_shared(tx: Transaction, blob_key: str) -> None:
    """Raises BlobGone unless a row refers to the blob, so that another row may refer to it in this transaction."""
    if not is_blob_used(tx, blob_key):
        raise BlobGone


def replace_blob(tx: Transaction, lost_key: str, blob: Blob) -> None:
    """Points every file whose blob was lost to another blob with the same content."""
    tx.run("UPDATE media SET blob_key = ? WHERE sha256 = ? AND blob_key = ?", blob.key, blob.sha256, lost_key)
    note_released(tx, lost_key)  # part of it may be left


def store_used(tx: Transaction, media_nid: int) -> None:
    """Stores that the file was used now."""
    tx.run("UPDATE media SET used_ms = ? WHERE media_nid = ?", tx.now_ms, media_nid)


# --- deleting ---


def delete_media(tx: Transaction, server_name: ServerName, media_id: str) -> bool:
    """Deletes a file and its thumbnails, and releases their blobs. Returns False if there is no such file."""
    row = tx.one(
        "SELECT media_nid, blob_key, uploader_nid, size_bytes FROM media WHERE server_nid = ? AND media_id = ?",
        tx.find(server_name),
        media_id,
    )
    if row is None:
        return False
    _delete_row(tx, *row)
    if server_name == tx.server.name:
        tx.run("DELETE FROM media_protected WHERE media_id = ?", media_id)
    return True


def _delete_row(tx: Transaction, media_nid: int, blob_key: str, uploader_nid: int | None, size_bytes: int) -> None:
    keys = tx.values("SELECT blob_key FROM media_thumbnails WHERE media_nid = ?", media_nid)
    tx.run("DELETE FROM media_thumbnails WHERE media_nid = ?", media_nid)
    tx.run("DELETE FROM media_images WHERE media_nid = ?", media_nid)
    tx.run("DELETE FROM media WHERE media_nid = ?", media_nid)
    if uploader_nid is not None:
        tx.run(
            "UPDATE media_usage SET files = files - 1, size_bytes = size_bytes - ? WHERE uploader_nid = ?",
            size_bytes,
            uploader_nid,
        )
    for key in (blob_key, *keys):
        note_released(tx, key)
    forget_unused_key(tx, blob_key)


def forget_unused_key(tx: Transaction, blob_key: str) -> None:
    """Forgets the key of a blob that no file refers to any more."""
    number = number_of(blob_key)
    if number is not None and not is_blob_used(tx, blob_key):
        forget_key(tx, number)


def note_released(tx: Transaction, blob_key: str) -> None:
    """Lists the blob for deletion unless a row refers to it."""
    if not is_blob_used(tx, blob_key):
        tx.run("INSERT INTO media_deletions (blob_key) VALUES (?) ON CONFLICT (blob_key) DO NOTHING", blob_key)


def is_blob_used(tx: Transaction, blob_key: str) -> bool:
    """Returns whether a file or a thumbnail refers to the blob."""
    sha256 = bytes.fromhex(blob_key.rpartition("/")[2][:64])  # files have an index by their hash
    return (
        tx.one("SELECT 1 FROM media WHERE sha256 = ? AND blob_key = ? LIMIT 1", sha256, blob_key) is not None
        or tx.one("SELECT 1 FROM media_thumbnails WHERE blob_key = ? LIMIT 1", blob_key) is not None
    )


def delete_expired_pending(tx: Transaction) -> int:
    """Deletes created URIs that got no content in time. Returns how many."""
    return tx.run("DELETE FROM media_pending WHERE expires_ms <= ? OR expires_ms > ?", *_pending_between(tx))


def _pending_between(tx: Transaction) -> tuple[int, int]:
    """Returns the expiry times of URIs that have not expired yet: after the first, up to the second."""
    return tx.now_ms, latest(tx.now_ms, MEDIA_PENDING_LIFETIME_MS)


def get_remote_bytes(tx: Transaction) -> int:
    """Returns the bytes in use by other servers' files."""
    row = tx.one("SELECT COALESCE(SUM(size_bytes), 0) FROM media WHERE uploader_nid IS NULL")
    assert row is not None
    return int(row[0])


def delete_oldest_remote(tx: Transaction, excess_bytes: int, count: int) -> int:
    """Deletes up to `count` least recently used remote files until `excess_bytes` are freed. Returns freed bytes."""
    oldest = tx.all(
        "SELECT media_nid, blob_key, size_bytes FROM media WHERE uploader_nid IS NULL ORDER BY used_ms LIMIT ?", count
    )
    freed_bytes = 0
    for media_nid, blob_key, size_bytes in oldest:
        if freed_bytes >= excess_bytes:
            break
        _delete_row(tx, media_nid, blob_key, None, size_bytes)
        freed_bytes += size_bytes
    return freed_bytes if oldest else excess_bytes


def delete_unused_remote(tx: Transaction, before_ms: int, count: int) -> int:
    """Deletes up to `count` remote files that have not been used since a moment. Returns how many it has deleted."""
    unused = tx.all(
        "SELECT media_nid, blob_key, size_bytes FROM media WHERE uploader_nid IS NULL AND used_ms < ?"
        " ORDER BY used_ms LIMIT ?",
        before_ms,
        count,
    )
    for media_nid, blob_key, size_bytes in unused:
        _delete_row(tx, media_nid, blob_key, None, size_bytes)
    return len(unused)


def list_deletions(tx: Transaction, count: int) -> list[str]:
    """Returns keys of blobs that are to be deleted."""
    return tx.values("SELECT blob_key FROM media_deletions ORDER BY blob_key LIMIT ?", count)


def delete_deletions(tx: Transaction, blob_keys: Collection[str]) -> None:
    """Removes deleted blobs from the list."""
    tx.many("DELETE FROM media_deletions WHERE blob_key = ?", [(key,) for key in blob_keys])


def get_sweep(tx: Transaction) -> int:
    """Returns the shard of keys in which to search for orphans next."""
    row = tx.one("SELECT next_shard FROM media_sweep WHERE id = 1")
    assert row is not None
    return row[0]


def list_unused(tx: Transaction, blob_keys: Collection[str]) -> list[str]:
    """Returns those of the blobs that no file and no thumbnail refers to."""
    return [key for key in blob_keys if not is_blob_used(tx, key)]


def store_orphans(tx: Transaction, blob_keys: Collection[str]) -> None:
    """Lists those of the blobs for deletion that no row refers to."""
    for key in blob_keys:
        note_released(tx, key)


def store_sweep(tx: Transaction, next_shard: int) -> None:
    """Stores the shard in which to search for orphans next."""
    tx.run("UPDATE media_sweep SET next_shard = ? WHERE id = 1", next_shard)
