"""Passkeys: logging in to the account pages with a key that a device keeps, instead of a password. Spec: WebAuthn

Theory of operation. A browser gets a challenge, which is bound to it and good for one answer within minutes. It lets
the person choose a key and, to be sure that it is this person, asks for a fingerprint or a PIN. The answer is the
challenge signed with the key, for the origin of this server only, so a page elsewhere cannot obtain one. py_webauthn
checks it. What is stored of a key is public.

The library imports much, so it is imported with the first passkey, on a thread.
"""

from __future__ import annotations

import hashlib
import secrets
from urllib.parse import urlsplit

import msgspec

from homeserver import limits
from homeserver.authenticate import hash_token
from homeserver.config import Config
from homeserver.database import Schema, Step, Transaction
from homeserver.errors import MatrixError, forbidden, invalid_param
from homeserver.federation.identifiers import UserID
from homeserver.moments import is_recent, latest
from homeserver.resources import Resources

# binding: the hash of what a browser's forms carry.
SCHEMA = Schema(
    "passkeys",
    (
        Step(
            "001_create",
            """
            CREATE TABLE passkeys (
                credential_id BLOB PRIMARY KEY,
                user_nid INTEGER NOT NULL,
                public_key BLOB NOT NULL,
                sign_count INTEGER NOT NULL,
                name TEXT NOT NULL,
                created_ms INTEGER NOT NULL,
                used_ms INTEGER
            );
            CREATE INDEX passkeys_of_user ON passkeys (user_nid);
            CREATE TABLE passkey_challenges (
                binding BLOB PRIMARY KEY,
                challenge BLOB NOT NULL,
                created_ms INTEGER NOT NULL
            );
            CREATE INDEX passkey_challenges_by_age ON passkey_challenges (created_ms);
            """,
        ),
    ),
)


class Passkey(msgspec.Struct, frozen=True):
    """A passkey as stored. used_ms: of the last log-in; None if there was none."""

    credential_id: bytes
    user_id: UserID
    public_key: bytes
    sign_count: int
    name: str
    created_ms: int
    used_ms: int | None


class NewPasskey(msgspec.Struct, frozen=True):
    """What is known of a key once its answer has been checked."""

    credential_id: bytes
    public_key: bytes
    sign_count: int


def are_passkeys_possible(config: Config) -> bool:
    """Returns whether browsers offer passkeys at the address of this server: over TLS, and on the own machine."""
    parts = urlsplit(config.base_url)
    return parts.scheme == "https" or parts.hostname == "localhost"


# --- challenges ---


def create_challenge(tx: Transaction, binding: str) -> bytes:
    """Returns a new challenge for the browser whose forms carry `binding`. It replaces the browser's previous one."""
    tx.run(
        "DELETE FROM passkey_challenges WHERE created_ms < ? OR created_ms > ?",
        tx.now_ms - limits.PASSKEY_CHALLENGE_LIFETIME_MS, latest(tx.now_ms, 0),
    )  # fmt: skip
    tx.run(
        "DELETE FROM passkey_challenges WHERE created_ms <= COALESCE(("
        "SELECT created_ms FROM passkey_challenges ORDER BY created_ms DESC LIMIT 1 OFFSET ?), 0)",
        limits.PASSKEY_CHALLENGES_MAX - 1,
    )
    challenge = secrets.token_bytes(32)
    tx.run(
        "INSERT INTO passkey_challenges (binding, challenge, created_ms) VALUES (?, ?, ?)"
        " ON CONFLICT (binding) DO UPDATE SET challenge = excluded.challenge, created_ms = excluded.created_ms",
        hash_token(binding), challenge, tx.now_ms,
    )  # fmt: skip
    return challenge


def get_challenge(tx: Transaction, binding: str) -> bytes:
    """Returns the browser's challenge. Raises M_FORBIDDEN if it has none, or took too long."""
    row = tx.one("SELECT challenge, created_ms FROM passkey_challenges WHERE binding = ?", hash_token(binding))
    if row is None or not is_recent(row[1], tx.now_ms, limits.PASSKEY_CHALLENGE_LIFETIME_MS):
        raise _too_late()
    return bytes(row[0])


def delete_challenge(tx: Transaction, binding: str, challenge: bytes) -> None:
    """Ends a challenge, in the write that its answer is for. Raises M_FORBIDDEN if it has been answered already."""
    done = tx.run(
        "DELETE FROM passkey_challenges WHERE binding = ? AND challenge = ?", hash_token(binding), challenge
    )  # fmt: skip
    if not done:
        raise _too_late()


def _too_late() -> MatrixError:
    return forbidden("That took too long, or was done already. Try again.")


# --- what browsers are asked, and what they answer ---


async def make_creation_options(hs: Resources, user_id: UserID, known: list[Passkey], challenge: bytes) -> str:
    """Returns the JSON with which a browser creates a passkey for the user, unless it has one of the known ones."""
    return await hs.workers.run(_creation_options, hs.config, user_id, known, challenge)


def _creation_options(config: Config, user_id: UserID, known: list[Passkey], challenge: bytes) -> str:
    from webauthn import generate_registration_options, options_to_json  # late on purpose, see above
    from webauthn.helpers import structs

    options = generate_registration_options(
        rp_id=_host(config),
        rp_name=config.server_name,
        user_id=hashlib.sha256(user_id.encode()).digest(),
        user_name=user_id,
        challenge=challenge,
        timeout=limits.PASSKEY_CHALLENGE_LIFETIME_MS,
        authenticator_selection=structs.AuthenticatorSelectionCriteria(
            resident_key=structs.ResidentKeyRequirement.REQUIRED,
            user_verification=structs.UserVerificationRequirement.REQUIRED,
        ),
        exclude_credentials=[structs.PublicKeyCredentialDescriptor(id=each.credential_id) for each in known],
    )
    return options_to_json(options)


async def make_request_options(hs: Resources, challenge: bytes) -> str:
    """Returns the JSON with which a browser asks the person to choose a passkey."""
    return await hs.workers.run(_request_options, hs.config, challenge)


def _request_options(config: Config, challenge: bytes) -> str:
    from webauthn import generate_authentication_options, options_to_json  # late on purpose, see above
    from webauthn.helpers import structs

    options = generate_authentication_options(
        rp_id=_host(config),
        challenge=challenge,
        timeout=limits.PASSKEY_CHALLENGE_LIFETIME_MS,
        user_verification=structs.UserVerificationRequirement.REQUIRED,
    )
    return options_to_json(options)


async def check_new_passkey(hs: Resources, answer: str, challenge: bytes) -> NewPasskey:
    """Returns the key that a browser has created. Raises M_INVALID_PARAM if the answer does not prove it."""
    return await hs.workers.run(_check_new, hs.config, answer, challenge)


def _check_new(config: Config, answer: str, challenge: bytes) -> NewPasskey:
    from webauthn import verify_registration_response  # late on purpose, see above

    try:
        verified = verify_registration_response(
            credential=_fitting(answer),
            expected_challenge=challenge,
            expected_rp_id=_host(config),
            expected_origin=_origin(config),
            require_user_verification=True,
        )
    except Exception as error:  # the library raises errors of many kinds if the bytes are nonsense
        raise invalid_param("This passkey cannot be used.") from error
    if len(verified.credential_id) > limits.PASSKEY_ID_BYTES_MAX:
        raise invalid_param("This passkey cannot be used.")
    return NewPasskey(verified.credential_id, verified.credential_public_key, verified.sign_count)


async def check_passkey(hs: Resources, passkey: Passkey, answer: str, challenge: bytes) -> int:
    """Returns the key's new count of signatures. Raises M_FORBIDDEN unless the answer is by this key."""
    return await hs.workers.run(_check, hs.config, passkey, answer, challenge)


def _check(config: Config, passkey: Passkey, answer: str, challenge: bytes) -> int:
    from webauthn import verify_authentication_response  # late on purpose, see above

    try:
        verified = verify_authentication_response(
            credential=_fitting(answer),
            expected_challenge=challenge,
            expected_rp_id=_host(config),
            expected_origin=_origin(config),
            credential_public_key=passkey.public_key,
            credential_current_sign_count=passkey.sign_count,
            require_user_verification=True,
        )
    except Exception as error:  # the library raises errors of many kinds if the bytes are nonsense
        raise wrong_passkey() from error
    return verified.new_sign_count


def read_credential_id(answer: str) -> bytes:
    """Returns the ID of the key that a browser's answer is by. Raises M_FORBIDDEN if it cannot be read."""
    from webauthn.helpers import parse_authentication_credential_json  # late on purpose, see above

    try:
        return parse_authentication_credential_json(_fitting(answer)).raw_id
    except Exception as error:  # as above
        raise wrong_passkey() from error


def wrong_passkey() -> MatrixError:
    """Returns 403 M_FORBIDDEN."""
    return forbidden("This passkey is not known here, or did not work.")


def _fitting(answer: str) -> str:
    if len(answer) > limits.PASSKEY_ANSWER_CHARACTERS_MAX:
        raise ValueError("the answer is too long")
    return answer


def _host(config: Config) -> str:
    return urlsplit(config.base_url).hostname or ""


def _origin(config: Config) -> str:
    parts = urlsplit(config.base_url)
    return f"{parts.scheme}://{parts.netloc}"


# --- storage ---


def create_passkey(tx: Transaction, user_id: UserID, new: NewPasskey, name: str) -> None:
    """Stores a new passkey. Raises M_INVALID_PARAM if it is known already, M_USER_LIMIT_EXCEEDED for too many."""
    user_nid = tx.intern(user_id)
    (count,) = tx.one("SELECT COUNT(*) FROM passkeys WHERE user_nid = ?", user_nid) or (0,)
    if count >= limits.PASSKEYS_PER_USER_MAX:
        raise MatrixError(403, "M_USER_LIMIT_EXCEEDED", "You have too many passkeys. Remove some of them.")
    added = tx.run(
        "INSERT INTO passkeys (credential_id, user_nid, public_key, sign_count, name, created_ms)"
        " VALUES (?, ?, ?, ?, ?, ?) ON CONFLICT (credential_id) DO NOTHING",
        new.credential_id, user_nid, new.public_key, new.sign_count, name, tx.now_ms,
    )  # fmt: skip
    if not added:
        raise invalid_param("This passkey is in use already.")


def find_passkey(tx: Transaction, credential_id: bytes) -> Passkey | None:
    """Returns the passkey with this ID."""
    row = tx.one(
        "SELECT user_nid, public_key, sign_count, name, created_ms, used_ms FROM passkeys WHERE credential_id = ?",
        credential_id,
    )
    if row is None:
        return None
    return Passkey(credential_id, UserID(tx.name(row[0])), bytes(row[1]), row[2], row[3], row[4], row[5])


def list_passkeys(tx: Transaction, user_id: UserID) -> list[Passkey]:
    """Returns the passkeys of a user, oldest first."""
    rows = tx.all(
        "SELECT credential_id, public_key, sign_count, name, created_ms, used_ms FROM passkeys WHERE user_nid = ?"
        " ORDER BY created_ms, credential_id",
        tx.find(user_id),
    )
    return [Passkey(bytes(row[0]), user_id, bytes(row[1]), *row[2:]) for row in rows]


def note_passkey_used(tx: Transaction, passkey: Passkey, sign_count: int) -> None:
    """Notes a log-in. sign_count: a later one must have a higher count, unless the key does not count."""
    tx.run(
        "UPDATE passkeys SET sign_count = ?, used_ms = ? WHERE credential_id = ?",
        sign_count, tx.now_ms, passkey.credential_id,
    )  # fmt: skip


def delete_passkey(tx: Transaction, user_id: UserID, credential_id: bytes) -> None:
    """Removes a passkey of the user, if there is one with this ID."""
    tx.run("DELETE FROM passkeys WHERE credential_id = ? AND user_nid = ?", credential_id, tx.find(user_id))


def forget_passkeys(tx: Transaction, user_id: UserID) -> None:
    """Removes all passkeys of a user."""
    tx.run("DELETE FROM passkeys WHERE user_nid = ?", tx.find(user_id))
