"""Providers of OpenID Connect: where to send a browser, and who has come back from there.

A provider is chosen by the operator, but what it publishes and answers is not trusted: requests go through the guard
against private addresses, by the rules of [outbound_http], are limited in time and size, and follow no redirects. Every
way in which a provider fails is a ProviderError. Spec: OpenID Connect Core 1.0, section 3.1; Discovery 1.0, section 4
"""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Mapping
from hashlib import sha256
from typing import Any
from urllib.parse import quote_plus, urlencode, urlsplit

import msgspec
import orjson
import trio

from homeserver import limits
from homeserver.config import ConfigError, SsoProvider, read_secret
from homeserver.errors import MatrixError
from homeserver.feature import JsonObject
from homeserver.federation.signing import encode_base64
from homeserver.federation.wire import WireError
from homeserver.remote.id_tokens import BadToken, UnknownKey, verify_id_token
from homeserver.resources import Resources

_DISCOVERY = "/.well-known/openid-configuration"
_FORM = "application/x-www-form-urlencoded"


class ProviderError(Exception):
    """The provider cannot be reached, or answers nonsense. The message is for the log, not for the person."""


class Endpoints(msgspec.Struct, frozen=True):
    """Where a provider is spoken to. userinfo: "" if it has none."""

    authorization: str
    token: str
    userinfo: str
    jwks: str


async def get_endpoints(hs: Resources, provider: SsoProvider) -> Endpoints:
    """Returns what is configured, and else what the provider publishes. Raises ProviderError."""
    published: JsonObject = {}
    if provider.discover:
        url = provider.issuer.rstrip("/") + _DISCOVERY
        published = await _get_document(hs, url, limits.users.SSO_METADATA_AGE_S)
        if published.get("issuer") != provider.issuer:
            hs.documents.forget(url)
            raise ProviderError(f"{url} is about another issuer: {str(published.get('issuer'))[:200]!r}")
    found = Endpoints(
        provider.authorization_endpoint or _endpoint(published, "authorization_endpoint"),
        provider.token_endpoint or _endpoint(published, "token_endpoint"),
        provider.userinfo_endpoint or _endpoint(published, "userinfo_endpoint"),
        provider.jwks_uri or _endpoint(published, "jwks_uri"),
    )
    if not (found.authorization and found.token and found.jwks):
        raise ProviderError("the provider does not publish where to log in")
    return found


def _endpoint(published: JsonObject, name: str) -> str:
    """Returns a published URL, "" if there is none that can be used."""
    url = published.get(name)
    try:
        parts = urlsplit(url) if isinstance(url, str) and url.isascii() and url.isprintable() else None
        usable = parts is not None and parts.scheme in ("https", "http") and bool(parts.hostname) and not parts.fragment
    except ValueError:
        usable = False
    return str(url) if usable and " " not in str(url) else ""


async def authorization_url(
    hs: Resources, provider: SsoProvider, callback: str, state: str, nonce: str, verifier: str, *, fresh: bool = False
) -> str:
    """Returns the URL at the provider to which a browser is sent. Raises ProviderError.

    fresh: whether people should log in there even if they have done so already. Not every provider does that.
    verifier: the secret of PKCE. The URL has only its hash. Spec: RFC 7636
    """
    endpoint = (await get_endpoints(hs, provider)).authorization
    challenge = encode_base64(sha256(verifier.encode()).digest()).translate(str.maketrans("+/", "-_"))
    query = urlencode(
        {
            "response_type": "code",
            "client_id": provider.client_id,
            "redirect_uri": callback,
            "scope": " ".join(provider.scopes),
            "state": state,
            "nonce": nonce,
            "code_challenge": challenge,
            "code_challenge_method": "S256",
            **({"max_age": "0"} if fresh else {}),
        }
    )
    return f"{endpoint}{'&' if '?' in endpoint else '?'}{query}"


async def redeem_code(
    hs: Resources, provider: SsoProvider, code: str, verifier: str, nonce: str, callback: str, wanted: frozenset[str]
) -> JsonObject:
    """Returns the claims about the person whom the provider has given this code to. Raises ProviderError.

    wanted: if the ID token lacks one of these claims, the userinfo endpoint is asked for the rest.
    """
    endpoints = await get_endpoints(hs, provider)
    answer = await _ask_for_tokens(hs, provider, endpoints.token, code, verifier, callback)
    id_token, access_token = answer.get("id_token"), answer.get("access_token", "")
    if not isinstance(id_token, str) or not isinstance(access_token, str):
        raise ProviderError("the token endpoint gave no ID token")
    claims = await _verify(hs, provider, endpoints.jwks, id_token, nonce, access_token)
    if endpoints.userinfo and access_token and wanted - claims.keys():
        headers = {"authorization": f"Bearer {access_token}", "accept": "application/json"}
        more = await _request(hs, "GET", endpoints.userinfo, headers)
        if more.get("sub") != claims["sub"]:  # OpenID Connect Core, section 5.3.2: else it may be somebody else
            raise ProviderError("the userinfo endpoint is about another subject")
        claims = {**more, **claims}
    return claims


async def _ask_for_tokens(
    hs: Resources, provider: SsoProvider, url: str, code: str, verifier: str, callback: str
) -> JsonObject:
    form = {"grant_type": "authorization_code", "code": code, "redirect_uri": callback, "code_verifier": verifier}
    headers = {"content-type": _FORM, "accept": "application/json"}
    try:
        secret = provider.client_secret or (
            read_secret("sso.client_secret_file", provider.client_secret_file) if provider.client_secret_file else ""
        )
    except ConfigError as error:
        raise ProviderError(str(error)) from error
    if secret and provider.client_auth == "basic":  # RFC 6749, section 2.3.1: both parts are encoded first
        joined = f"{quote_plus(provider.client_id)}:{quote_plus(secret)}"
        headers["authorization"] = f"Basic {b64encode(joined.encode()).decode()}"
    else:
        form["client_id"] = provider.client_id
        if secret:
            form["client_secret"] = secret
    return await _request(hs, "POST", url, headers, urlencode(form).encode())


async def _verify(
    hs: Resources, provider: SsoProvider, jwks: str, id_token: str, nonce: str, access_token: str
) -> JsonObject:
    """Returns the claims of an ID token. The provider's keys are fetched again if it is signed with an unknown one."""
    now_s = hs.now_ms() // 1000
    for age_s_max in (limits.users.SSO_METADATA_AGE_S, limits.users.SSO_KEYS_AGE_S):
        keys = await _get_document(hs, jwks, age_s_max)
        try:
            return await hs.workers.run(
                verify_id_token, id_token, keys, provider.issuer, provider.client_id, nonce, access_token, now_s
            )
        except UnknownKey as error:
            unknown = error
        except BadToken as error:
            raise ProviderError(str(error)) from error
    raise ProviderError(str(unknown)) from unknown


async def _get_document(hs: Resources, url: str, age_s_max: float) -> JsonObject:
    """Returns a document of a provider. Requests at the same time share one fetch, and a failure is not kept."""
    found = hs.documents.get(url, trio.current_time(), age_s_max)
    if found is None:
        try:
            found = await hs.flights.join(hs.nursery, ("openid", url), _fetch_document, hs, url)
        except MatrixError as error:  # too much at once, or closing
            raise ProviderError(error.error) from error
    document: JsonObject = found
    return document


async def _fetch_document(hs: Resources, url: str) -> JsonObject:
    document = await _request(hs, "GET", url, {"accept": "application/json"})
    hs.documents.put(url, document, trio.current_time())
    return document


async def _request(
    hs: Resources, method: str, url: str, headers: Mapping[str, str], body: bytes | None = None
) -> JsonObject:
    """Returns the JSON object of an answer. Raises ProviderError for everything else."""
    where = url.partition("?")[0]
    content: Any = None
    with trio.move_on_after(limits.users.SSO_TIMEOUT_S):
        try:
            answer = await hs.wire.request_url(
                method,
                url,
                headers=headers,
                body=body,
                timeout_s=limits.users.SSO_TIMEOUT_S,
                max_bytes=limits.users.SSO_ANSWER_BYTES_MAX,
            )
        except WireError as error:
            raise ProviderError(f"{where}: {error}") from error
        try:
            content = orjson.loads(answer.body)
        except orjson.JSONDecodeError:
            content = None
        if answer.status != 200:
            told = content.get("error") if isinstance(content, dict) else None
            raise ProviderError(f"{where} answered {answer.status} {str(told or '')[:100]!r}")
        if not isinstance(content, dict):
            raise ProviderError(f"{where} answered no JSON object")
        return content
    raise ProviderError(f"{where} took longer than {limits.users.SSO_TIMEOUT_S:g} s")
