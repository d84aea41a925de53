"""The way to a provider: which one, what for, and the cookie that ties the attempt to the browser.

Spec: client-server-api/#get_matrixclientv3loginssoredirect
"""

from __future__ import annotations

import logging
import secrets
from urllib.parse import quote, urlencode, urlsplit

import msgspec

from homeserver import limits
from homeserver.api.cookies import cookie_name, find_cookie, write_cookie
from homeserver.api.forms import PageExtras, make_page, redirect
from homeserver.api.routes import Request, Response, Routes
from homeserver.config import SsoProvider
from homeserver.database import Transaction
from homeserver.errors import MatrixError, not_found
from homeserver.features.single_sign_on.client_urls import check_client_url
from homeserver.remote.openid_provider import ProviderError, authorization_url
from homeserver.resources import Resources
from homeserver.users.page_sessions import local_path, session_cookie
from homeserver.users.single_sign_on import Goal, create_attempt, list_external_ids
from homeserver.users.user_interactive import find_pending

_log = logging.getLogger(__name__)

_REDIRECT = "/_matrix/client/v3/login/sso/redirect"
STAGE = "/_homeserver/sso/stage"
CHOOSE = "/_homeserver/sso/choose"
_FAILED = "/_homeserver/sso/failed"
CALLBACK = "/_homeserver/sso/callback"
COOKIE = "homeserver_sso"
# Marks a request that was sent to the host of public.base_url before, so that it is not sent there for ever.
_SENT_ON = "at_base_url"

routes = Routes()


class RedirectQuery(msgspec.Struct, frozen=True):
    """`action` says whether the person has an account; the provider and we find out anyway."""

    redirect_url: str = msgspec.field(name="redirectUrl")
    action: str | None = None


@routes.get(_REDIRECT, rate_limit="sso")
async def redirect_to_sso(hs: Resources, query: RedirectQuery, request: Request) -> Response:
    if not hs.config.sso:
        raise not_found("This server has no single sign-on.")
    check_client_url(query.redirect_url)
    if len(hs.config.sso) == 1:
        return await begin(hs, request, hs.config.sso[0], Goal.CLIENT, query.redirect_url)
    return redirect(f"{CHOOSE}?{urlencode({'redirectUrl': query.redirect_url})}")


@routes.get(CHOOSE, rate_limit="sso")
async def choose_sso_provider(hs: Resources, query: RedirectQuery) -> Response:
    """Shows the providers, for clients that do not."""
    check_client_url(query.redirect_url)
    target = urlencode({"redirectUrl": query.redirect_url})
    links = {f"{_REDIRECT}/{quote(each.id, safe='')}?{target}": each.name for each in hs.config.sso}
    return make_page(f"Log in to {hs.server_name}", "Continue with", extras=PageExtras(links=links))


class FailedQuery(msgspec.Struct, frozen=True):
    provider: str


@routes.get(_FAILED, rate_limit="sso")
async def show_sso_failure(hs: Resources, query: FailedQuery) -> Response:
    """Shows that a provider cannot be reached."""
    provider = find_provider(hs, query.provider)
    return no_provider() if provider is None else _failure(provider)


@routes.get(_REDIRECT + "/{idp_id}", rate_limit="sso")
async def redirect_to_id_p(hs: Resources, query: RedirectQuery, idp_id: str, request: Request) -> Response:
    provider = find_provider(hs, idp_id)
    if provider is None and "text/html" not in (request.find_header(b"accept") or ""):
        raise not_found("There is no such way to log in.")
    if provider is None:
        return no_provider()
    check_client_url(query.redirect_url)
    return await begin(hs, request, provider, Goal.CLIENT, query.redirect_url)


class BeginQuery(msgspec.Struct, frozen=True):
    """`return_to`: the path below the account pages to go on to."""

    provider: str
    return_to: str | None = None


@routes.get("/_homeserver/sso/begin", rate_limit="sso")
async def begin_page_login(hs: Resources, query: BeginQuery, request: Request) -> Response:
    """Logs the browser in to the pages of this server."""
    provider = find_provider(hs, query.provider)
    if provider is None:
        return no_provider()
    # A browser that is logged in to the pages comes back when they ask again who it is.
    fresh = bool(find_cookie(request, session_cookie(hs.config.base_url)))
    return await begin(hs, request, provider, Goal.PAGE, local_path(query.return_to), fresh=fresh)


class StageQuery(msgspec.Struct, frozen=True):
    session: str
    provider: str = ""


@routes.get(STAGE, rate_limit="sso")
async def begin_sso_stage(hs: Resources, query: StageQuery, request: Request) -> Response:
    """Begins the stage m.login.sso. Spec: client-server-api/#sso-during-user-interactive-authentication

    The person is asked afterwards whether the operation is wanted: the provider may let them in without a word.
    """
    pending = await hs.database.read(_read_stage, query.session)
    if pending is None:
        return make_page(
            "Please start again",
            "This request is too old, or was carried out already. Go back to your app.",
            status=400,
        )
    known = [provider for provider in hs.config.sso if provider.id in pending]
    chosen = [provider for provider in known if query.provider in ("", provider.id)]
    if len(chosen) == 1:
        return await begin(hs, request, chosen[0], Goal.STAGE, query.session, fresh=True)
    if not known:
        return no_provider()
    links = {f"{STAGE}?{urlencode({'session': query.session, 'provider': each.id})}": each.name for each in known}
    return make_page("Confirm that it is you", "Log in again with", extras=PageExtras(links=links))


def _read_stage(tx: Transaction, session: str) -> list[str] | None:
    """Returns the providers of the user whose session it is, None if there is no such session."""
    pending = find_pending(tx, session)
    if pending is None or pending.user_id is None:
        return None
    return [provider for provider, _ in list_external_ids(tx, pending.user_id)]


def find_provider(hs: Resources, provider_id: str) -> SsoProvider | None:
    """Returns a provider of the configuration, None if there is none of this ID."""
    return next((provider for provider in hs.config.sso if provider.id == provider_id), None)


async def begin(
    hs: Resources, request: Request, provider: SsoProvider, goal: Goal, target: str, *, fresh: bool = False
) -> Response:
    """Returns the answer that sends the browser to a provider, or to a page that says that it cannot be reached.

    fresh: whether the person should log in at the provider again.
    """
    elsewhere = _at_base_url(hs, request)
    if elsewhere:
        return redirect(elsewhere)
    browser = find_browser(hs, request) or secrets.token_urlsafe(32)
    attempt = await hs.database.write(create_attempt, provider.id, goal, target, browser)
    try:
        url = await authorization_url(
            hs, provider, callback_url(hs), attempt.state, attempt.nonce, attempt.verifier, fresh=fresh
        )
    except ProviderError as error:
        note_failure(provider, error)
        return redirect(f"{_FAILED}?{urlencode({'provider': provider.id})}")
    lifetime_s = limits.users.SSO_ATTEMPT_LIFETIME_MS // 1000
    name = cookie_name(COOKIE, hs.config.base_url)
    return redirect(url, write_cookie(name, browser, hs.config.base_url, max_age_s=lifetime_s))


def find_browser(hs: Resources, request: Request) -> str:
    """Returns the secret in the browser's cookie, "" if there is none. Attempts in several tabs share it."""
    value = find_cookie(request, cookie_name(COOKIE, hs.config.base_url))
    return value if len(value) == 43 else ""  # 32 random bytes; nothing else is ours


def callback_url(hs: Resources) -> str:
    """Returns the URL to which providers send browsers back. Operators enter it at each of them."""
    return f"{hs.config.base_url}{CALLBACK}"


def _at_base_url(hs: Resources, request: Request) -> str:
    """Returns the same URL at the host of public.base_url, if the request came to another one; else "".

    Browsers send a cookie only to the host that has set it, and providers send them back to that of base_url.
    """
    wanted = urlsplit(hs.config.base_url).netloc.lower()
    if (request.find_header(b"host") or wanted).lower() == wanted or _SENT_ON in request.query:
        return ""
    return f"{hs.config.base_url}{request.uri}{'&' if request.query_string else '?'}{_SENT_ON}=1"


def no_provider() -> Response:
    """Returns the page for a provider that is not in the configuration."""
    return make_page(
        "This way to log in does not exist", "Go back to your app and choose another one.", status=404
    )  # fmt: skip


def provider_failed(provider: SsoProvider, error: ProviderError) -> Response:
    """Logs why a provider is of no use, and returns a page that says only that it is not."""
    note_failure(provider, error)
    return _failure(provider)


def note_failure(provider: SsoProvider, error: ProviderError) -> None:
    """Logs why a provider is of no use."""
    _log.warning("single sign-on failed", extra={"provider": provider.id, "reason": str(error)})


def _failure(provider: SsoProvider) -> Response:
    return make_page(
        f"{provider.name} cannot be used at the moment",
        "Go back to your app and try again later. If this goes on, tell the people who run this server.",
        status=502,
    )


def refused(error: MatrixError, cookie: str = "") -> Response:
    """Returns the page for a person who may not go on."""
    return make_page("You cannot log in", error.error, extras=PageExtras(cookie=cookie), status=error.status)
