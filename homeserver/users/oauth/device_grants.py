"""Device grants: a client without a browser shows a code, which its user types on a page elsewhere.

Theory of operation. `create_device_grant` gives the client two codes: a long one, by which it polls the token endpoint,
and a short one for people. On the page a user, who is logged in there, types the short one: `open_device_grant` shows
which client asks, from where; `approve_device_grant` or `refuse_device_grant` decides, once. The next poll gets the
tokens and deletes the row, so each code is good for one session. A client that polls too soon has to wait longer each
time, and loses its code in the end.

Attackers may start a grant of their own and send its short code to somebody. So the page must show the client and where
it is, and must ask even if the code came in the page's URL. Spec: client-server-api/#device-authorisation-flow,
RFC 8628
"""

from __future__ import annotations

import secrets

import msgspec

from homeserver import limits
from homeserver.authenticate import hash_token, new_token
from homeserver.database import Transaction
from homeserver.errors import MatrixError, not_found
from homeserver.federation.identifiers import UserID
from homeserver.moments import is_ahead, is_recent, latest
from homeserver.resources import Resources
from homeserver.users.accounts import is_active
from homeserver.users.oauth.clients import Client, find_client, note_client_used
from homeserver.users.oauth.errors import OAuthError
from homeserver.users.oauth.scopes import Scope, parse_scope

# Without vowels, so that no words come out, and without what looks alike. Spec: RFC 8628, section 6.1
_ALPHABET = "BCDFGHJKLMNPQRSTVWXZ"
_LENGTH = 8


class DeviceGrant(msgspec.Struct, frozen=True):
    """A client that waits for a person, as that person sees it. address, user_agent: of the client."""

    code_hash: bytes
    client: Client
    scope: Scope
    address: str
    user_agent: str


class DeviceCodes(msgspec.Struct, frozen=True):
    """New codes. user_code: as people read it, with a dash in the middle."""

    device_code: str
    user_code: str


class Poll(msgspec.Struct, frozen=True):
    """A device grant as the token endpoint sees it, with the methods by which Authlib asks about it.

    user_id: who has approved it. expired: also if the client did not slow down.
    """

    code_hash: bytes
    client_id: str
    scope: str
    user_id: UserID | None
    is_refused: bool
    polled_ms: int
    interval_ms: int
    expired: bool

    def get_client_id(self) -> str:
        return self.client_id

    def get_scope(self) -> str:
        return self.scope

    def get_user_code(self) -> bytes:
        """Returns what Authlib hands back to ask for the decision."""
        return self.code_hash

    def is_expired(self) -> bool:
        return self.expired


def create_device_grant(tx: Transaction, client: Client, scope: Scope, address: str, user_agent: str) -> DeviceCodes:
    """Stores a new grant that waits for a user. Raises OAuthError 503 if there are too many."""
    tx.run(
        "DELETE FROM oauth_device_grants WHERE expires_ms <= ? OR expires_ms > ?",
        tx.now_ms, latest(tx.now_ms, limits.users.OAUTH_DEVICE_CODE_LIFETIME_MS),
    )  # fmt: skip
    (count,) = tx.one("SELECT COUNT(*) FROM oauth_device_grants") or (0,)
    if count >= limits.users.OAUTH_DEVICE_GRANTS_MAX:
        raise OAuthError("temporarily_unavailable", "Too many clients are waiting. Try again later.", status=503)
    device_code = new_token("hsdc")
    user_code = "".join(secrets.choice(_ALPHABET) for _ in range(_LENGTH))
    tx.run(
        "INSERT INTO oauth_device_grants (code_hash, user_code, client_id, scope, address, user_agent, is_refused,"
        " polled_ms, interval_ms, expires_ms) VALUES (?, ?, ?, ?, ?, ?, 0, ?, ?, ?)",
        hash_token(device_code), user_code, client.client_id, scope.text, address,
        user_agent[: limits.users.OAUTH_USER_AGENT_CHARACTERS_MAX], 0, limits.users.OAUTH_POLL_INTERVAL_MS,
        tx.now_ms + limits.users.OAUTH_DEVICE_CODE_LIFETIME_MS,
    )  # fmt: skip
    note_client_used(tx, client.client_id)
    return DeviceCodes(device_code, f"{user_code[: _LENGTH // 2]}-{user_code[_LENGTH // 2 :]}")


async def open_device_grant(hs: Resources, user_id: UserID, user_code: str) -> DeviceGrant:
    """Returns the grant with a code that a user has typed, however it is written.

    Raises M_NOT_FOUND, also if someone has decided about it, and M_LIMIT_EXCEEDED for a user who guesses.
    """
    hs.rate_limits.take("oauth_user_code", user_id, hs.now_ms())
    found = await hs.database.read(find_device_grant, user_code)
    if found is None:
        raise not_found("This code is not known, or has expired. Start again on the other device.")
    return found


def find_device_grant(tx: Transaction, user_code: str) -> DeviceGrant | None:
    """Returns the grant with this code that waits for a decision."""
    letters = "".join(each for each in user_code.upper()[: 4 * _LENGTH] if each in _ALPHABET)
    row = tx.one(
        "SELECT code_hash, client_id, scope, address, user_agent, expires_ms FROM oauth_device_grants"
        " WHERE user_code = ? AND user_nid IS NULL AND is_refused = 0",
        letters,
    )
    if row is None or not is_ahead(row[5], tx.now_ms, limits.users.OAUTH_DEVICE_CODE_LIFETIME_MS):
        return None
    client = find_client(tx, row[1])
    return None if client is None else DeviceGrant(row[0], client, parse_scope(row[2]), row[3], row[4])


def approve_device_grant(tx: Transaction, grant: DeviceGrant, user_id: UserID) -> None:
    """Lets the client in. Raises M_NOT_FOUND if the code has expired or was used, M_USER_DEACTIVATED if the account has
    ended meanwhile.
    """
    if not is_active(tx, user_id):
        raise MatrixError(403, "M_USER_DEACTIVATED", "This account has been deactivated.")
    _note_decision(tx, grant, tx.intern(user_id))


def refuse_device_grant(tx: Transaction, grant: DeviceGrant) -> None:
    """Keeps the client out. Raises M_NOT_FOUND if the code has expired or was used."""
    _note_decision(tx, grant, None)


def _note_decision(tx: Transaction, grant: DeviceGrant, user_nid: int | None) -> None:
    decided = tx.run(
        "UPDATE oauth_device_grants SET user_nid = ?, is_refused = ? WHERE code_hash = ? AND user_nid IS NULL"
        " AND is_refused = 0 AND expires_ms > ?",
        user_nid, int(user_nid is None), grant.code_hash, tx.now_ms,
    )  # fmt: skip
    if not decided:
        raise not_found("This code has expired, or has been used. Start again on the other device.")


# --- the client's side ---


def find_poll(tx: Transaction, code_hash: bytes) -> Poll | None:
    """Returns the grant that a client polls."""
    row = tx.one(
        "SELECT client_id, scope, user_nid, is_refused, polled_ms, interval_ms, expires_ms FROM oauth_device_grants"
        " WHERE code_hash = ?",
        code_hash,
    )
    if row is None:
        return None
    client_id, scope, user_nid, is_refused, polled_ms, interval_ms, expires_ms = row
    expired = not is_ahead(expires_ms, tx.now_ms, limits.users.OAUTH_DEVICE_CODE_LIFETIME_MS)
    expired = expired or interval_ms > limits.users.OAUTH_POLL_INTERVAL_MS_MAX
    user_id = None if user_nid is None else UserID(tx.name(user_nid))
    return Poll(code_hash, client_id, scope, user_id, bool(is_refused), polled_ms, interval_ms, expired)


def note_poll(tx: Transaction, poll: Poll) -> bool:
    """Notes that the client has asked. Returns whether it asked too soon; then it has to wait longer from now on."""
    too_soon = bool(poll.polled_ms) and is_recent(poll.polled_ms, tx.now_ms, poll.interval_ms)
    tx.run(
        "UPDATE oauth_device_grants SET polled_ms = ?, interval_ms = interval_ms + ? WHERE code_hash = ?",
        tx.now_ms, limits.users.OAUTH_POLL_INTERVAL_MS if too_soon else 0, poll.code_hash,
    )  # fmt: skip
    return too_soon


def delete_device_grant(tx: Transaction, code_hash: bytes) -> None:
    """Deletes a grant, because the client has its tokens."""
    tx.run("DELETE FROM oauth_device_grants WHERE code_hash = ?", code_hash)
