"""Account flags: administrator, guest, locked, suspended, shadow-banned; and rate limits of single accounts."""

from __future__ import annotations

import msgspec

from homeserver.authenticate.tokens import (
    delete_tokens_issued_by,
    delete_tokens_issued_for,
    end_waiting,
    note_token_change,
)
from homeserver.database import Transaction
from homeserver.federation.identifiers import UserID
from homeserver.limits import Bucket


class AccountFlags(msgspec.Struct, frozen=True):
    """The kind of an account. A user without a row has no flag."""

    is_admin: bool = False
    is_guest: bool = False
    is_locked: bool = False
    is_suspended: bool = False
    is_shadow_banned: bool = False


def get_account_flags(tx: Transaction, user_id: UserID) -> AccountFlags:
    """Returns the flags of the user's account."""
    row = tx.one(
        "SELECT is_admin, is_guest, is_locked, is_suspended, is_shadow_banned FROM account_flags WHERE user_nid = ?",
        tx.find(user_id),
    )
    return AccountFlags(*map(bool, row)) if row else AccountFlags()


def store_account_flags(tx: Transaction, user_id: UserID, flags: AccountFlags) -> None:
    """Stores the account's flags. Requests that wait for news are checked again.

    Only administrators act for others, and nobody acts for an administrator: tokens that say otherwise are revoked.
    """
    tx.run(
        "INSERT INTO account_flags (user_nid, is_admin, is_guest, is_locked, is_suspended, is_shadow_banned)"
        " VALUES (?, ?, ?, ?, ?, ?)"
        " ON CONFLICT (user_nid) DO UPDATE SET is_admin = excluded.is_admin, is_guest = excluded.is_guest,"
        " is_locked = excluded.is_locked, is_suspended = excluded.is_suspended,"
        " is_shadow_banned = excluded.is_shadow_banned",
        tx.intern(user_id),
        int(flags.is_admin),
        int(flags.is_guest),
        int(flags.is_locked),
        int(flags.is_suspended),
        int(flags.is_shadow_banned),
    )
    if flags.is_admin:
        delete_tokens_issued_for(tx, user_id)
    else:
        delete_tokens_issued_by(tx, user_id)
    end_waiting(tx, user_id)


def list_flagged(tx: Transaction) -> dict[int, AccountFlags]:
    """Returns the flags of all accounts that ever had one, by the number of the user."""
    rows = tx.all(
        "SELECT user_nid, is_admin, is_guest, is_locked, is_suspended, is_shadow_banned FROM account_flags",
    )
    return {row[0]: AccountFlags(*map(bool, row[1:])) for row in rows}


def find_rate_limit(tx: Transaction, user_id: UserID) -> Bucket | None:
    """Returns the account's own rate limit, None if the usual ones hold. Without `per_second` nothing is limited."""
    row = tx.one("SELECT rate_burst, rate_per_second FROM account_flags WHERE user_nid = ?", tx.find(user_id))
    return None if row is None or row[1] is None else Bucket(row[0], row[1])


def store_rate_limit(tx: Transaction, user_id: UserID, bucket: Bucket | None) -> None:
    """Gives the account a rate limit of its own, or with None the usual ones."""
    burst, per_second = (None, None) if bucket is None else (int(bucket.burst), int(bucket.per_second))
    tx.run(
        "INSERT INTO account_flags (user_nid, is_admin, is_guest, is_locked, is_suspended, rate_burst, rate_per_second)"
        " VALUES (?, 0, 0, 0, 0, ?, ?) ON CONFLICT (user_nid) DO UPDATE SET rate_burst = excluded.rate_burst,"
        " rate_per_second = excluded.rate_per_second",
        tx.intern(user_id),
        burst,
        per_second,
    )
    note_token_change(tx, user_id)


def delete_account_flags(tx: Transaction, user_id: UserID) -> None:
    """Deletes all flags of the user. No request that waits has to be checked."""
    tx.run("DELETE FROM account_flags WHERE user_nid = ?", tx.find(user_id))
    note_token_change(tx, user_id)
