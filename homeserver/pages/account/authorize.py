"""Consent: a person lets an app in, or does not. The authorization endpoint of the OAuth 2.0 API.

Everything about the request is in the page's URL, and is read again when the person has decided, see
`homeserver.users.oauth.requests`. Names and addresses of apps are what those say about themselves: they are shown as
text, and links are https only. Logos are not loaded: that would tell another server who looks at the page.
Spec: client-server-api/#authorisation-code-flow
"""

from __future__ import annotations

from urllib.parse import parse_qs, quote, urlencode, urlsplit

import msgspec

from homeserver import limits
from homeserver.config import Config
from homeserver.database import Transaction
from homeserver.errors import MatrixError
from homeserver.federation.identifiers import UserID
from homeserver.pages.account.visits import Answer, Page, PageRoutes, Problem, Redirect, Visit, page_path
from homeserver.resources import Resources
from homeserver.users.devices import Device, find_device
from homeserver.users.oauth.clients import Client
from homeserver.users.oauth.requests import (
    AuthorizationRefused,
    AuthorizationRequest,
    deny,
    read_request,
    store_code,
)

routes = PageRoutes()


class _Asked(msgspec.Struct, frozen=True):
    """A request, and the device of the user that it is about, if that is logged in already."""

    request: AuthorizationRequest
    device: Device | None


@routes.get("authorize", is_public=True)
async def show_consent(hs: Resources, visit: Visit) -> Answer:
    check_is_enabled(hs.config)
    try:
        asked = await hs.database.read(
            _read_asked, _parameters(visit), None if visit.session is None else visit.user_id
        )
    except AuthorizationRefused as refused:
        return _refused(refused)
    request = asked.request
    if request.wants_account and hs.config.registration.enabled:
        return Redirect(f"{page_path('register')}?return_to={quote(_without_prompt(visit), safe='')}")
    if visit.session is None:
        hint = _name_of(hs, request.login_hint)
        name = f"&name={quote(hint, safe='')}" if hint else ""
        return Redirect(f"{page_path('login')}?return_to={quote(visit.here, safe='')}{name}")
    return _consent_page(visit, asked)


def check_is_enabled(config: Config) -> None:
    """Raises M_NOT_FOUND if apps cannot log in by OAuth."""
    if not config.oauth.enabled:
        raise MatrixError(404, "M_NOT_FOUND", "There is no such page.")


def _read_asked(tx: Transaction, parameters: dict[str, list[str]], user_id: UserID | None) -> _Asked:
    request = read_request(tx, parameters)
    return _Asked(request, None if user_id is None else find_device(tx, user_id, request.scope.device_id))


def _parameters(visit: Visit) -> dict[str, list[str]]:
    try:
        return parse_qs(visit.query_string, keep_blank_values=True, max_num_fields=limits.PAGE_FORM_FIELDS_MAX)
    except ValueError:
        raise AuthorizationRefused("The request has too many parameters.") from None


def _without_prompt(visit: Visit) -> str:
    """Returns the page's address without `prompt`, to come back to when the person has an account."""
    parameters = {name: values for name, values in _parameters(visit).items() if name != "prompt"}
    return f"{visit.path}?{urlencode(parameters, doseq=True)}"


def _name_of(hs: Resources, hint: str) -> str:
    """Returns the username in the hint of an app ("mxid:@alice:example.org"), "" if it is not one of this server."""
    user_id = hint.removeprefix("mxid:")
    localpart, _, server_name = user_id.removeprefix("@").partition(":")
    return localpart if user_id.startswith("@") and server_name == hs.server_name else ""


def _refused(refused: AuthorizationRefused) -> Page:
    title = "This app asks for something that is not possible"
    return Page("refused.html", {"title": title, "said": str(refused), "return_to": refused.return_to}, status=400)


def _consent_page(visit: Visit, asked: _Asked, problems: tuple[Problem, ...] = (), status: int = 200) -> Page:
    request = asked.request
    values = {
        "client": client_values(request.client),
        "query": visit.query_string,
        "here": visit.here,
        "target": target_of(request.redirect_uri),
        "device_id": request.scope.device_id,
        "device": asked.device,
    }
    return Page("authorize.html", values, problems, status, form_targets=(csp_source(request.redirect_uri),))


@routes.post("authorize")
async def decide(hs: Resources, visit: Visit) -> Answer:
    check_is_enabled(hs.config)
    try:
        asked = await hs.database.read(_read_asked, _parameters(visit), visit.user_id)
    except AuthorizationRefused as refused:
        return _refused(refused)
    decision = visit.text("decision")
    if decision == "refuse":
        return Redirect(deny(asked.request), is_outside=True)
    if decision != "allow":
        return _consent_page(visit, asked, (Problem("", "Choose Allow or Cancel."),), 400)
    return Redirect(await hs.database.write(store_code, asked.request, visit.user_id), is_outside=True)


# --- what is shown of apps ---


def client_values(client: Client) -> dict[str, str | None]:
    """Returns what pages show of an app. Its links are https only, whatever is stored."""
    metadata = client.metadata
    return {
        "name": client.name,
        "host": client.host,
        "uri": https_only(metadata.client_uri),
        "policy_uri": https_only(metadata.policy_uri),
        "tos_uri": https_only(metadata.tos_uri),
    }


def https_only(uri: str | None) -> str | None:
    """Returns a URI that may be a link; None for every other one."""
    return uri if uri is not None and uri.lower().startswith("https://") else None


def target_of(redirect_uri: str) -> str:
    """Returns where the browser goes after the decision, in words; "" for an app on this machine."""
    parts = urlsplit(redirect_uri)
    return parts.hostname or "" if parts.scheme == "https" else ""


def csp_source(redirect_uri: str) -> str:
    """Returns a redirect URI as a source of `form-action`: Chromium applies that to the redirect after a form."""
    parts = urlsplit(redirect_uri)
    if parts.scheme in ("http", "https") and "[" not in parts.netloc:  # the grammar of sources has no IPv6 addresses
        return f"{parts.scheme}://{parts.netloc}"
    return f"{parts.scheme}:"
