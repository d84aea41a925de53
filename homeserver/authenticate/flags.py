"""Account flags: administrator, guest, locked, suspended."""

from __future__ import annotations

from dataclasses import dataclass

from homeserver.authenticate.tokens import end_waiting, note_token_change
from homeserver.database import Transaction
from homeserver.federation.identifiers import UserID


@dataclass(frozen=True, slots=True)
class AccountFlags:
    """The kind of an account. A user without a row has no flag."""

    is_admin: bool = False
    is_guest: bool = False
    is_locked: bool = False
    is_suspended: bool = False


def get_account_flags(tx: Transaction, user_id: UserID) -> AccountFlags:
    """Returns the flags of the user's account."""
    row = tx.one(
        "SELECT is_admin, is_guest, is_locked, is_suspended FROM account_flags WHERE user_nid = ?", tx.find(user_id)
    )
    return AccountFlags(*map(bool, row)) if row else AccountFlags()


def store_account_flags(tx: Transaction, user_id: UserID, flags: AccountFlags) -> None:
    """Stores the account's flags. Requests that wait for news are checked again."""
    tx.run(
        "INSERT INTO account_flags (user_nid, is_admin, is_guest, is_locked, is_suspended) VALUES (?, ?, ?, ?, ?)"
        " ON CONFLICT (user_nid) DO UPDATE SET is_admin = excluded.is_admin, is_guest = excluded.is_guest,"
        " is_locked = excluded.is_locked, is_suspended = excluded.is_suspended",
        tx.intern(user_id),
        int(flags.is_admin),
        int(flags.is_guest),
        int(flags.is_locked),
        int(flags.is_suspended),
    )
    end_waiting(tx, user_id)


def delete_account_flags(tx: Transaction, user_id: UserID) -> None:
    """Deletes all flags of the user. No request that waits has to be checked."""
    tx.run("DELETE FROM account_flags WHERE user_nid = ?", tx.find(user_id))
    note_token_change(tx, user_id)
