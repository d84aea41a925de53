"""Passwords: argon2id hashes, made and checked in worker threads. Spec: client-server-api/#password-management

A guess for an account that does not exist or has no password takes as long as any other guess.
"""

from __future__ import annotations

from collections.abc import Mapping

import msgspec
from argon2 import PasswordHasher
from argon2.exceptions import InvalidHashError, VerificationError

from homeserver import limits
from homeserver.errors import MatrixError, invalid_param
from homeserver.federation.identifiers import UserID
from homeserver.resources import Resources

# "default" is OWASP's first choice for argon2id: 27 ms and 19 MiB each.
HASHERS: Mapping[str, PasswordHasher] = {
    "default": PasswordHasher(time_cost=2, memory_cost=19 * 1024, parallelism=1),
    "minimal": PasswordHasher(time_cost=1, memory_cost=8, parallelism=1),
}


class Verdict(msgspec.Struct, frozen=True):
    """Whether the password was right. `new_hash`: if set, store it; it was made with newer parameters."""

    is_right: bool
    new_hash: str | None = None


def check_new_password(hs: Resources, password: str) -> None:
    """Raises M_WEAK_PASSWORD if the password is too short, M_INVALID_PARAM if it is too long or not Unicode."""
    if not fits(password):
        raise invalid_param(f"The password is longer than {limits.PASSWORD_BYTES_MAX} bytes, or not Unicode.")
    length_min = hs.config.passwords.length_min
    if len(password) < length_min:
        raise MatrixError(400, "M_WEAK_PASSWORD", f"The password must have at least {length_min} characters.")


def fits(password: str) -> bool:
    """Returns whether the text can be a password at all."""
    try:
        return len(password.encode()) <= limits.PASSWORD_BYTES_MAX
    except UnicodeEncodeError:
        return False


async def hash_password(hs: Resources, password: str) -> str:
    """Returns the hash to store, including its parameters and salt. Check the password first."""
    return await hs.workers.run(HASHERS[hs.config.passwords.hash_cost].hash, password)


async def verify_password(
    hs: Resources, user_id: UserID, password_hash: str | None, password: str, *, address: str | None = None
) -> Verdict:
    """Returns whether the password matches `password_hash`, which is None if there is no account or no password.

    address: the origin of the guess, None for a logged-in device. Raises M_LIMIT_EXCEEDED after too many wrong ones.
    Guesses from one address use up neither those of other addresses nor those of the user's devices.
    """
    buckets = [("login_account", f"{user_id} {address}")]
    if address is not None:
        buckets.append(("login_anywhere", user_id))
    for rate_class, key in buckets:
        hs.rate_limits.take(rate_class, key, hs.now_ms())
    if not fits(password):
        return Verdict(False)
    verdict = await hs.workers.run(_verify, HASHERS[hs.config.passwords.hash_cost], password_hash, password)
    if verdict.is_right:  # only wrong guesses count
        for rate_class, key in buckets:
            hs.rate_limits.take(rate_class, key, hs.now_ms(), cost=-1)
    return verdict


def _verify(hasher: PasswordHasher, password_hash: str | None, password: str) -> Verdict:
    if password_hash is None:
        hasher.hash(password)  # takes as long as a wrong guess
        return Verdict(False)
    try:
        hasher.verify(password_hash, password)
    except (VerificationError, InvalidHashError):
        return Verdict(False)
    return Verdict(True, hasher.hash(password) if hasher.check_needs_rehash(password_hash) else None)
