"""Lists of files, and deletion of many, for administrators. Each call reads or deletes a limited number."""

from __future__ import annotations

import msgspec

from homeserver.database import Row, Transaction
from homeserver.features.media import quarantine, storage
from homeserver.federation.identifiers import ServerName, UserID

_ROWS_PER_QUERY = 1_000


class Listed(msgspec.Struct, frozen=True):
    """A file as administrators see it. `media_nid` grows with each upload."""

    media_nid: int
    media_id: str
    size_bytes: int
    content_type: str
    filename: str | None
    created_ms: int
    used_ms: int
    quarantined_by: UserID | None
    is_protected: bool = False


def find_listed(tx: Transaction, server_name: ServerName, media_id: str) -> Listed | None:
    """Returns a file that this server has."""
    row = tx.one(
        "SELECT media_nid, media_id, size_bytes, content_type, filename, created_ms, used_ms, sha256 FROM media"
        " WHERE server_nid = ? AND media_id = ?",
        tx.find(server_name),
        media_id,
    )
    return None if row is None else _to_listed(tx, server_name, row)


def list_media_of(tx: Transaction, user_id: UserID, after_nid: int, limit: int) -> list[Listed]:
    """Returns the first `limit` of a user's files after one of them, in the order of their upload."""
    rows = tx.all(
        "SELECT media_nid, media_id, size_bytes, content_type, filename, created_ms, used_ms, sha256 FROM media"
        " WHERE uploader_nid = ? AND media_nid > ? ORDER BY media_nid LIMIT ?",
        tx.find(user_id),
        after_nid,
        limit,
    )
    return [_to_listed(tx, tx.server.name, row) for row in rows]


def count_media_of(tx: Transaction, user_id: UserID) -> int:
    """Returns how many files a user has uploaded."""
    row = tx.one("SELECT files FROM media_usage WHERE uploader_nid = ?", tx.find(user_id))
    return 0 if row is None else row[0]


def _to_listed(tx: Transaction, server_name: ServerName, row: Row) -> Listed:
    nid, media_id, size_bytes, content_type, filename, created_ms, used_ms, sha256 = row
    by = quarantine.find_quarantined_by(tx, server_name, media_id, bytes(sha256))
    is_protected = quarantine.is_protected(tx, server_name, media_id)
    return Listed(nid, media_id, size_bytes, content_type, filename, created_ms, used_ms, by, is_protected)


def list_all_media_of(tx: Transaction, user_id: UserID) -> list[Listed]:
    """Returns all of a user's files, in the order of their upload. Some 20 µs each."""
    found: list[Listed] = []
    while page := list_media_of(tx, user_id, found[-1].media_nid if found else 0, _ROWS_PER_QUERY):
        found += page
    return found


def list_usage(tx: Transaction, from_ms: int, until_ms: int) -> dict[UserID, tuple[int, int]]:
    """Returns how many files, and how many bytes, each user has uploaded in from_ms ≤ moment ≤ until_ms."""
    rows = tx.all(
        "SELECT uploader_nid, COUNT(*), SUM(size_bytes) FROM media WHERE uploader_nid IS NOT NULL"
        " AND created_ms >= ? AND created_ms <= ? GROUP BY uploader_nid",
        from_ms,
        until_ms,
    )
    names = tx.names([nid for nid, _, _ in rows])
    return {UserID(names[nid]): (int(count), int(size)) for nid, count, size in rows}


def delete_media_of(tx: Transaction, user_id: UserID, limit: int) -> list[str]:
    """Deletes up to `limit` of a user's files. Returns their IDs."""
    media_ids = tx.values("SELECT media_id FROM media WHERE uploader_nid = ? LIMIT ?", tx.find(user_id), limit)
    for media_id in media_ids:
        storage.delete_media(tx, tx.server.name, media_id)
    return media_ids


def list_local_ids(
    tx: Transaction, server_name: ServerName, after_nid: int, upto_nid: int, before_ms: int, size_min: int
) -> list[str]:
    """Returns the IDs of local files that were stored before a moment and have at least that many bytes.

    after_nid, upto_nid: the part of the table to search, after_nid < media_nid ≤ upto_nid.
    """
    return tx.values(
        "SELECT media_id FROM media WHERE media_nid > ? AND media_nid <= ? AND server_nid = ? AND created_ms < ?"
        " AND size_bytes >= ?",
        after_nid,
        upto_nid,
        tx.find(server_name),
        before_ms,
        size_min,
    )


def get_last_nid(tx: Transaction) -> int:
    """Returns the greatest `media_nid`, 0 if there are no files."""
    row = tx.one("SELECT COALESCE(MAX(media_nid), 0) FROM media")
    assert row is not None
    return int(row[0])
