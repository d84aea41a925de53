"""Quarantine: files that administrators have taken out of service.

A URI is put into quarantine, and with it all other files of the same content, even if they are uploaded or fetched
later. Neither users nor other servers get them, and they are not fetched again. The content of local files stays
stored, so that an administrator can put them back into service. `storage.find_served` refuses files in quarantine.
"""

from __future__ import annotations

from homeserver.database import Transaction
from homeserver.features.media import storage
from homeserver.federation.identifiers import ServerName, UserID


def store_quarantine(tx: Transaction, server_name: ServerName, media_id: str, by: UserID) -> bool:
    """Puts a file into quarantine, whether or not it is stored here.

    Returns False if it was there already, or is protected.
    """
    if is_protected(tx, server_name, media_id):
        return False
    server_nid = tx.intern(server_name)
    media = storage.find_media(tx, server_name, media_id)
    return (
        tx.run(
            "INSERT INTO media_quarantine (server_nid, media_id, sha256, by_nid) VALUES (?, ?, ?, ?)"
            " ON CONFLICT (server_nid, media_id) DO NOTHING",
            server_nid,
            media_id,
            b"" if media is None else media.blob.sha256,
            tx.intern(by),
        )
        == 1
    )


def delete_quarantine(tx: Transaction, server_name: ServerName, media_id: str) -> None:
    """Puts a file back into service, with all others of the same content."""
    media = storage.find_media(tx, server_name, media_id)
    if media is not None:
        tx.run("DELETE FROM media_quarantine WHERE sha256 = ?", media.blob.sha256)
    tx.run("DELETE FROM media_quarantine WHERE server_nid = ? AND media_id = ?", tx.find(server_name), media_id)


def find_quarantined_by(tx: Transaction, server_name: ServerName, media_id: str, sha256: bytes) -> UserID | None:
    """Returns the administrator who has put the file, or one of the same content, into quarantine."""
    row = tx.one(
        "SELECT by_nid FROM media_quarantine WHERE server_nid = ? AND media_id = ?", tx.find(server_name), media_id
    ) or tx.one("SELECT by_nid FROM media_quarantine WHERE sha256 = ? LIMIT 1", sha256)
    return None if row is None else UserID(tx.name(row[0]))


# --- protection ---


def store_protected(tx: Transaction, media_id: str) -> None:
    """Protects a file of this server from quarantine."""
    tx.run("INSERT INTO media_protected (media_id) VALUES (?) ON CONFLICT (media_id) DO NOTHING", media_id)


def delete_protected(tx: Transaction, media_id: str) -> None:
    """Lifts the protection of a file of this server."""
    tx.run("DELETE FROM media_protected WHERE media_id = ?", media_id)


def is_protected(tx: Transaction, server_name: ServerName, media_id: str) -> bool:
    """Returns whether a file is protected from quarantine."""
    if server_name != tx.server.name:
        return False
    return tx.one("SELECT 1 FROM media_protected WHERE media_id = ?", media_id) is not None
