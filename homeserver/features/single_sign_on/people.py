"""People who come back from a provider, and their accounts here."""

from __future__ import annotations

import re
from typing import Any

from homeserver import authenticate, limits
from homeserver.config import SsoProvider
from homeserver.database import Transaction
from homeserver.encoding import to_json
from homeserver.errors import MatrixError, forbidden
from homeserver.feature import JsonObject
from homeserver.federation.identifiers import UserID
from homeserver.users import accounts
from homeserver.users.profile import store_field
from homeserver.users.single_sign_on import (
    Person,
    find_by_external_id,
    insert_external_id,
    list_external_ids,
)
from homeserver.users.threepids import EMAIL, find_owner, fold_email, store_threepid

_PLACE = re.compile(r"\{([^{}|]+)(\|localpart)?\}")
_ALLOWED = frozenset(b"abcdefghijklmnopqrstuvwxyz0123456789._-/+")
# What a person is asked to accept or to change. Names in full length are for machines.
_SUGGESTED_MAX = 100


def claims_of(provider: SsoProvider) -> frozenset[str]:
    """Returns the claims that the templates of a provider need."""
    templates = (provider.localpart_template, provider.display_name_template, provider.email_template)
    return frozenset(claim for template in templates for claim, _ in _PLACE.findall(template))


def person_of(provider: SsoProvider, claims: JsonObject) -> Person:
    """Returns the person whom verified claims are about. The email address is left out unless it is verified.

    A username that is made of an unverified address is a suggestion only: anybody may have entered that address.
    """
    name = fill(provider.display_name_template, claims)[: limits.users.DISPLAYNAME_CHARACTERS_MAX]
    is_verified = claims.get("email_verified") in (True, "true")  # some providers send text
    email = fill(provider.email_template, claims) if is_verified else ""
    is_named = is_verified or all(claim != "email" for claim, _ in _PLACE.findall(provider.localpart_template))
    username = map_to_localpart(fill(provider.localpart_template, claims))[:_SUGGESTED_MAX]
    return Person(claims["sub"], username, name if name.isprintable() else "", email, is_named)


def fill(template: str, claims: JsonObject) -> str:
    """Returns a template with the claims in it; "" if it needs a claim that is missing, or not a text or number."""
    missing = False

    def value(match: re.Match[str]) -> str:
        nonlocal missing
        claim: Any = claims.get(match[1])
        if not isinstance(claim, (str, int)) or isinstance(claim, bool) or claim == "":
            missing = True
            return ""
        return str(claim).partition("@")[0] if match[2] else str(claim)

    filled = _PLACE.sub(value, template).strip()
    return "" if missing else filled


def map_to_localpart(text: str) -> str:
    """Returns a localpart for any text. Spec: appendices/#mapping-from-other-character-sets"""
    raw = text.lower().encode("utf-8", "replace")
    return "".join(chr(byte) if byte in _ALLOWED else f"={byte:02x}" for byte in raw)


def find_account(tx: Transaction, provider: SsoProvider, person: Person) -> UserID | None:
    """Returns the account of a person. Links it or creates it, if the provider's settings say so.

    Returns None if the person has to choose a username first. Raises M_FORBIDDEN if there is no account for them, and
    M_USER_DEACTIVATED or M_USER_LOCKED if theirs may not be used.
    """
    known = find_by_external_id(tx, provider.id, person.subject)
    if known is None and provider.allow_existing_users and person.username and person.is_named:
        known = _link_existing(tx, provider, person)
    if known is not None:
        check_may_log_in(tx, known)
        return known
    if not provider.create_accounts:
        raise forbidden("You have no account on this server. Ask the people who run it for one.")
    if provider.ask_for_name or not person.username:
        return None
    try:
        return create_person(tx, provider, person, person.username)
    except MatrixError:  # the name is taken, reserved or too long
        return None


def _link_existing(tx: Transaction, provider: SsoProvider, person: Person) -> UserID | None:
    """Links the person to the account of that name, unless that is somebody else's at the provider, or not a person's.

    An administrator's account is never taken over by a name: it has to be linked by hand.
    """
    try:
        user_id = accounts.user_id_of(tx.server.name, person.username)
    except MatrixError:
        return None
    user = accounts.find_user(tx, user_id)
    if user is None or user.is_deactivated or user.appservice is not None:
        return None
    flags = authenticate.get_account_flags(tx, user_id)
    if flags.is_guest or flags.is_admin or any(each == provider.id for each, _ in list_external_ids(tx, user_id)):
        return None
    insert_external_id(tx, user_id, provider.id, person.subject)
    return user_id


def create_person(tx: Transaction, provider: SsoProvider, person: Person, username: str) -> UserID:
    """Creates the account of a person, without a password. Raises M_INVALID_USERNAME, M_USER_IN_USE or M_EXCLUSIVE."""
    user_id = accounts.user_id_of(tx.server.name, username)
    accounts.create_user(tx, user_id)
    insert_external_id(tx, user_id, provider.id, person.subject)
    if person.display_name:
        store_field(tx, user_id, "displayname", to_json(person.display_name))
    if person.email:
        _store_email(tx, user_id, person.email)
    return user_id


def _store_email(tx: Transaction, user_id: UserID, email: str) -> None:
    """Adds the address to the account, unless it cannot be used here or is somebody else's."""
    try:
        address = fold_email(email)
    except MatrixError:
        return
    if find_owner(tx, EMAIL, address) is None:
        store_threepid(tx, user_id, EMAIL, address, tx.now_ms)


def check_may_log_in(tx: Transaction, user_id: UserID) -> None:
    """Raises M_USER_DEACTIVATED or M_USER_LOCKED if the account may not be used."""
    if not accounts.is_active(tx, user_id):
        raise MatrixError(403, "M_USER_DEACTIVATED", "This account has been deactivated.")
    if authenticate.get_account_flags(tx, user_id).is_locked:
        raise MatrixError(403, "M_USER_LOCKED", "This account is locked. Ask the people who run this server.")
