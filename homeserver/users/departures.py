"""The end of accounts: what one write does at once, and the row that says what is still to do.

Spec: client-server-api/#deactivating-an-account. `homeserver/features/account.py` has the theory of operation.
"""

from __future__ import annotations

from collections.abc import Sequence

from homeserver.database import Schema, Step, Transaction
from homeserver.errors import MatrixError
from homeserver.federation.identifiers import UserID
from homeserver.resources import ForgetUser
from homeserver.rooms.erasure import delete_erasure, note_erased
from homeserver.users.accounts import find_user, no_account, set_active, set_deactivated

SCHEMA = Schema(
    "account",
    (Step("create", "CREATE TABLE departures (user_nid INTEGER PRIMARY KEY);"),),
)

WAKE_KEY = "departures"
"""The stream key of the worklist that finishes deactivations."""


def end_account(tx: Transaction, forgetters: Sequence[ForgetUser], user_id: UserID, *, erase: bool) -> None:
    """Ends an account, and notes that its user has to leave their rooms. Raises M_NOT_FOUND if there is none."""
    if find_user(tx, user_id) is None:
        raise no_account(user_id)
    set_deactivated(tx, user_id, erase=erase)
    tx.next_position(WAKE_KEY)
    note_departure(tx, user_id)
    if erase:
        note_erased(tx, user_id)
    for forget_user in forgetters:
        forget_user(tx, user_id, erase)


def reopen_account(tx: Transaction, user_id: UserID) -> None:
    """Opens a deactivated account again: without password, devices and rooms. Raises M_NOT_FOUND if there is none.

    Raises 409 M_UNKNOWN while the user is still leaving their rooms: the new account would lose what it does meanwhile.
    """
    user = find_user(tx, user_id)
    if user is None:
        raise no_account(user_id)
    if is_departing(tx, user_id):
        raise MatrixError(409, "M_UNKNOWN", "The account is still being deactivated. Try again in a moment.")
    if user.is_deactivated:
        set_active(tx, user_id)
        delete_erasure(tx, user_id)


def is_departing(tx: Transaction, user_id: UserID) -> bool:
    """Returns whether the deactivation of the account is not finished yet."""
    return tx.one("SELECT 1 FROM departures WHERE user_nid = ?", tx.find(user_id)) is not None


def note_departure(tx: Transaction, user_id: UserID) -> None:
    """Notes that the user has to leave their rooms."""
    tx.run("INSERT INTO departures (user_nid) VALUES (?) ON CONFLICT (user_nid) DO NOTHING", tx.intern(user_id))


def list_departures(tx: Transaction) -> list[UserID]:
    """Returns the users whose deactivation has begun but is not finished."""
    return [UserID(name) for name in tx.names(tx.values("SELECT user_nid FROM departures")).values()]


def delete_departure(tx: Transaction, user_id: UserID) -> None:
    """Notes that the deactivation is finished."""
    tx.run("DELETE FROM departures WHERE user_nid = ?", tx.find(user_id))
