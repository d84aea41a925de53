"""Logging in with a password, and replacing it: what the operations and the account pages have in common.

Spec: client-server-api/#login, #password-management
"""

from __future__ import annotations

import logging

from homeserver import limits
from homeserver.database import Transaction
from homeserver.errors import MatrixError
from homeserver.feature import JsonObject
from homeserver.federation.identifiers import UserID
from homeserver.resources import Resources
from homeserver.users import accounts
from homeserver.users.devices import log_out_everywhere
from homeserver.users.page_sessions import forget_page_sessions
from homeserver.users.passwords import verify_password
from homeserver.users.threepids import identify

# docs/administration.md has this name: programs such as fail2ban look for it.
_log = logging.getLogger("homeserver.features.login")

LOGINS_COUNTER = "homeserver_logins_total"


async def check_password(
    hs: Resources, identifier: JsonObject | None, name: str | None, password: str, *, address: str
) -> tuple[UserID, str | None]:
    """Returns the user, and a new hash to store if the old one has outdated parameters.

    identifier, name: the user, see `identify`. address: the origin of the guess.
    Raises M_FORBIDDEN if the password is wrong, M_USER_DEACTIVATED, or M_LIMIT_EXCEEDED after too many guesses.
    """
    user_id, user = await hs.database.read(_find_account, identifier, name)
    password_hash = None if user is None else user.password_hash
    verdict = await verify_password(hs, user_id, password_hash, password, address=address)
    if user is not None and user.is_deactivated:
        raise deactivated()
    if not verdict.is_right:
        raise accounts.wrong_password()
    return user_id, verdict.new_hash


def _find_account(
    tx: Transaction, identifier: JsonObject | None, name: str | None
) -> tuple[UserID, accounts.User | None]:
    """Returns the user that an identifier means, and the account if there is one."""
    user_id = identify(tx, identifier, name)
    return user_id, accounts.find_user(tx, user_id)


def keep_checked(tx: Transaction, user_id: UserID, new_hash: str | None) -> None:
    """Stores a new hash, in the write that logs the user in. Raises M_USER_DEACTIVATED if the account has ended."""
    if not accounts.is_active(tx, user_id):  # deactivated while the password was checked
        raise deactivated()
    if new_hash is not None:
        accounts.store_password_hash(tx, user_id, new_hash)


def deactivated() -> MatrixError:
    """Returns 403 M_USER_DEACTIVATED."""
    return MatrixError(403, "M_USER_DEACTIVATED", "This account has been deactivated.")


def replace_password(
    tx: Transaction,
    user_id: UserID,
    password_hash: str | None,
    *,
    logout_devices: bool,
    except_device_id: str | None = None,
    except_page_session: str | None = None,
) -> None:
    """Stores a new password; None disables login by password. All browsers and, if so wished, all devices are logged
    out, except the given ones.
    """
    accounts.store_password_hash(tx, user_id, password_hash)
    if logout_devices:
        log_out_everywhere(tx, user_id, except_device_id=except_device_id, except_page_session=except_page_session)
    else:
        forget_page_sessions(tx, user_id, except_token=except_page_session)


def count_login(hs: Resources, outcome: str) -> None:
    """Counts an attempt to log in, in the metrics. outcome: "accepted" or "refused"."""
    hs.metrics.describe(LOGINS_COUNTER, "Attempts to log in.")
    hs.metrics.count(LOGINS_COUNTER, (("outcome", outcome),))


def log_failed_login(address: str, name: object, errcode: str) -> None:
    """Logs a line that programs such as fail2ban follow: docs/administration.md has its format.

    The address comes first, so that nothing in the user's name can be mistaken for it.
    """
    shown = name[: limits.LOGGED_NAME_CHARACTERS_MAX] if isinstance(name, str) else ""
    _log.warning("login failed", extra={"address": address, "user": shown, "errcode": errcode})
