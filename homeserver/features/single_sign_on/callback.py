"""The way back from a provider: who has come, which account is theirs, and whether to go on."""

from __future__ import annotations

import logging
from html import escape

import msgspec

from homeserver import limits
from homeserver.api.cookies import cookie_name, find_cookie, write_cookie
from homeserver.api.forms import PageExtras, TextField, decode_form, done_page, make_page, redirect
from homeserver.api.routes import Request, Response, Routes
from homeserver.config import SsoProvider
from homeserver.database import Transaction
from homeserver.errors import MatrixError, forbidden
from homeserver.feature import JsonObject
from homeserver.features.single_sign_on.beginning import (
    CALLBACK,
    COOKIE,
    callback_url,
    find_browser,
    find_provider,
    no_provider,
    provider_failed,
    refused,
)
from homeserver.features.single_sign_on.client_urls import is_trusted, shown, source_of, with_login_token
from homeserver.features.single_sign_on.people import (
    check_may_log_in,
    claims_of,
    create_person,
    find_account,
    person_of,
)
from homeserver.federation.identifiers import UserID
from homeserver.remote.openid_provider import ProviderError, redeem_code
from homeserver.resources import Resources
from homeserver.users.page_sessions import (
    create_page_session,
    delete_page_session,
    session_cookie,
    set_session_cookie,
)
from homeserver.users.proof_tokens import Purpose, create_proof
from homeserver.users.single_sign_on import (
    Attempt,
    AttemptStep,
    Goal,
    Person,
    delete_attempt,
    find_attempt,
    find_by_external_id,
    set_answered,
    set_confirming,
    set_naming,
)
from homeserver.users.user_interactive import SSO_STAGE, find_pending, note_stage_completed

_log = logging.getLogger(__name__)

CONTINUE = "/_homeserver/sso/continue"

routes = Routes()


class CallbackQuery(msgspec.Struct, frozen=True):
    """What a provider sends the browser back with. Spec: RFC 6749, section 4.1.2; `iss`: RFC 9207"""

    state: str = ""
    code: str = ""
    error: str = ""
    iss: str = ""


@routes.get(CALLBACK, rate_limit="sso")
async def sso_callback(hs: Resources, query: CallbackQuery, request: Request) -> Response:
    browser = find_browser(hs, request)
    attempt = await hs.database.write(set_answered, query.state, browser) if browser and query.state else None
    if attempt is None:
        return _no_attempt()
    provider = find_provider(hs, attempt.provider)
    if provider is None:  # it was removed from the configuration meanwhile
        return no_provider()
    if query.error or not query.code:
        _log.info("single sign-on refused", extra={"provider": provider.id, "reason": query.error[:100]})
        return make_page(
            f"{provider.name} did not log you in", "Go back to your app to try again, or another way.", status=403
        )
    try:
        if query.iss and query.iss != provider.issuer:
            raise ProviderError(f"the answer is from another issuer: {query.iss[:200]!r}")
        claims = await redeem_code(
            hs, provider, query.code, attempt.verifier, attempt.nonce, callback_url(hs), claims_of(provider)
        )
    except ProviderError as error:
        return provider_failed(provider, error)
    is_fresh = _is_fresh(claims, hs.now_ms())
    if attempt.goal == Goal.STAGE and not is_fresh:
        return refused(forbidden(f"{provider.name} did not ask you to log in again. Log out there, and try again."))
    try:
        return await hs.database.write(_arrive, provider, attempt, person_of(provider, claims), request, is_fresh)
    except MatrixError as error:
        return refused(error)


def _is_fresh(claims: JsonObject, now_ms: int) -> bool:
    """Returns whether the person has logged in at the provider during the attempt, as far as the provider tells."""
    at_s = claims.get("auth_time")
    lifetime_s = limits.users.SSO_ATTEMPT_LIFETIME_MS // 1000 + limits.users.SSO_CLOCK_SKEW_S
    return not isinstance(at_s, (int, float)) or now_ms / 1000 - at_s <= lifetime_s


def _arrive(
    tx: Transaction, provider: SsoProvider, attempt: Attempt, person: Person, request: Request, is_fresh: bool
) -> Response:
    """Finds the person's account and goes on, or lets the person choose a username first."""
    if attempt.goal == Goal.STAGE:
        return _confirm_stage(tx, attempt, find_by_external_id(tx, provider.id, person.subject))
    user_id = find_account(tx, provider, person)
    if user_id is None:
        set_naming(tx, attempt, person)
        return redirect(_continue_path(attempt))
    return _go_on(tx, provider, attempt, user_id, request, is_fresh)


def _confirm_stage(tx: Transaction, attempt: Attempt, user_id: UserID | None) -> Response:
    """Asks the user whether the operation is wanted. Raises M_FORBIDDEN if somebody else has logged in."""
    pending = find_pending(tx, attempt.target)
    if pending is None:
        raise forbidden("This request is too old, or was carried out already. Go back to your app.")
    if user_id is None or user_id != pending.user_id:
        raise forbidden(f"You have logged in as somebody else. The request is about {pending.user_id}.")
    check_may_log_in(tx, user_id)
    set_confirming(tx, attempt, user_id)
    return redirect(_continue_path(attempt))


def _go_on(
    tx: Transaction, provider: SsoProvider, attempt: Attempt, user_id: UserID, request: Request, is_fresh: bool
) -> Response:
    """Ends the attempt of a person with an account, or asks first whether the client is theirs."""
    if attempt.goal == Goal.PAGE:
        _end(tx, attempt)
        return _begin_page_session(tx, attempt, user_id, request, is_fresh)
    own_page = f"{tx.server.config.base_url}/_homeserver/chat"
    if not is_trusted(attempt.target, (*provider.trusted_client_urls, own_page)):
        set_confirming(tx, attempt, user_id)
        return redirect(_continue_path(attempt))
    return _finish(tx, attempt, user_id)


def _begin_page_session(
    tx: Transaction, attempt: Attempt, user_id: UserID, request: Request, is_fresh: bool
) -> Response:
    """Logs the browser in to the account pages. Its old session ends."""
    base_url, agent = tx.server.config.base_url, request.find_header(b"user-agent") or ""
    token = create_page_session(
        tx, user_id, "sso", address=request.client_ip, user_agent=agent, is_confirmed=is_fresh
    )  # fmt: skip
    old = find_cookie(request, session_cookie(base_url))
    if old:
        delete_page_session(tx, old)
    return redirect(attempt.target, set_session_cookie(base_url, token))


def _end(tx: Transaction, attempt: Attempt) -> None:
    """Deletes the attempt. Raises M_FORBIDDEN if another request has done so: only one of them goes on."""
    if not delete_attempt(tx, attempt):
        raise forbidden("This attempt to log in has ended already. Go back to your app.")


def _finish(tx: Transaction, attempt: Attempt, user_id: UserID) -> Response:
    """Sends the browser back to the client with a login token, and deletes the cookie."""
    _end(tx, attempt)
    token = create_proof(
        tx, Purpose.LOGIN, user_id, "", lifetime_ms=limits.users.SSO_LOGIN_TOKEN_LIFETIME_MS
    )  # fmt: skip
    base_url = tx.server.config.base_url
    name = cookie_name(COOKIE, base_url)
    return redirect(with_login_token(attempt.target, token), write_cookie(name, "", base_url, max_age_s=0))


def _continue_path(attempt: Attempt) -> str:
    return f"{CONTINUE}?state={attempt.state}"


def _no_attempt() -> Response:
    return make_page(
        "Please start again",
        "This log-in was started in another browser, took too long, or has ended already. Go back to your app and"
        " log in from there. If you did not want to log in, close this page.",
        status=400,
    )


# --- pages on the way ---


class ContinueQuery(msgspec.Struct, frozen=True):
    state: str


@routes.get(CONTINUE, rate_limit="sso")
async def show_sso_step(hs: Resources, query: ContinueQuery, request: Request) -> Response:
    """Shows the question of an attempt's step: a username, or whether a client may go on."""
    attempt, operation = await hs.database.read(_read_step, query.state, find_browser(hs, request))
    return _no_attempt() if attempt is None else _show(hs, attempt, operation)


def _read_step(tx: Transaction, state: str, browser: str) -> tuple[Attempt | None, str]:
    """Returns an attempt, and the operation that its stage is for, "" if it is for none."""
    attempt = find_attempt(tx, state, browser)
    pending = find_pending(tx, attempt.target) if attempt is not None and attempt.goal == Goal.STAGE else None
    return attempt, "" if pending is None else pending.operation


# The operations, by how they begin.
_OPERATIONS = {
    "delete devices": "remove devices from your account",
    "replace cross-signing keys": "replace your cross-signing keys, by which others know that it is you",
    "change password": "change your password",
    "deactivate account": "delete your account for ever",
    "get a login token": "log in on another device",
    "add an address": "add an email address to your account",
}


def _operation(operation: str) -> str:
    return next((text for begin, text in _OPERATIONS.items() if operation.startswith(begin)), "change your account")


def _show(hs: Resources, attempt: Attempt, operation: str = "", *, username: str = "", error: str = "") -> Response:
    if attempt.step == AttemptStep.NAMING and attempt.person is not None:
        field = TextField(
            "username", "Username", username or attempt.person.username,
            f"Others will see you as @username:{hs.server_name}. It can never be changed.",
        )  # fmt: skip
        return _show_naming(hs, attempt, field, error)
    if attempt.step == AttemptStep.CONFIRMING and attempt.goal == Goal.STAGE:
        text = (
            f"An app that is logged in as {attempt.user_id} asks to {_operation(operation)}.",
            "If you did not expect this, close this page: somebody may have got access to your account.",
        )
        return make_page("Do you want this?", text, "Yes, go on")
    if attempt.step == AttemptStep.CONFIRMING and attempt.user_id is not None:
        place = shown(attempt.target)
        text = (
            f"You are {attempt.user_id}. If you continue, {place} gets full access to this account.",
            f"If you did not just start to log in there, or do not trust {place}, close this page.",
        )
        policy = {"form-action": f"'self' {source_of(attempt.target)}"}  # browsers apply it to what follows as well
        return make_page(f"Continue to {place}?", text, "Continue", PageExtras(policy=policy, error=error))
    return _no_attempt()


def _show_naming(hs: Resources, attempt: Attempt, field: TextField, error: str) -> Response:
    terms, body = hs.config.registration, ""
    if terms.terms_url:
        link = f'<a href="{escape(terms.terms_url)}">{escape(terms.terms_name)}</a>'
        body = f"<p>By creating an account you agree to: {link}</p>\n"
    # Browsers apply it to what follows the form as well, which may be a client that is trusted.
    policy = {"form-action": f"'self' {source_of(attempt.target)}"} if attempt.goal == Goal.CLIENT else {}
    extras = PageExtras(fields=[field], error=error, body=body, policy=policy)
    text, button = "Choose your username.", "Create account"
    return make_page(f"Welcome to {hs.server_name}", text, button, extras, status=400 if error else 200)


class StepForm(msgspec.Struct, frozen=True):
    username: str = ""


@routes.post(CONTINUE, rate_limit="sso", decode=decode_form)
async def submit_sso_step(hs: Resources, query: ContinueQuery, body: StepForm, request: Request) -> Response:
    """Takes the answer to that question."""
    attempt = await hs.database.read(find_attempt, query.state, find_browser(hs, request))
    provider = None if attempt is None else find_provider(hs, attempt.provider)
    if attempt is None or provider is None:
        return _no_attempt()
    try:
        if attempt.step == AttemptStep.NAMING and attempt.person is not None:
            return await hs.database.write(_name, provider, attempt, attempt.person, body.username.strip(), request)
        if attempt.step == AttemptStep.CONFIRMING and attempt.user_id is not None:
            return await hs.database.write(_confirm, attempt, attempt.user_id)
    except MatrixError as error:
        if error.errcode in ("M_USER_IN_USE", "M_INVALID_USERNAME", "M_EXCLUSIVE"):
            return _show(hs, attempt, username=body.username[:255], error=error.error)
        return refused(error)
    return _no_attempt()


def _name(
    tx: Transaction, provider: SsoProvider, attempt: Attempt, person: Person, username: str, request: Request
) -> Response:
    """Creates the account, unless another tab has done so meanwhile."""
    user_id = find_by_external_id(tx, provider.id, person.subject)
    if user_id is None:
        user_id = create_person(tx, provider, person, username.removeprefix("@"))
    check_may_log_in(tx, user_id)
    return _go_on(tx, provider, attempt, user_id, request, is_fresh=True)


def _confirm(tx: Transaction, attempt: Attempt, user_id: UserID) -> Response:
    check_may_log_in(tx, user_id)
    if attempt.goal == Goal.STAGE:
        _end(tx, attempt)
        if not note_stage_completed(tx, attempt.target, SSO_STAGE, True):
            raise forbidden("This request is too old, or was carried out already. Go back to your app.")
        base_url = tx.server.config.base_url
        return done_page(write_cookie(cookie_name(COOKIE, base_url), "", base_url, max_age_s=0))
    return _finish(tx, attempt, user_id)
