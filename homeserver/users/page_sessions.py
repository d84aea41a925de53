"""Log-ins to the account pages: a browser that has shown whose it is, for some hours.

Theory of operation. A log-in, by whatever method, creates a session with a new random token, and only its hash is
stored. The browser keeps the token in a cookie that scripts cannot read and that requests of other sites do not carry,
except when a person follows a link. A token from before the log-in is never reused, so nobody can prepare a browser
with a session that they know. A session has no rights in the Matrix API.

Sessions end with their age, with `delete_page_session` (the person logs out), when the password changes, when the user
logs out everywhere, and with the account. An account that is locked keeps its sessions, but the pages refuse it.
"""

from __future__ import annotations

import hashlib
import re
from base64 import urlsafe_b64encode
from typing import Literal

import msgspec

from homeserver import limits
from homeserver.api.cookies import cookie_name, write_cookie
from homeserver.authenticate import AccountFlags, get_account_flags, hash_token, new_token
from homeserver.database import Schema, Step, Transaction
from homeserver.errors import MatrixError
from homeserver.federation.identifiers import UserID
from homeserver.moments import is_recent
from homeserver.users.accounts import is_active

SCHEMA = Schema(
    "page_sessions",
    (
        Step(
            "001_create",
            """
            CREATE TABLE page_sessions (
                token_hash BLOB PRIMARY KEY,
                user_nid INTEGER NOT NULL,
                method TEXT NOT NULL,
                created_ms INTEGER NOT NULL,
                address TEXT NOT NULL,
                user_agent TEXT NOT NULL
            );
            CREATE INDEX page_sessions_of_user ON page_sessions (user_nid, created_ms);
            CREATE INDEX page_sessions_by_age ON page_sessions (created_ms);
            """,
        ),
    ),
)

Method = Literal["password", "passkey", "sso", "registration"]
"""How a person has logged in."""

PAGES_PATH = "/_homeserver/account/"
"""The path of the account pages: everything below it is a page."""

# The characters of a path and a query. "//" and "\" at the beginning would make browsers go to another server.
_LOCAL = re.compile(
    re.escape(PAGES_PATH) + r"[A-Za-z0-9._~!$&'()*+,;=:@%/-]*(?:\?[A-Za-z0-9._~!$&'()*+,;=:@%/?\[\]-]*)?"
)
_USER_AGENT_CHARACTERS_MAX = 255


class PageSession(msgspec.Struct, frozen=True):
    """A browser that is logged in. created_ms: when its user last showed who they are; logging in again renews it."""

    user_id: UserID
    method: Method
    created_ms: int
    flags: AccountFlags


def create_page_session(
    tx: Transaction, user_id: UserID, method: Method, *, address: str, user_agent: str, is_confirmed: bool = True
) -> str:
    """Returns the token of a new session. Raises MatrixError if the account may not log in, see `check_may_enter`.

    is_confirmed: whether the person has just shown who they are. If not, dangerous actions ask for that.
    """
    check_may_enter(tx, user_id)
    user_nid = tx.intern(user_id)
    oldest_ms = tx.now_ms - limits.PAGE_SESSION_LIFETIME_MS
    tx.run("DELETE FROM page_sessions WHERE created_ms < ?", oldest_ms)
    tx.run(
        "DELETE FROM page_sessions WHERE user_nid = ? AND created_ms <= COALESCE(("
        "SELECT created_ms FROM page_sessions WHERE user_nid = ? ORDER BY created_ms DESC LIMIT 1 OFFSET ?), 0)",
        user_nid, user_nid, limits.PAGE_SESSIONS_PER_USER_MAX - 1,
    )  # fmt: skip
    token = new_token("hsps")
    created_ms = tx.now_ms if is_confirmed else tx.now_ms - limits.PAGE_CONFIRMATION_MS
    tx.run(
        "INSERT INTO page_sessions (token_hash, user_nid, method, created_ms, address, user_agent)"
        " VALUES (?, ?, ?, ?, ?, ?)",
        hash_token(token), user_nid, method, created_ms, address, user_agent[:_USER_AGENT_CHARACTERS_MAX],
    )  # fmt: skip
    return token


def find_page_session(tx: Transaction, token: str) -> PageSession | None:
    """Returns the session of a token. None if there is none, or it is too old, or the account has ended."""
    row = tx.one("SELECT user_nid, method, created_ms FROM page_sessions WHERE token_hash = ?", hash_token(token))
    if row is None or not is_recent(row[2], tx.now_ms, limits.PAGE_SESSION_LIFETIME_MS):
        return None
    user_id = UserID(tx.name(row[0]))
    if not is_active(tx, user_id):
        return None
    return PageSession(user_id, row[1], row[2], get_account_flags(tx, user_id))


def check_may_enter(tx: Transaction, user_id: UserID) -> None:
    """Raises MatrixError if the account has ended, is locked, or is a guest's."""
    if not is_active(tx, user_id):
        raise MatrixError(403, "M_USER_DEACTIVATED", "This account has been deactivated.")
    flags = get_account_flags(tx, user_id)
    if flags.is_locked:
        raise MatrixError(401, "M_USER_LOCKED", "This account has been locked by the people who run this server.")
    if flags.is_guest:
        raise MatrixError(403, "M_GUEST_ACCESS_FORBIDDEN", "Guests have no account pages.")


def delete_page_session(tx: Transaction, token: str) -> None:
    """Ends one session."""
    tx.run("DELETE FROM page_sessions WHERE token_hash = ?", hash_token(token))


def forget_page_sessions(tx: Transaction, user_id: UserID, *, except_token: str | None = None) -> None:
    """Ends all sessions of a user, except one."""
    kept = b"" if except_token is None else hash_token(except_token)
    tx.run("DELETE FROM page_sessions WHERE user_nid = ? AND token_hash <> ?", tx.find(user_id), kept)


# --- in the browser ---


def session_cookie(base_url: str) -> str:
    """Returns the name of the cookie with the token of a session."""
    return cookie_name("homeserver-session", base_url)


def set_session_cookie(base_url: str, token: str) -> str:
    """Returns the Set-Cookie header that stores the token of a session; the empty token deletes it."""
    age_s = limits.PAGE_SESSION_LIFETIME_MS // 1000 if token else 0
    return write_cookie(session_cookie(base_url), token, base_url, max_age_s=age_s)


def form_token(token: str) -> str:
    """Returns the token that the forms of a session carry. It follows from the cookie, which no other site can read."""
    return urlsafe_b64encode(hashlib.sha256(b"form\0" + token.encode()).digest()).decode().rstrip("=")


def local_path(text: str | None) -> str:
    """Returns a path below PAGES_PATH to go on to after a log-in; PAGES_PATH itself if the text is not one."""
    if text is None or len(text) > limits.http.PATH_CHARACTERS_MAX or _LOCAL.fullmatch(text) is None:
        return PAGES_PATH
    return PAGES_PATH if _leaves(text) else text


def _leaves(path: str) -> bool:
    """Returns whether a browser would resolve the path to one outside the pages, as with "..", plain or encoded."""
    segments = path.partition("?")[0].lower().replace("%2e", ".").replace("%2f", "/").replace("%5c", "/").split("/")
    return ".." in segments or "." in segments or "" in segments[1:-1]
