"""`[[sso]]`: outside providers of OpenID Connect with which people log in. See docs/sso.md."""

from __future__ import annotations

import re
from typing import Literal
from urllib.parse import urlsplit

from homeserver.config.values import ConfigError, Section, check_url

# Spec: client-server-api/#definition-mloginsso-flow-schema
_ID = re.compile(r"[0-9A-Za-z._~-]{1,255}")
_BRAND = re.compile(r"[a-z][a-z0-9._-]{0,254}")
_PLACE = re.compile(r"\{[A-Za-z0-9_.:/-]{1,255}(?:\|localpart)?\}")
_SCOPE = re.compile(r"[\x21\x23-\x5b\x5d-\x7e]+")  # RFC 6749, section 3.3
_ENDPOINTS = ("authorization_endpoint", "token_endpoint", "userinfo_endpoint", "jwks_uri")


class SsoProvider(Section, frozen=True):
    """One provider. `{claim}` in a template stands for a claim of the ID token, or of the userinfo endpoint.

    Without `discover`, the endpoints must be given; with it, those that are given replace what the provider publishes.
    """

    id: str
    name: str
    issuer: str
    client_id: str
    client_secret: str = ""
    client_secret_file: str = ""
    client_auth: Literal["basic", "post"] = "basic"
    brand: str = ""
    icon: str = ""
    scopes: tuple[str, ...] = ("openid", "profile", "email")
    discover: bool = True
    authorization_endpoint: str = ""
    token_endpoint: str = ""
    userinfo_endpoint: str = ""
    jwks_uri: str = ""
    localpart_template: str = "{preferred_username}"
    display_name_template: str = "{name}"
    email_template: str = "{email}"
    ask_for_name: bool = True
    create_accounts: bool = True
    allow_existing_users: bool = False
    trusted_client_urls: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        if not _ID.fullmatch(self.id):
            raise ConfigError(f"sso.id: {self.id!r} must have 1 to 255 of the characters 0-9 A-Z a-z . _ ~ -")
        for key in ("name", "client_id"):
            if not getattr(self, key):
                raise ConfigError(f"sso.{key} of {self.id!r} must not be empty")
        check_url("sso.issuer", self.issuer)
        for key in _ENDPOINTS:
            _check_endpoint(f"sso.{key}", getattr(self, key))
        missing = [key for key in _ENDPOINTS if key != "userinfo_endpoint" and not getattr(self, key)]
        if not self.discover and missing:
            raise ConfigError(f"sso.{missing[0]} of {self.id!r} must be given if sso.discover is false")
        if self.client_secret and self.client_secret_file:
            raise ConfigError(f"sso.client_secret and client_secret_file of {self.id!r}: give one of them")
        if self.brand and not _BRAND.fullmatch(self.brand):
            raise ConfigError(f'sso.brand: {self.brand!r} must be a name such as "google" or "org.example.login"')
        if self.icon and not self.icon.startswith("mxc://"):
            raise ConfigError(f"sso.icon: {self.icon!r} must be the mxc:// address of an uploaded picture")
        if "openid" not in self.scopes:
            raise ConfigError(f'sso.scopes of {self.id!r} must contain "openid"')
        for scope in self.scopes:
            if not _SCOPE.fullmatch(scope):
                raise ConfigError(f"sso.scopes: {scope!r} is not a scope")
        for key in ("localpart_template", "display_name_template", "email_template"):
            if set("{}") & set(_PLACE.sub("", getattr(self, key))):
                raise ConfigError(
                    f"sso.{key}: write claims as in {{email}} or {{email|localpart}}, in one pair of braces"
                )
        for url in self.trusted_client_urls:
            if not urlsplit(url).scheme or not url.isprintable() or " " in url:
                raise ConfigError(f"sso.trusted_client_urls: {url!r} is not the beginning of a URL")


def _check_endpoint(key: str, value: str) -> None:
    """Raises ConfigError unless the value is "" or an http or https URL. Unlike an issuer it may have a query."""
    if value:
        check_url(key, value.partition("?")[0])
