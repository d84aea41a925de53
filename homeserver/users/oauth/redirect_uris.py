"""Which redirect URIs a client may register, and which it may use. They are how it proves who it is.

Spec: client-server-api/#redirect-uri-validation, RFC 8252, section 7
"""

from __future__ import annotations

import re
from collections.abc import Collection
from typing import Literal
from urllib.parse import SplitResult, urlsplit

from homeserver import limits

ApplicationType = Literal["web", "native"]

# What RFC 3986 allows, so that browsers and Python cut a URI at the same places.
_URI = re.compile(r"[A-Za-z0-9\-._~:/?\[\]@!$&'()*+,;=%]+")
_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*")
_HOST = re.compile(r"[a-z0-9]([a-z0-9-]*[a-z0-9])?(\.[a-z0-9]([a-z0-9-]*[a-z0-9])?)*")
_LOOPBACK = re.compile(r"(http://(?:localhost|127\.0\.0\.1|\[::1\]))(?::([0-9]{1,5}))?([/?].*)?")


class InvalidUri(ValueError):
    """The URI cannot be used. The message is for the author of the client."""


def parse_client_uri(text: object) -> str:
    """Returns the host of a client's own page. Raises InvalidUri unless it is an https URL without a password."""
    return _split_https(text, "client_uri").hostname or ""


def check_related_uri(text: object, client_host: str, name: str) -> None:
    """Raises InvalidUri unless `text` is an https URL on the client's host, or on a subdomain of it."""
    host = _split_https(text, name).hostname or ""
    if host != client_host and not host.endswith(f".{client_host}"):
        raise InvalidUri(f"{name} must be on the host of the client_uri, {client_host}, or on a subdomain of it.")


def check_redirect_uri(text: object, client_host: str, application_type: ApplicationType) -> None:
    """Raises InvalidUri if a client may not register this redirect URI."""
    uri = _checked_text(text, "A redirect URI")
    if application_type == "web" or uri[:6].lower() == "https:":
        check_related_uri(uri, client_host, "A redirect URI")
        return
    scheme, _, rest = uri.partition(":")
    if scheme.lower() == "http":
        loopback = _LOOPBACK.fullmatch(uri)
        if loopback is None or loopback[2] is not None:
            raise InvalidUri(
                "A redirect URI with http must be on localhost, 127.0.0.1 or [::1], without a port: any port may be "
                "used later."
            )
        return
    reverse = ".".join(reversed(client_host.split(".")))
    if "." not in client_host or not f"{scheme.lower()}.".startswith(f"{reverse}.") or not _SCHEME.fullmatch(scheme):
        raise InvalidUri(f"The scheme of a redirect URI must begin with {reverse}, the reverse of the client_uri.")
    if rest.startswith("//"):
        raise InvalidUri("A redirect URI with a scheme of its own must have no authority: write one slash, or none.")


def is_registered(text: str, registered: Collection[str], application_type: ApplicationType) -> bool:
    """Returns whether a client may use this redirect URI: it is one of the registered, but for a loopback port."""
    if text in registered:
        return True
    found = _LOOPBACK.fullmatch(text) if application_type == "native" else None
    if found is None or found[2] is None or not 0 < int(found[2]) < 65_536:
        return False
    return found[1] + (found[3] or "") in registered


def _checked_text(text: object, name: str) -> str:
    if not isinstance(text, str) or len(text) > limits.users.OAUTH_URI_CHARACTERS_MAX or not _URI.fullmatch(text):
        raise InvalidUri(
            f"{name} must be a URI without a fragment, of at most {limits.users.OAUTH_URI_CHARACTERS_MAX} characters."
        )
    return text


def _split_https(text: object, name: str) -> SplitResult:
    uri = _checked_text(text, name)
    try:
        parts = urlsplit(uri)
        host, _ = parts.hostname or "", parts.port  # a ValueError unless it is a number
    except ValueError:
        raise InvalidUri(f"{name} is not a valid URL.") from None
    if parts.scheme != "https" or not uri[6:].startswith("//"):
        raise InvalidUri(f"{name} must be an https URL.")
    if "@" in parts.netloc:
        raise InvalidUri(f"{name} must not contain a user or a password.")
    if not _HOST.fullmatch(host):
        raise InvalidUri(f"{name} must have a domain name.")
    return parts
