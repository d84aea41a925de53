"""Fallback pages: stages of user-interactive authentication in a browser, for clients that do not know them.

Spec: client-server-api/#fallback
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping
from html import escape
from typing import Literal, NamedTuple
from urllib.parse import urlencode

import msgspec

from homeserver.api.forms import PageExtras, TextField, decode_form, done_page, make_page, redirect
from homeserver.api.routes import Request, Response, Routes
from homeserver.config import Config, Registration
from homeserver.database import Transaction
from homeserver.errors import MatrixError, not_found
from homeserver.feature import Feature, JsonObject
from homeserver.resources import Resources
from homeserver.users.captcha import RECAPTCHA, TERMS, captcha_stage, terms_stage
from homeserver.users.email_validation import email_stage, request_validation
from homeserver.users.registration_tokens import TOKEN_STAGE
from homeserver.users.threepids import fold_email
from homeserver.users.user_interactive import (
    DUMMY,
    SSO_STAGE,
    Pending,
    Stage,
    find_pending,
    note_stage_completed,
    password_stage,
)

routes = Routes()

_PATH = "/_matrix/client/v3/auth/{auth_type}/fallback/web"
# What a page of reCAPTCHA loads. Spec: https://developers.google.com/recaptcha/docs/faq, "Content-Security-Policy"
_RECAPTCHA_HOSTS = "https://www.recaptcha.net https://www.gstatic.com https://www.gstatic.cn"
_RECAPTCHA_POLICY = {
    "script-src": _RECAPTCHA_HOSTS,
    "frame-src": "https://www.recaptcha.net https://recaptcha.net",
    "connect-src": "https://www.recaptcha.net",
    "img-src": _RECAPTCHA_HOSTS,
}


class SessionQuery(msgspec.Struct, frozen=True):
    session: str


@routes.get(_PATH, rate_limit="login")
async def show_fallback(hs: Resources, auth_type: str, query: SessionQuery) -> Response:
    if auth_type == SSO_STAGE and hs.config.sso:
        return redirect(f"/_homeserver/sso/stage?{urlencode({'session': query.session})}")
    form = _FORMS.get(auth_type)
    if form is None or not form.is_offered(hs.config):
        raise not_found("This server has no page for this type of authentication.")
    pending = await hs.database.read(find_pending, query.session)
    if pending is None or (form.of_user and pending.user_id is None):
        return _ended()
    return done_page() if auth_type in pending.completed else form.show(hs, pending, "")


@routes.post(_PATH, rate_limit="login", decode=decode_form)
async def submit_fallback(hs: Resources, auth_type: str, query: SessionQuery, body: dict, request: Request) -> Response:
    """Takes the answer to a stage. It must be right, as if the client had sent it."""
    form = _FORMS.get(auth_type)
    if form is None or not form.is_offered(hs.config):
        raise not_found("This server has no page for this type of authentication.")
    if auth_type == _EMAIL_TYPE:
        return await _submit_email(hs, query.session, body)
    found = await hs.database.read(_load, form, query.session, body)
    if found is None:
        return _ended()
    pending, stage, auth, loaded = found
    try:
        result = await stage.check(hs, auth, loaded)
    except MatrixError as error:
        if error.status == 429:
            raise
        return form.show(hs, pending, error.error)
    if not await hs.database.write(note_stage_completed, query.session, stage.type, result):
        return _ended()
    return done_page()


def _load(
    tx: Transaction, form: _Form, session: str, given: JsonObject
) -> tuple[Pending, Stage, JsonObject, object] | None:
    """Returns the session, its stage, an `auth` made of the form, and what the stage reads; None without a session."""
    pending = find_pending(tx, session)
    if pending is None or (form.of_user and pending.user_id is None):
        return None
    stage = form.stage(tx.server.config.registration, pending)
    auth: JsonObject = {"session": session, **{key: str(given.get(name, "")) for name, key in form.fields.items()}}
    if form.of_user:
        auth["identifier"] = {"type": "m.id.user", "user": pending.user_id}
    return pending, stage, auth, stage.load(tx, auth)


def _ended() -> Response:
    return make_page(
        "Please start again", "This request is too old, or was carried out already. Go back to your app.", status=400
    )


# --- forms ---


Show = Callable[[Resources, Pending, str], Response]


class _Form(NamedTuple):
    """How a stage is asked for. fields: their names in the form and in `auth`. of_user: it is about an account."""

    stage: Callable[[Registration, Pending], Stage]
    show: Show
    fields: Mapping[str, str] = {}
    of_user: bool = False
    is_offered: Callable[[Config], bool] = lambda config: True


def _password_of(settings: Registration, pending: Pending) -> Stage:
    assert pending.user_id is not None
    return password_stage(pending.user_id)


def _show_password(hs: Resources, pending: Pending, error: str) -> Response:
    field = TextField("password", f"Password of {pending.user_id}", kind="password")
    text = "An app asks to change your account. If you did not expect this, close this page: it may be somebody else."
    return make_page("Confirm with your password", text, "Confirm", PageExtras(fields=[field], error=error))


def _show_token(hs: Resources, pending: Pending, error: str) -> Response:
    text = f"The people who run {hs.server_name} give out tokens to those who may create an account."
    extras = PageExtras(fields=[TextField("token", "Registration token")], error=error)
    return make_page("Enter your registration token", text, "Continue", extras)


def _show_terms(hs: Resources, pending: Pending, error: str) -> Response:
    settings = hs.config.registration
    extras = PageExtras(body=f'<p><a href="{escape(settings.terms_url)}">{escape(settings.terms_name)}</a></p>\n')
    return make_page("Before you create an account", f"Read the terms of {hs.server_name}.", "I agree", extras)


def _show_captcha(hs: Resources, pending: Pending, error: str) -> Response:
    key = escape(hs.config.registration.recaptcha_public_key)
    extras = PageExtras(
        head='<script src="https://www.recaptcha.net/recaptcha/api.js" async defer></script>\n',
        body=f'<div class="g-recaptcha" data-sitekey="{key}"></div>\n',
        policy=_RECAPTCHA_POLICY,
        error=error,
    )
    return make_page("Are you a person?", "Solve this, so that programs cannot create accounts.", "Continue", extras)


_EMAIL_TYPE = "m.login.email.identity"


def _email_of(settings: Registration, pending: Pending) -> Stage:
    return email_stage(_purpose(pending))


def _purpose(pending: Pending) -> Literal["register", "reset"]:
    return "reset" if pending.operation == "change password" else "register"


def _show_email(hs: Resources, pending: Pending, error: str) -> Response:
    extras = PageExtras(fields=[TextField("email", "Email address")], error=error)
    return make_page("Confirm your email address", "You get an email with a link.", "Send the email", extras)


async def _submit_email(hs: Resources, session: str, given: JsonObject) -> Response:
    """Sends the email at first; then, with the fields that the second page has, finds out whether its link was used."""
    pending = await hs.database.read(find_pending, session)
    if pending is None:
        return _ended()
    sid, secret = str(given.get("sid", "")), str(given.get("client_secret", ""))
    if not sid:
        try:
            address = fold_email(str(given.get("email", "")))
            hs.rate_limits.take("email_address", address, hs.now_ms())
            secret = secrets.token_urlsafe(24)
            sid = await hs.database.write(request_validation, _purpose(pending), None, address, secret, 1)
        except MatrixError as error:
            return _show_email(hs, pending, error.error)
        return _show_sent(sid, secret, "")
    stage, auth = _email_of(hs.config.registration, pending), {"threepid_creds": {"sid": sid, "client_secret": secret}}
    try:
        result = await stage.check(hs, auth, await hs.database.read(stage.load, auth))
    except MatrixError as error:
        return _show_sent(sid, secret, error.error)
    return done_page() if await hs.database.write(note_stage_completed, session, stage.type, result) else _ended()


def _show_sent(sid: str, secret: str, error: str) -> Response:
    fields = {"sid": sid, "client_secret": secret}
    hidden = "".join(f'<input type="hidden" name="{name}" value="{escape(text)}">\n' for name, text in fields.items())
    text = "Open the link in the email that was sent to you, then come back to this page."
    return make_page("Look into your inbox", text, "I have opened the link", PageExtras(body=hidden, error=error))


def _show_dummy(hs: Resources, pending: Pending, error: str) -> Response:
    return make_page("Go on?", "Your app asks to continue.", "Continue", PageExtras(error=error))


_FORMS: Mapping[str, _Form] = {
    "m.login.password": _Form(_password_of, _show_password, {"password": "password"}, of_user=True),
    TOKEN_STAGE.type: _Form(
        lambda settings, pending: TOKEN_STAGE, _show_token, {"token": "token"},
        is_offered=lambda config: config.registration.require_token,
    ),
    TERMS: _Form(
        lambda settings, pending: terms_stage(settings), _show_terms,
        is_offered=lambda config: bool(config.registration.terms_url),
    ),
    RECAPTCHA: _Form(
        lambda settings, pending: captcha_stage(settings), _show_captcha, {"g-recaptcha-response": "response"},
        is_offered=lambda config: bool(config.registration.recaptcha_public_key),
    ),
    _EMAIL_TYPE: _Form(_email_of, _show_email, is_offered=lambda config: bool(config.email.smtp_host)),
    DUMMY.type: _Form(lambda settings, pending: DUMMY, _show_dummy),
}  # fmt: skip

FEATURE = Feature(name="authentication_fallback", spec="client-server-api/#fallback", routes=routes)
