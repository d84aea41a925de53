"""Third-party identifiers: the email addresses of accounts, and where they are bound to their user.

An address belongs to one account at most. Spec: client-server-api/#adding-account-administrative-contact-information
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from homeserver import limits
from homeserver.database import Schema, Step, Transaction
from homeserver.errors import MatrixError, invalid_param
from homeserver.federation.identifiers import ServerName, UserID
from homeserver.users.accounts import read_identifier

EMAIL = "email"

# server_nid: of the identity server that tells others who owns the address.
SCHEMA = Schema(
    "threepids",
    (
        Step(
            "001_create",
            """
            CREATE TABLE threepids (
                medium TEXT NOT NULL,
                address TEXT NOT NULL,
                user_nid INTEGER NOT NULL,
                validated_ms INTEGER NOT NULL,
                added_ms INTEGER NOT NULL,
                PRIMARY KEY (medium, address)
            ) WITHOUT ROWID;
            CREATE INDEX threepids_of_user ON threepids (user_nid);
            CREATE TABLE threepid_bindings (
                user_nid INTEGER NOT NULL,
                medium TEXT NOT NULL,
                address TEXT NOT NULL,
                server_nid INTEGER NOT NULL,
                PRIMARY KEY (user_nid, medium, address, server_nid)
            ) WITHOUT ROWID;
            """,
        ),
    ),
)


class ThreePid(msgspec.Struct, frozen=True):
    """An address of an account. Times are in milliseconds."""

    medium: str
    address: str
    validated_ms: int
    added_ms: int


def fold_email(address: str) -> str:
    """Returns an email address as it is stored and compared. Raises M_INVALID_EMAIL unless it can be one.

    "=?" is refused, because mail programs would decode what follows, and show another address.
    Spec: appendices/#e-mail-addresses: case folding, whatever the mail server does.
    """
    folded = address.strip().casefold()
    local, _, domain = folded.rpartition("@")
    is_plain = folded.isprintable() and not set(folded) & set(' <>()[]\\,;:"') and "=?" not in folded
    if not local or not domain or "@" in local or not is_plain or domain.startswith("."):
        raise MatrixError(400, "M_INVALID_EMAIL", "This is not an email address.")
    try:
        is_long = len(folded.encode()) > limits.users.EMAIL_ADDRESS_BYTES_MAX
    except UnicodeEncodeError:
        is_long = True
    if is_long or not folded.isascii():
        raise MatrixError(400, "M_INVALID_EMAIL", "This server cannot send email to that address.")
    return folded


def find_owner(tx: Transaction, medium: str, address: str) -> UserID | None:
    """Returns the user whose address this is, None if it is nobody's here."""
    row = tx.one("SELECT user_nid FROM threepids WHERE medium = ? AND address = ?", medium, address)
    return None if row is None else UserID(tx.name(row[0]))


def identify(tx: Transaction, identifier: Mapping[str, Any] | None, user: str | None = None) -> UserID:
    """Returns the local user that an identifier object means, or the older `user` key. The account need not exist.

    An address that is nobody's means a user who cannot exist, each another one: so finding out takes as long as a wrong
    password, and is counted against the same limits.
    Raises MatrixError. Spec: client-server-api/#identifier-types
    """
    if identifier is None or identifier.get("type", "") not in ("m.id.thirdparty", ""):
        return read_identifier(tx.server.name, identifier, user)
    medium, address = identifier.get("medium"), identifier.get("address")
    if medium != EMAIL or not isinstance(address, str):
        return read_identifier(tx.server.name, identifier, user)
    folded = fold_email(address)
    return find_owner(tx, EMAIL, folded) or UserID(f"@{folded}:{tx.server.name}")


def list_threepids(tx: Transaction, user_id: UserID) -> list[ThreePid]:
    """Returns the addresses of an account, the oldest first."""
    rows = tx.all(
        "SELECT medium, address, validated_ms, added_ms FROM threepids WHERE user_nid = ? ORDER BY added_ms, address",
        tx.find(user_id),
    )
    return [ThreePid(*row) for row in rows]


def store_threepid(tx: Transaction, user_id: UserID, medium: str, address: str, validated_ms: int) -> None:
    """Adds a validated address to an account. Raises M_THREEPID_IN_USE if it is another account's."""
    owner = find_owner(tx, medium, address)
    if owner is not None and owner != user_id:
        raise in_use()
    user_nid = tx.intern(user_id)
    (count,) = tx.one("SELECT COUNT(*) FROM threepids WHERE user_nid = ?", user_nid) or (0,)
    if owner is None and count >= limits.users.EMAIL_ADDRESSES_MAX:
        raise invalid_param(f"An account may have at most {limits.users.EMAIL_ADDRESSES_MAX} addresses. Delete one.")
    tx.run(
        "INSERT INTO threepids (medium, address, user_nid, validated_ms, added_ms) VALUES (?, ?, ?, ?, ?)"
        " ON CONFLICT (medium, address) DO UPDATE SET validated_ms = excluded.validated_ms",
        medium, address, user_nid, validated_ms, tx.now_ms,
    )  # fmt: skip


def delete_threepid(tx: Transaction, user_id: UserID, medium: str, address: str) -> bool:
    """Removes an address from an account. Returns whether the account had it."""
    return bool(
        tx.run(
            "DELETE FROM threepids WHERE medium = ? AND address = ? AND user_nid = ?",
            medium, address, tx.find(user_id),
        )
    )  # fmt: skip


def store_binding(tx: Transaction, user_id: UserID, medium: str, address: str, server: ServerName) -> None:
    """Records that an identity server tells others that the address is the user's."""
    tx.run(
        "INSERT INTO threepid_bindings (user_nid, medium, address, server_nid) VALUES (?, ?, ?, ?)"
        " ON CONFLICT (user_nid, medium, address, server_nid) DO NOTHING",
        tx.intern(user_id), medium, address, tx.intern(server),
    )  # fmt: skip


def find_binding(tx: Transaction, user_id: UserID, medium: str, address: str) -> ServerName | None:
    """Returns the identity server that the address was bound through, None if it is unknown."""
    row = tx.one(
        "SELECT server_nid FROM threepid_bindings WHERE user_nid = ? AND medium = ? AND address = ? LIMIT 1",
        tx.find(user_id), medium, address,
    )  # fmt: skip
    return None if row is None else ServerName(tx.name(row[0]))


def delete_binding(tx: Transaction, user_id: UserID, medium: str, address: str, server: ServerName) -> None:
    """Notes that the identity server does not tell others any more."""
    tx.run(
        "DELETE FROM threepid_bindings WHERE user_nid = ? AND medium = ? AND address = ? AND server_nid = ?",
        tx.find(user_id), medium, address, tx.find(server),
    )  # fmt: skip


def forget_threepids(tx: Transaction, user_id: UserID) -> None:
    """Deletes the addresses of an account, so that they can be used again."""
    nid = tx.find(user_id)
    tx.run("DELETE FROM threepids WHERE user_nid = ?", nid)
    tx.run("DELETE FROM threepid_bindings WHERE user_nid = ?", nid)


def in_use() -> MatrixError:
    """Returns the error for an address that belongs to another account."""
    return MatrixError(400, "M_THREEPID_IN_USE", "This address belongs to another account.")
