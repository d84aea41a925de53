"""Registration of users and guests. Spec: client-server-api/#account-registration

A user's account has a password from the start: nobody could log in to one without. A client that did not receive the
response repeats its request. The session of its user-interactive authentication identifies it, and the response names
the same account and device, with new tokens.
"""

from __future__ import annotations

from typing import Literal

import msgspec
from msgspec.structs import replace

from homeserver import authenticate, limits
from homeserver.api.routes import Request, Routes
from homeserver.authenticate import AccountFlags
from homeserver.database import Schema, Step, Transaction
from homeserver.errors import MatrixError, forbidden, invalid_param, missing_param
from homeserver.feature import Feature, JsonObject
from homeserver.federation.identifiers import UserID, localpart_of
from homeserver.limits import Bucket
from homeserver.moments import latest
from homeserver.resources import Resources
from homeserver.users import accounts
from homeserver.users.application_services import get_service
from homeserver.users.captcha import captcha_stage, terms_stage
from homeserver.users.devices import check_device_id, log_in
from homeserver.users.email_validation import delete_validation, email_stage
from homeserver.users.passwords import check_new_password, hash_password, verify_password
from homeserver.users.registration_tokens import TOKEN_STAGE, is_valid_token, note_token_used
from homeserver.users.threepids import EMAIL, store_threepid
from homeserver.users.user_interactive import (
    DUMMY,
    Attempt,
    Authentication,
    Flow,
    begin,
    delete_session,
    proceed,
)

SCHEMA = Schema(
    "registration",
    (
        Step(
            "create",
            """
            -- What was made at the end of each session of authentication, for clients that ask again.
            CREATE TABLE registrations (
                session TEXT PRIMARY KEY,
                user_nid INTEGER NOT NULL,
                device_id TEXT,
                created_ms INTEGER NOT NULL
            );
            """,
        ),
    ),
)

EMAIL_STAGE = email_stage("register")

routes = Routes()


class AvailableQuery(msgspec.Struct, frozen=True):
    username: str


@routes.get("/_matrix/client/v3/register/available", rate_limit="login")
async def check_username_availability(hs: Resources, query: AvailableQuery) -> JsonObject:
    user_id = accounts.user_id_of(hs.server_name, query.username)
    await hs.database.read(accounts.check_available, user_id)
    return {"available": True}


class ValidityQuery(msgspec.Struct, frozen=True):
    token: str


@routes.get("/_matrix/client/v1/register/m.login.registration_token/validity", rate_limit="registration")
async def registration_token_validity(hs: Resources, query: ValidityQuery) -> JsonObject:
    if not hs.config.registration.enabled:
        raise forbidden("Registration is not enabled on this homeserver.")
    return {"valid": await hs.database.read(is_valid_token, query.token)}


class RegisterQuery(msgspec.Struct, frozen=True):
    kind: Literal["user", "guest"] = "user"


class _Made(msgspec.Struct, frozen=True):
    """The account that a registration has created, and the device if it was logged in."""

    user: accounts.User
    device_id: str | None


class RegisterBody(msgspec.Struct, frozen=True):
    """`type` is for application services only; `guest_access_token` is for guests who become users (#guest-access)."""

    auth: JsonObject | None = None
    type: str | None = None
    username: str | None = None
    password: str | None = None
    device_id: str | None = None
    initial_device_display_name: str | None = None
    inhibit_login: bool | None = None
    refresh_token: bool | None = None
    guest_access_token: str | None = None


@routes.post("/_matrix/client/v3/register", rate_limit="registration")
async def register(hs: Resources, query: RegisterQuery, body: RegisterBody, request: Request) -> JsonObject:
    if query.kind == "guest":
        answer = await _register_guest(hs, body)
    elif body.type == "m.login.application_service":
        answer = await _register_for_appservice(hs, body, request)
    else:
        answer = await _register_user(hs, body)
    if "device_id" in answer:
        authenticate.note_seen(hs, answer["user_id"], answer["device_id"], request, hs.now_ms())
    return answer


async def _register_user(hs: Resources, body: RegisterBody) -> JsonObject:
    settings = hs.config.registration
    if not settings.enabled:
        raise forbidden("Registration is not enabled on this homeserver.")
    user_id = _wanted_user_id(hs, body)
    if body.password is not None:
        check_new_password(hs, body.password)
    check_device_id(body.device_id)
    made = await hs.database.read(_find_made, body)
    if made is not None and await _is_same(hs, made, body):
        again = msgspec.structs.replace(body, device_id=made.device_id)
        return await hs.database.write(_answer, made.user.user_id, again)
    attempt, guest = await hs.database.read(_read_registration, user_id, body)
    authentication = await proceed(hs, attempt)
    if body.password is None:  # checked only now: clients request the flows without a password
        raise missing_param("The password is missing.")
    password_hash = await hash_password(hs, body.password)
    return await hs.database.write(_store_registration, user_id, password_hash, body, authentication, guest)


def _find_made(tx: Transaction, body: RegisterBody) -> _Made | None:
    """Returns what was created in the request's session, if the request has been answered before."""
    session = None if body.auth is None else body.auth.get("session")
    if not isinstance(session, str):
        return None
    row = tx.one(
        "SELECT user_nid, device_id FROM registrations WHERE session = ? AND created_ms > ? AND created_ms <= ?",
        session, tx.now_ms - limits.USER_INTERACTIVE_LIFETIME_MS, latest(tx.now_ms, 0),
    )  # fmt: skip
    user = None if row is None else accounts.find_user(tx, UserID(tx.name(row[0])))
    return None if row is None or user is None else _Made(user, row[1])


async def _is_same(hs: Resources, made: _Made, body: RegisterBody) -> bool:
    """Returns whether this request repeats the one that created the account: same name and same password."""
    user_id = made.user.user_id
    if body.password is None or (body.username or "").lower() not in ("", localpart_of(user_id)):
        return False
    return (await verify_password(hs, user_id, made.user.password_hash, body.password)).is_right


def _wanted_user_id(hs: Resources, body: RegisterBody) -> UserID:
    if body.username is None:
        return accounts.generate_user_id(hs.server_name)
    return accounts.user_id_of(hs.server_name, body.username)


def _read_registration(tx: Transaction, user_id: UserID, body: RegisterBody) -> tuple[Attempt, bool]:
    """Returns the authentication attempt, and whether a guest becomes a user. Raises M_USER_IN_USE."""
    guest = body.guest_access_token is not None
    if guest:
        _check_guest(tx, user_id, body.guest_access_token or "")
    elif accounts.find_user(tx, user_id) is not None:
        raise accounts.user_in_use()
    settings = tx.server.config
    first: Flow = (TOKEN_STAGE,) if settings.registration.require_token else ()
    if settings.registration.recaptcha_public_key:
        first = (*first, captcha_stage(settings.registration))
    if settings.registration.terms_url:
        first = (*first, terms_stage(settings.registration))
    flows: list[Flow] = [first or (DUMMY,)]
    if settings.email.smtp_host:
        flows.append((*first, EMAIL_STAGE))
    return begin(tx, "register", body.auth, flows), guest


def _check_guest(tx: Transaction, user_id: UserID, access_token: str) -> None:
    """Raises M_FORBIDDEN unless the token belongs to the guest `user_id`."""
    found = authenticate.find_token(tx, authenticate.hash_token(access_token))
    if found is None or not found.requester.is_guest or found.requester.user_id != user_id:
        raise forbidden("The guest_access_token does not belong to a guest of that name.")


def _store_registration(
    tx: Transaction,
    user_id: UserID,
    password_hash: str,
    body: RegisterBody,
    authentication: Authentication,
    guest: bool,
) -> JsonObject:
    delete_session(tx, authentication)
    note_token_used(tx, authentication)
    email = authentication.results.get(EMAIL_STAGE.type)
    if email is not None:
        delete_validation(tx, email["sid"], user_id)
    if guest:
        _check_guest(tx, user_id, body.guest_access_token or "")
        flags = authenticate.get_account_flags(tx, user_id)
        authenticate.store_account_flags(tx, user_id, replace(flags, is_guest=False))
        accounts.store_password_hash(tx, user_id, password_hash)
    else:
        accounts.create_user(tx, user_id, password_hash)
    if email is not None:
        store_threepid(tx, user_id, EMAIL, email["address"], email["validated_ms"])
    answer = _answer(tx, user_id, body)
    if authentication.session is not None:
        tx.run(
            "DELETE FROM registrations WHERE created_ms <= ? OR created_ms > ?",
            tx.now_ms - limits.USER_INTERACTIVE_LIFETIME_MS, latest(tx.now_ms, 0),
        )  # fmt: skip
        tx.run(
            "INSERT INTO registrations (session, user_nid, device_id, created_ms) VALUES (?, ?, ?, ?)",
            authentication.session, tx.intern(user_id), answer.get("device_id"), tx.now_ms,
        )  # fmt: skip
    return answer


def _answer(tx: Transaction, user_id: UserID, body: RegisterBody) -> JsonObject:
    if body.inhibit_login:
        return {"user_id": user_id}
    return log_in(tx, user_id, body.device_id, body.initial_device_display_name, bool(body.refresh_token))


async def _register_guest(hs: Resources, body: RegisterBody) -> JsonObject:
    if not hs.config.registration.guests:
        raise MatrixError(403, "M_GUEST_ACCESS_FORBIDDEN", "This homeserver does not allow guests.")
    # "all parameters … with the exception of `initial_device_display_name` MUST BE ignored"
    ignoring = RegisterBody(initial_device_display_name=body.initial_device_display_name)
    return await hs.database.write(_store_guest, accounts.generate_user_id(hs.server_name), ignoring)


def _store_guest(tx: Transaction, user_id: UserID, body: RegisterBody) -> JsonObject:
    accounts.create_user(tx, user_id, None, AccountFlags(is_guest=True))
    return _answer(tx, user_id, body)


async def _register_for_appservice(hs: Resources, body: RegisterBody, request: Request) -> JsonObject:
    """Spec: application-service-api/#server-admin-style-permissions"""
    service = get_service(hs, request)
    if body.username is None:
        raise invalid_param("An application service must give the username to register.")
    check_device_id(body.device_id)
    user_id = accounts.user_id_of(hs.server_name, body.username)
    return await hs.database.write(_store_of_appservice, user_id, service.id, body)


def _store_of_appservice(tx: Transaction, user_id: UserID, appservice: str, body: RegisterBody) -> JsonObject:
    accounts.create_user(tx, user_id, None, accounts.NO_FLAGS, appservice)
    return _answer(tx, user_id, body)


def forget_registration(tx: Transaction, user_id: UserID, erase: bool) -> bool:
    """Deletes the records of registrations that created the account."""
    tx.run("DELETE FROM registrations WHERE user_nid = ?", tx.find(user_id))
    return False


FEATURE = Feature(
    name="registration",
    spec="client-server-api/#account-registration",
    schema=SCHEMA,
    routes=routes,
    limits={"registration": Bucket(5, 0.1)},  # accounts exist for ever
    forget_user=forget_registration,
)
