"""Clients that have registered themselves. Spec: client-server-api/#client-registration, RFC 7591

All are public clients, which have no secret. All registrations with equal metadata are one client.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from homeserver import limits
from homeserver.authenticate import new_token
from homeserver.database import Transaction
from homeserver.encoding import to_json
from homeserver.moments import latest
from homeserver.users.oauth.errors import OAuthError
from homeserver.users.oauth.redirect_uris import (
    ApplicationType,
    InvalidUri,
    check_redirect_uri,
    check_related_uri,
    is_registered,
    parse_client_uri,
)
from homeserver.users.oauth.scopes import InvalidScope, parse_scope

DEVICE_CODE = "urn:ietf:params:oauth:grant-type:device_code"
GRANT_TYPES = ("authorization_code", "refresh_token", DEVICE_CODE)


class Metadata(msgspec.Struct, frozen=True, omit_defaults=True):
    """What a client says about itself, checked. Others of its values are not kept."""

    client_uri: str
    redirect_uris: tuple[str, ...]
    grant_types: tuple[str, ...]
    response_types: tuple[str, ...]
    token_endpoint_auth_method: str
    application_type: ApplicationType
    client_name: str | None = None
    logo_uri: str | None = None
    tos_uri: str | None = None
    policy_uri: str | None = None


class Client(msgspec.Struct, frozen=True):
    """A registered client, with the methods by which Authlib asks about one."""

    client_id: str
    metadata: Metadata

    @property
    def name(self) -> str:
        """What people are shown: the name that the client claims, or the host of its page."""
        return self.metadata.client_name or self.host

    @property
    def host(self) -> str:
        """The host of the client's page. Its redirect URIs belong to this host, or to the machine of the user."""
        return parse_client_uri(self.metadata.client_uri)

    def get_client_id(self) -> str:
        return self.client_id

    def get_default_redirect_uri(self) -> None:
        """Returns None: a client must always say where the user is to be sent."""

    def get_allowed_scope(self, scope: str | None) -> str | None:
        """Returns the part of a scope that is granted; None if there is none."""
        try:
            return parse_scope(scope or "").text
        except InvalidScope:
            return None

    def check_redirect_uri(self, redirect_uri: str) -> bool:
        return is_registered(redirect_uri, self.metadata.redirect_uris, self.metadata.application_type)

    def check_client_secret(self, client_secret: str) -> bool:
        return False

    def check_endpoint_auth_method(self, method: str, endpoint: str) -> bool:
        return method == "none"

    def check_response_type(self, response_type: str) -> bool:
        return response_type in self.metadata.response_types

    def check_grant_type(self, grant_type: str) -> bool:
        return grant_type in self.metadata.grant_types


# --- metadata ---


def parse_metadata(body: Mapping[str, Any]) -> Metadata:
    """Returns the metadata of a registration, without what this server does not support.

    Raises OAuthError invalid_client_metadata or invalid_redirect_uri.
    """
    try:
        host = parse_client_uri(body.get("client_uri"))
        for name in ("logo_uri", "tos_uri", "policy_uri"):
            if body.get(name) is not None:
                check_related_uri(body[name], host, name)
    except InvalidUri as error:
        raise _invalid(str(error)) from None
    application_type = body.get("application_type", "web")
    if application_type not in ("web", "native"):
        raise _invalid('application_type must be "web" or "native".')
    if body.get("token_endpoint_auth_method", "none") != "none":
        raise _invalid('token_endpoint_auth_method must be "none": this server has only public clients.')
    grant_types = _strings(body, "grant_types", ["authorization_code"])
    response_types = _strings(body, "response_types", ["code"])
    redirect_uris = _strings(body, "redirect_uris", [])
    if len(redirect_uris) > limits.users.OAUTH_REDIRECT_URIS_MAX:
        raise _invalid(f"A client may have at most {limits.users.OAUTH_REDIRECT_URIS_MAX} redirect URIs.")
    try:
        for uri in redirect_uris:
            check_redirect_uri(uri, host, application_type)
    except InvalidUri as error:
        raise OAuthError("invalid_redirect_uri", str(error)) from None
    granted = [each for each in GRANT_TYPES if each in grant_types or each == "refresh_token"]
    if granted == ["refresh_token"]:
        raise _invalid(f"grant_types must contain one of authorization_code and {DEVICE_CODE}.")
    if "authorization_code" in granted and "code" not in response_types:
        raise _invalid('response_types must contain "code" for the grant type authorization_code.')
    if "authorization_code" in granted and not redirect_uris:
        raise OAuthError("invalid_redirect_uri", "The client has no redirect URI.")
    return Metadata(
        client_uri=body["client_uri"],
        redirect_uris=tuple(dict.fromkeys(redirect_uris)),
        grant_types=tuple(granted),
        response_types=("code",) if "authorization_code" in granted else (),
        token_endpoint_auth_method="none",
        application_type=application_type,
        client_name=_read_name(body),
        logo_uri=body.get("logo_uri"),
        tos_uri=body.get("tos_uri"),
        policy_uri=body.get("policy_uri"),
    )


def _read_name(body: Mapping[str, Any]) -> str | None:
    """Returns the client's name, fit to be shown: nothing in it may hide or turn around what is next to it."""
    name = body.get("client_name")
    if name is None:
        return None
    if not isinstance(name, str) or len(name) > limits.users.OAUTH_NAME_CHARACTERS_MAX or not name.isprintable():
        most = limits.users.OAUTH_NAME_CHARACTERS_MAX
        raise _invalid(f"client_name must be printable text of at most {most} characters.")
    return name.strip() or None


def _strings(body: Mapping[str, Any], name: str, default: list[str]) -> Sequence[str]:
    value = body.get(name, default)
    if not isinstance(value, list) or not all(isinstance(each, str) for each in value):
        raise _invalid(f"{name} must be a list of strings.")
    return value


def _invalid(description: str) -> OAuthError:
    return OAuthError("invalid_client_metadata", description)


# --- storage ---


def store_client(tx: Transaction, metadata: Metadata) -> Client:
    """Returns the client with this metadata, a new one if it is not known yet.

    If there are too many, drops the one that was used longest ago, of those without a session. Raises OAuthError 503 if
    all have one.
    """
    known = find_equal_client(tx, metadata)
    if known is not None:
        note_client_used(tx, known.client_id)
        return known
    (count,) = tx.one("SELECT COUNT(*) FROM oauth_clients") or (0,)
    if count >= limits.users.OAUTH_CLIENTS_MAX and not delete_unused_clients(tx, at_most=1):
        raise OAuthError("temporarily_unavailable", "This server has too many clients.", status=503)
    client_id = new_token("hsoc")
    tx.run(
        "INSERT INTO oauth_clients (client_id, digest, metadata, used_ms) VALUES (?, ?, ?, ?)",
        client_id, _digest_of(metadata), to_json(metadata).decode(), tx.now_ms,
    )  # fmt: skip
    return Client(client_id, metadata)


def find_equal_client(tx: Transaction, metadata: Metadata) -> Client | None:
    """Returns the client with this metadata."""
    row = tx.one("SELECT client_id FROM oauth_clients WHERE digest = ?", _digest_of(metadata))
    return None if row is None else Client(row[0], metadata)


def _digest_of(metadata: Metadata) -> bytes:
    return hashlib.sha256(to_json(metadata)).digest()


def find_client(tx: Transaction, client_id: str) -> Client | None:
    """Returns a registered client."""
    if len(client_id) > limits.users.OAUTH_CODE_CHARACTERS_MAX or "\0" in client_id:
        return None
    row = tx.one("SELECT metadata FROM oauth_clients WHERE client_id = ?", client_id)
    return None if row is None else Client(client_id, msgspec.json.decode(row[0], type=Metadata))


def note_client_used(tx: Transaction, client_id: str) -> None:
    """Notes that someone uses the client: those that nobody uses are dropped."""
    tx.run("UPDATE oauth_clients SET used_ms = ? WHERE client_id = ?", tx.now_ms, client_id)


def delete_unused_clients(tx: Transaction, *, at_most: int, since_ms: int | None = None) -> int:
    """Deletes clients without sessions and pending codes, the least recently used first. Returns how many.

    since_ms: only those that have not been used since, as far as this can be said of a clock that was ahead.
    """
    before_ms = latest(tx.now_ms, 0) if since_ms is None else since_ms
    return tx.run(
        "DELETE FROM oauth_clients WHERE client_id IN (SELECT c.client_id FROM oauth_clients c"
        " WHERE (c.used_ms <= ? OR c.used_ms > ?)"
        " AND NOT EXISTS (SELECT 1 FROM oauth_sessions s WHERE s.client_id = c.client_id)"
        " AND NOT EXISTS (SELECT 1 FROM oauth_codes k WHERE k.client_id = c.client_id)"
        " AND NOT EXISTS (SELECT 1 FROM oauth_device_grants g WHERE g.client_id = c.client_id)"
        " ORDER BY c.used_ms LIMIT ?)",
        before_ms, latest(tx.now_ms, 0), at_most,
    )  # fmt: skip
