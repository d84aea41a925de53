"""Validation of email addresses: a person who can open the link in an email to an address owns the address.

Theory of operation. A client asks for an email with a client secret of its own, for one purpose. That begins a
validation, and the email has a link with a token. The page behind the link has a button, because programs that check
email for harm open links. Once the button was pressed the validation is complete, and a client that knows its ID and
the secret may use it: to add the address to an account, to register with it, or to set a new password. Using it ends
it. A client that repeats its request gets the same validation, and another email only if `send_attempt` has grown.

The email names the account that it is about, and its reader agrees to nothing else. So a validation can only be used
for that account, even if the address has got another owner meanwhile.

Spec: client-server-api/#post_matrixclientv3account3pidemailrequesttoken, identity-service-api/#email-associations
"""

from __future__ import annotations

import re
import secrets
from hmac import compare_digest
from typing import Literal
from urllib.parse import urlencode

import msgspec

from homeserver import limits
from homeserver.database import Schema, Step, Transaction
from homeserver.errors import MatrixError, bad_json, invalid_param, missing_param
from homeserver.feature import JsonObject
from homeserver.federation.identifiers import UserID
from homeserver.moments import latest
from homeserver.resources import Resources
from homeserver.users.mail import insert_mail
from homeserver.users.threepids import find_owner, in_use
from homeserver.users.user_interactive import Stage

PATH = "/_homeserver/client/v1/validate_email"
"""The path of the link in emails."""

Purpose = Literal["add", "register", "reset"]

# user_nid: of the account that asked, 0 if none. validated_ms: NULL until the button was pressed.
SCHEMA = Schema(
    "email_validation",
    (
        Step(
            "001_create",
            """
            CREATE TABLE email_validations (
                sid TEXT PRIMARY KEY,
                number INTEGER NOT NULL,
                purpose TEXT NOT NULL,
                user_nid INTEGER NOT NULL,
                address TEXT NOT NULL,
                client_secret TEXT NOT NULL,
                token TEXT NOT NULL,
                send_attempt INTEGER NOT NULL,
                created_ms INTEGER NOT NULL,
                validated_ms INTEGER
            );
            CREATE UNIQUE INDEX email_validations_by_number ON email_validations (number);
            CREATE UNIQUE INDEX email_validations_by_request ON email_validations (client_secret, address, purpose);
            CREATE INDEX email_validations_of_user ON email_validations (user_nid);
            """,
        ),
    ),
)

_SECRET = re.compile(r"\A[0-9a-zA-Z.=_-]{1,255}\Z")
_SUBJECTS: dict[Purpose, str] = {
    "add": "Confirm your email address for {server}",
    "register": "Confirm your email address to register on {server}",
    "reset": "Set a new password on {server}",
}
_TEXTS: dict[Purpose, str] = {
    "add": "Somebody, most likely you, wants to add this email address to {account} on {server}.",
    "register": "Somebody, most likely you, wants to create an account on {server} with this email address.",
    "reset": "Somebody, most likely you, wants to set a new password for {account} on {server}.",
}


class Validation(msgspec.Struct, frozen=True):
    """A validation. validated_ms: when the button was pressed, None if it was not yet."""

    sid: str
    purpose: Purpose
    address: str
    token: str
    send_attempt: int
    validated_ms: int | None


def check_client_secret(client_secret: str) -> None:
    """Raises M_INVALID_PARAM unless it is as the spec wants it."""
    if not _SECRET.match(client_secret):
        raise invalid_param("A client_secret has up to 255 of the characters 0-9 a-z A-Z . = _ -")


def request_validation(
    tx: Transaction,
    purpose: Purpose,
    user_id: UserID | None,
    address: str,
    client_secret: str,
    send_attempt: int,
) -> str:
    """Returns the ID of a validation, as `create_validation` does, if the address can be used for the purpose.

    Raises M_THREEPID_NOT_FOUND or M_THREEPID_IN_USE.
    """
    owner = find_owner(tx, "email", address)
    if purpose == "reset":
        user_id = owner
        if owner is None:
            raise MatrixError(400, "M_THREEPID_NOT_FOUND", "No account has this address.")
    elif owner is not None:
        raise in_use()
    return create_validation(tx, purpose, user_id, address, client_secret, send_attempt)


def create_validation(
    tx: Transaction,
    purpose: Purpose,
    user_id: UserID | None,
    address: str,
    client_secret: str,
    send_attempt: int,
) -> str:
    """Returns the ID of a validation, and sends an email, unless the client has asked for the same one before.

    user_id: the account that the email speaks of, None if there is none yet. address: folded.
    """
    user_nid = tx.intern(user_id) if user_id else 0
    known = _find_requested(tx, purpose, user_nid, address, client_secret)
    if known is not None and known.validated_ms is None and send_attempt > known.send_attempt:
        tx.run("UPDATE email_validations SET send_attempt = ? WHERE sid = ?", send_attempt, known.sid)
    elif known is not None:
        return known.sid
    else:
        known = _store_validation(tx, purpose, user_nid, address, client_secret, send_attempt)
    query = urlencode({"sid": known.sid, "client_secret": client_secret, "token": known.token})
    about = {"server": tx.server.name, "account": f"the account {user_id}" if user_id else "an account"}
    insert_mail(
        tx, user_id, address, _SUBJECTS[purpose].format(**about),
        f"{_TEXTS[purpose].format(**about)}\n\nTo confirm, open this page within a day and press the button:\n\n"
        f"{tx.server.config.base_url}{PATH}?{query}\n\nIf it was not you, ignore this email.\n",
    )  # fmt: skip
    return known.sid


def set_validated(tx: Transaction, sid: str, client_secret: str, token: str) -> Validation | None:
    """Completes a validation: its button was pressed. Returns None if there is none with that token."""
    known = find_link(tx, sid, client_secret, token)
    if known is not None and known.validated_ms is None:
        tx.run("UPDATE email_validations SET validated_ms = ? WHERE sid = ?", tx.now_ms, sid)
    return known


def find_link(tx: Transaction, sid: str, client_secret: str, token: str) -> Validation | None:
    """Returns the validation that a link is about, None if the link is wrong or too old."""
    known = find_validation(tx, sid, client_secret)
    return known if known is not None and compare_digest(known.token.encode(), token.encode()) else None


def find_validation(tx: Transaction, sid: str, client_secret: str, purpose: Purpose | None = None) -> Validation | None:
    """Returns a validation, complete or not, None if it is unknown or of another purpose."""
    row = tx.one(
        "SELECT sid, purpose, address, token, send_attempt, validated_ms FROM email_validations"
        " WHERE sid = ? AND client_secret = ? AND created_ms > ? AND created_ms <= ?",
        sid, client_secret, *_lifetime(tx),
    )  # fmt: skip
    known = None if row is None else Validation(*row)
    return known if known is not None and purpose in (None, known.purpose) else None


def delete_validation(tx: Transaction, sid: str, user_id: UserID) -> None:
    """Ends a validation that is used for an account.

    Raises M_THREEPID_AUTH_FAILED if another request has used it, or if it is for another account.
    """
    row = tx.one("SELECT user_nid FROM email_validations WHERE sid = ?", sid)
    if row is None or row[0] not in (0, tx.find(user_id)):
        raise not_validated()
    tx.run("DELETE FROM email_validations WHERE sid = ?", sid)


def forget_validations(tx: Transaction, user_id: UserID) -> None:
    """Deletes the validations of an account."""
    tx.run("DELETE FROM email_validations WHERE user_nid = ?", tx.find(user_id))


def not_validated() -> MatrixError:
    """Returns the error for a validation that is unknown or not complete."""
    return MatrixError(400, "M_THREEPID_AUTH_FAILED", "The email address is not validated. Open the link in the email.")


def email_stage(purpose: Purpose) -> Stage:
    """Returns the stage `m.login.email.identity`. Its result has the `sid`, `address` and `validated_ms`."""

    def load(tx: Transaction, auth: JsonObject) -> Validation | None:
        given = auth.get("threepid_creds", auth.get("threepidCreds"))  # the older spelling, which Element sends too
        if given is None:
            raise missing_param("threepid_creds is missing in auth.")
        if not isinstance(given, dict):
            raise bad_json("threepid_creds must be an object.")
        sid, client_secret = given.get("sid"), given.get("client_secret")
        if not isinstance(sid, str) or not isinstance(client_secret, str):
            raise bad_json("threepid_creds needs a sid and a client_secret.")
        return find_validation(tx, sid, client_secret, purpose)

    async def check(hs: Resources, auth: JsonObject, found: Validation | None) -> JsonObject:
        if found is None or found.validated_ms is None:
            raise MatrixError(
                401, "M_UNAUTHORIZED", "The email address is not validated yet. Open the link in the email."
            )
        return {"sid": found.sid, "address": found.address, "validated_ms": found.validated_ms}

    return Stage("m.login.email.identity", check, load)


# --- storage ---


def _find_requested(
    tx: Transaction, purpose: Purpose, user_nid: int, address: str, client_secret: str
) -> Validation | None:
    """Returns the validation that a client has asked for before."""
    row = tx.one(
        "SELECT sid, purpose, address, token, send_attempt, validated_ms FROM email_validations"
        " WHERE client_secret = ? AND address = ? AND purpose = ? AND user_nid = ? AND created_ms > ?"
        " AND created_ms <= ?",
        client_secret, address, purpose, user_nid, *_lifetime(tx),
    )  # fmt: skip
    return None if row is None else Validation(*row)


def _lifetime(tx: Transaction) -> tuple[int, int]:
    return tx.now_ms - limits.users.EMAIL_VALIDATION_LIFETIME_MS, latest(tx.now_ms, 0)


def _store_validation(
    tx: Transaction,
    purpose: Purpose,
    user_nid: int,
    address: str,
    client_secret: str,
    send_attempt: int,
) -> Validation:
    """Stores a new validation in place of an older one of the same request. Deletes those that are too many."""
    tx.run(
        "DELETE FROM email_validations WHERE client_secret = ? AND address = ? AND purpose = ?",
        client_secret, address, purpose,
    )  # fmt: skip
    (last,) = tx.one("SELECT MAX(number) FROM email_validations") or (None,)
    number = (last or 0) + 1
    new = Validation(secrets.token_urlsafe(18), purpose, address, secrets.token_urlsafe(24), send_attempt, None)
    tx.run(
        "INSERT INTO email_validations (sid, number, purpose, user_nid, address, client_secret, token, send_attempt,"
        " created_ms) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
        new.sid, number, purpose, user_nid, address, client_secret, new.token, send_attempt,
        tx.now_ms,
    )  # fmt: skip
    tx.run("DELETE FROM email_validations WHERE number <= ?", number - limits.users.EMAIL_VALIDATIONS_MAX)
    return new
