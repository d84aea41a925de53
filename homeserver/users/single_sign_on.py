"""Single sign-on: whom outside providers know our users as, and attempts to log in with a provider.

Theory of operation. A provider knows a person by a *subject*, which never changes. `external_ids` maps it to the user
here; nothing else that a provider says decides who somebody is.

An *attempt* is one visit of one browser to a provider. Its state is a secret that travels through the provider and
back. The cookie of the browser is another one, which does not: both must come back together, so nobody can finish an
attempt that another browser has begun. An attempt takes these steps:

- ASKED: the browser was sent to the provider.
- ANSWERED: the browser has come back. The write that notes this comes before the provider is asked about the answer,
  so that no answer is used twice, even if the first use failed.
- NAMING: the provider's person has no account yet, and chooses a username.
- CONFIRMING: the person is known, and has to agree that a client, or an operation, may go on.

The end of an attempt deletes its row. What breaks off is deleted when it is too old, or by newer ones when there are
too many. Spec: client-server-api/#sso-client-loginauthentication
"""

from __future__ import annotations

import secrets
from collections.abc import Iterable
from enum import IntEnum
from typing import Any

import msgspec
import orjson
from msgspec.structs import replace

from homeserver import limits
from homeserver.authenticate import hash_token
from homeserver.database import Schema, Step, Transaction
from homeserver.encoding import to_json
from homeserver.errors import MatrixError
from homeserver.federation.identifiers import UserID
from homeserver.moments import latest

# number: 1, 2, … in order of creation, so that the oldest can be dropped. target: depends on the goal. person: JSON of
# `Person` while a username is chosen. user_nid: who has come back, 0 until it is known.
SCHEMA = Schema(
    "single_sign_on",
    (
        Step(
            "001_create",
            """
            CREATE TABLE external_ids (
                provider TEXT NOT NULL,
                subject TEXT NOT NULL,
                user_nid INTEGER NOT NULL,
                PRIMARY KEY (provider, subject)
            ) WITHOUT ROWID;
            CREATE INDEX external_ids_of_user ON external_ids (user_nid);
            CREATE TABLE sso_attempts (
                state_hash BLOB PRIMARY KEY,
                number INTEGER NOT NULL,
                browser_hash BLOB NOT NULL,
                provider TEXT NOT NULL,
                goal INTEGER NOT NULL,
                target TEXT NOT NULL,
                nonce TEXT NOT NULL,
                verifier TEXT NOT NULL,
                step INTEGER NOT NULL,
                person TEXT,
                user_nid INTEGER NOT NULL,
                created_ms INTEGER NOT NULL
            );
            CREATE UNIQUE INDEX sso_attempts_by_number ON sso_attempts (number);
            CREATE INDEX sso_attempts_of_user ON sso_attempts (user_nid);
            """,
        ),
    ),
)


class Goal(IntEnum):
    """What an attempt is for, and what its target is.

    CLIENT: a login token for a client; the URL of the client. PAGE: a browser logs in to the pages of this server; the
    path to go on to. STAGE: user-interactive authentication; its session.
    """

    CLIENT = 1
    PAGE = 2
    STAGE = 3


class AttemptStep(IntEnum):
    """See the theory of operation."""

    ASKED = 1
    ANSWERED = 2
    NAMING = 3
    CONFIRMING = 4


class Person(msgspec.Struct, frozen=True):
    """A person who has logged in at a provider. username: a suggestion; email: a verified one. Both may be empty.

    is_named: whether the provider vouches for what the username is made of.
    """

    subject: str
    username: str = ""
    display_name: str = ""
    email: str = ""
    is_named: bool = True


class Attempt(msgspec.Struct, frozen=True):
    """A stored attempt. nonce, verifier: secrets that tie the provider's answers to it (OpenID Connect, PKCE)."""

    state: str
    provider: str
    goal: Goal
    target: str
    nonce: str
    verifier: str
    step: AttemptStep
    person: Person | None = None
    user_id: UserID | None = None


# --- external IDs ---


def find_by_external_id(tx: Transaction, provider: str, subject: str) -> UserID | None:
    """Returns the user whom the provider knows by this subject, None if nobody here is."""
    row = tx.one("SELECT user_nid FROM external_ids WHERE provider = ? AND subject = ?", provider, subject)
    return None if row is None else UserID(tx.name(row[0]))


def list_external_ids(tx: Transaction, user_id: UserID) -> list[tuple[str, str]]:
    """Returns the providers and subjects by which the user can log in, sorted."""
    rows = tx.all(
        "SELECT provider, subject FROM external_ids WHERE user_nid = ? ORDER BY provider, subject", tx.find(user_id)
    )
    return [(row[0], row[1]) for row in rows]


def insert_external_id(tx: Transaction, user_id: UserID, provider: str, subject: str) -> None:
    """Lets a provider's person log in as the user. Raises 409 M_UNKNOWN if the person is another user here."""
    if not provider or not 0 < len(subject) <= limits.users.SSO_SUBJECT_CHARACTERS_MAX:
        raise MatrixError(400, "M_INVALID_PARAM", "An external ID needs a provider, and an ID of 1 to 255 characters.")
    tx.run(
        "INSERT INTO external_ids (provider, subject, user_nid) VALUES (?, ?, ?)"
        " ON CONFLICT (provider, subject) DO NOTHING",
        provider, subject, tx.intern(user_id),
    )  # fmt: skip
    owner = find_by_external_id(tx, provider, subject)
    if owner != user_id:
        raise MatrixError(409, "M_UNKNOWN", f"This external ID of {provider!r} belongs to {owner}.")


def link_external_id(tx: Transaction, user_id: UserID, provider: str, subject: str) -> None:
    """Like `insert_external_id`, for commands. Raises MatrixError 400 too if the user has as many as are allowed."""
    insert_external_id(tx, user_id, provider, subject)
    if len(list_external_ids(tx, user_id)) > limits.users.SSO_IDS_MAX:
        raise MatrixError(
            400, "M_INVALID_PARAM", f"An account may have at most {limits.users.SSO_IDS_MAX} external IDs."
        )


def delete_external_id(tx: Transaction, user_id: UserID, provider: str, subject: str) -> bool:
    """Keeps a provider's person from logging in as the user. Returns False if they could not."""
    return bool(
        tx.run(
            "DELETE FROM external_ids WHERE provider = ? AND subject = ? AND user_nid = ?",
            provider, subject, tx.find(user_id),
        )
    )  # fmt: skip


def replace_external_ids(tx: Transaction, user_id: UserID, pairs: Iterable[tuple[str, str]]) -> None:
    """Makes these pairs of provider and subject the user's only ones, for administrators. Raises 409 M_UNKNOWN."""
    tx.run("DELETE FROM external_ids WHERE user_nid = ?", tx.find(user_id))
    for provider, subject in pairs:
        insert_external_id(tx, user_id, provider, subject)


# --- attempts ---


def create_attempt(tx: Transaction, provider: str, goal: Goal, target: str, browser: str) -> Attempt:
    """Stores a new attempt of a browser. browser: the secret in its cookie."""
    tx.run(
        "DELETE FROM sso_attempts WHERE created_ms <= ? OR created_ms > ?",
        tx.now_ms - limits.users.SSO_ATTEMPT_LIFETIME_MS, latest(tx.now_ms, 0),
    )  # fmt: skip
    (last,) = tx.one("SELECT MAX(number) FROM sso_attempts") or (None,)
    number = (last or 0) + 1
    attempt = Attempt(
        secrets.token_urlsafe(32), provider, goal, target, secrets.token_urlsafe(32), secrets.token_urlsafe(48),
        AttemptStep.ASKED,
    )  # fmt: skip
    tx.run(
        "INSERT INTO sso_attempts (state_hash, number, browser_hash, provider, goal, target, nonce, verifier, step,"
        " user_nid, created_ms) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, 0, ?)",
        hash_token(attempt.state), number, hash_token(browser), provider, goal, target, attempt.nonce,
        attempt.verifier, attempt.step, tx.now_ms,
    )  # fmt: skip
    tx.run("DELETE FROM sso_attempts WHERE number <= ?", number - limits.users.SSO_ATTEMPTS_MAX)
    return attempt


def find_attempt(tx: Transaction, state: str, browser: str) -> Attempt | None:
    """Returns the attempt of this state; None if it is over or too old, or was begun by another browser."""
    row = tx.one(
        "SELECT provider, goal, target, nonce, verifier, step, person, user_nid FROM sso_attempts"
        " WHERE state_hash = ? AND browser_hash = ? AND created_ms > ? AND created_ms <= ?",
        hash_token(state), hash_token(browser), tx.now_ms - limits.users.SSO_ATTEMPT_LIFETIME_MS,
        latest(tx.now_ms, 0),
    )  # fmt: skip
    if row is None:
        return None
    person = None if row[6] is None else Person(**orjson.loads(row[6]))
    user_id = UserID(tx.name(row[7])) if row[7] else None
    return Attempt(state, row[0], Goal(row[1]), row[2], row[3], row[4], AttemptStep(row[5]), person, user_id)


def set_answered(tx: Transaction, state: str, browser: str) -> Attempt | None:
    """Notes that the browser has come back from the provider. Returns None if it may not, or has done so before."""
    attempt = find_attempt(tx, state, browser)
    if attempt is None or attempt.step != AttemptStep.ASKED:
        return None
    _set_step(tx, attempt, AttemptStep.ANSWERED)
    return replace(attempt, step=AttemptStep.ANSWERED)


def set_naming(tx: Transaction, attempt: Attempt, person: Person) -> None:
    """Lets the person choose a username next."""
    text = to_json(person).decode()
    _set_step(tx, attempt, AttemptStep.NAMING, person=text)


def set_confirming(tx: Transaction, attempt: Attempt, user_id: UserID) -> None:
    """Asks the user next whether the attempt's goal is what they want."""
    _set_step(tx, attempt, AttemptStep.CONFIRMING, user_nid=tx.intern(user_id))


def delete_attempt(tx: Transaction, attempt: Attempt) -> bool:
    """Ends an attempt. Returns False if it has ended before, so that only one of two requests goes on."""
    return bool(tx.run("DELETE FROM sso_attempts WHERE state_hash = ?", hash_token(attempt.state)))


def _set_step(tx: Transaction, attempt: Attempt, step: AttemptStep, *, person: Any = None, user_nid: int = 0) -> None:
    tx.run(
        "UPDATE sso_attempts SET step = ?, person = ?, user_nid = ? WHERE state_hash = ?",
        step, person, user_nid, hash_token(attempt.state),
    )  # fmt: skip


def forget_single_sign_on(tx: Transaction, user_id: UserID, erase: bool) -> bool:
    """Deletes the user's attempts, and with an erasure the external IDs.

    Without one these stay, so that the provider does not lead the person to a new account by mistake.
    """
    tx.run("DELETE FROM sso_attempts WHERE user_nid = ?", tx.find(user_id))
    if erase:
        tx.run("DELETE FROM external_ids WHERE user_nid = ?", tx.find(user_id))
    return False
