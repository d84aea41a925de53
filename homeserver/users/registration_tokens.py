"""Registration tokens: registration by invitation only. The command line creates and revokes them.

Spec: client-server-api/#token-authenticated-registration
"""

from __future__ import annotations

import re
import secrets
import string
from collections.abc import Mapping
from typing import Any

import msgspec
from msgspec.structs import replace

from homeserver import limits
from homeserver.database import Schema, Step, Transaction
from homeserver.errors import MatrixError, forbidden, invalid_param
from homeserver.feature import JsonObject
from homeserver.resources import Resources
from homeserver.users.user_interactive import Authentication, Stage, read_text

SCHEMA = Schema(
    "registration_tokens",
    (
        Step(
            "create",
            """
            CREATE TABLE registration_tokens (
                token TEXT PRIMARY KEY,
                uses_allowed INTEGER,
                uses INTEGER NOT NULL,
                expires_ms INTEGER,
                created_ms INTEGER NOT NULL
            );
            """,
        ),
    ),
)

STAGE = "m.login.registration_token"
USES_MAX = 1_000_000_000
_ALPHABET = string.ascii_letters + string.digits
_TOKEN = re.compile(r"[0-9A-Za-z._~-]+", re.ASCII)


class RegistrationToken(msgspec.Struct, frozen=True):
    """A token. uses_allowed None: any number of accounts; expires_ms None: never expires."""

    token: str
    uses_allowed: int | None
    uses: int
    expires_ms: int | None
    created_ms: int

    def body(self) -> JsonObject:
        """Returns the token in the form of the admin API. Uses are never pending: only finished accounts count."""
        return {
            "token": self.token,
            "uses_allowed": self.uses_allowed,
            "pending": 0,
            "completed": self.uses,
            "expiry_time": self.expires_ms,
        }

    def is_valid(self, now_ms: int) -> bool:
        """Returns whether an account can be created with the token now."""
        has_uses = self.uses_allowed is None or self.uses < self.uses_allowed
        return has_uses and (self.expires_ms is None or self.expires_ms > now_ms)


def _load(tx: Transaction, auth: JsonObject) -> bool:
    return is_valid_token(tx, read_text(auth, "token"))


async def _check(hs: Resources, auth: JsonObject, loaded: bool) -> str:
    if not loaded:
        raise MatrixError(401, "M_UNAUTHORIZED", "This registration token is not valid.")
    return read_text(auth, "token")


TOKEN_STAGE = Stage(STAGE, _check, _load)
"""The stage of `/register`; its result is the token."""


def note_token_used(tx: Transaction, authentication: Authentication) -> None:
    """Counts the account being created if a token was used. Raises M_FORBIDDEN if the token has ended meanwhile."""
    token: Any = authentication.results.get(STAGE)
    if token is not None:
        if not is_valid_token(tx, token):
            raise forbidden("This registration token is not valid any more.")
        tx.run("UPDATE registration_tokens SET uses = uses + 1 WHERE token = ?", token)


# --- storage, also for the command line ---


def create_token(
    tx: Transaction, token: str | None = None, uses_allowed: int | None = None, expires_ms: int | None = None
) -> RegistrationToken:
    """Stores and returns a new token, with random text unless given. Raises M_INVALID_PARAM if invalid or existing."""
    token = secrets.token_urlsafe(12) if token is None else token
    if _TOKEN.fullmatch(token) is None or len(token) > limits.REGISTRATION_TOKEN_CHARACTERS_MAX:
        raise invalid_param("A registration token must have 1 to 64 of the characters 0-9, A-Z, a-z and - . _ ~")
    if uses_allowed is not None and not 1 <= uses_allowed <= USES_MAX:
        raise invalid_param(f"A token must allow at least one use, and at most {USES_MAX}.")
    added = tx.run(
        "INSERT INTO registration_tokens (token, uses_allowed, uses, expires_ms, created_ms) VALUES (?, ?, 0, ?, ?)"
        " ON CONFLICT (token) DO NOTHING",
        token, uses_allowed, expires_ms, tx.now_ms,
    )  # fmt: skip
    if not added:
        raise invalid_param("This token already exists.")
    return RegistrationToken(token, uses_allowed, 0, expires_ms, tx.now_ms)


def choose_token(length: int) -> str:
    """Returns random text of this length for a token."""
    return "".join(secrets.choice(_ALPHABET) for _ in range(length))


def replace_token(tx: Transaction, token: str, changes: Mapping[str, int | None]) -> RegistrationToken | None:
    """Changes `uses_allowed` and `expiry_time`, as far as they are given. Returns None if there is no such token.

    Without any use left, a token stays, and nobody can register with it.
    """
    found = next((each for each in list_tokens(tx) if each.token == token), None)
    if found is None:
        return None
    uses_allowed = changes.get("uses_allowed", found.uses_allowed)
    if uses_allowed is not None and not 0 <= uses_allowed <= USES_MAX:
        raise invalid_param(f"uses_allowed must be null, or from 0 to {USES_MAX}.")
    changed = replace(found, uses_allowed=uses_allowed, expires_ms=changes.get("expiry_time", found.expires_ms))
    tx.run(
        "UPDATE registration_tokens SET uses_allowed = ?, expires_ms = ? WHERE token = ?",
        changed.uses_allowed, changed.expires_ms, token,
    )  # fmt: skip
    return changed


def list_tokens(tx: Transaction) -> list[RegistrationToken]:
    """Returns all tokens, used-up ones included, oldest first."""
    rows = tx.all(
        "SELECT token, uses_allowed, uses, expires_ms, created_ms FROM registration_tokens ORDER BY created_ms, token"
    )
    return [RegistrationToken(*row) for row in rows]


def delete_token(tx: Transaction, token: str) -> bool:
    """Deletes a token. Returns False if there is none."""
    return bool(tx.run("DELETE FROM registration_tokens WHERE token = ?", token))


def is_valid_token(tx: Transaction, token: str) -> bool:
    """Returns whether an account can be created with the token now."""
    if _TOKEN.fullmatch(token) is None:
        return False
    row = tx.one(
        "SELECT 1 FROM registration_tokens WHERE token = ? AND (uses_allowed IS NULL OR uses < uses_allowed)"
        " AND (expires_ms IS NULL OR expires_ms > ?)",
        token, tx.now_ms,
    )  # fmt: skip
    return row is not None
