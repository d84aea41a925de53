"""URLs of clients, to which a login token is sent. A token opens the account, so each of them is suspect.

Spec: client-server-api/#sso-client-loginauthentication, "Security considerations"
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from urllib.parse import parse_qsl, urlencode, urlsplit, urlunsplit

from homeserver import limits
from homeserver.errors import invalid_param

_SCHEME = re.compile(r"[a-z][a-z0-9+.-]*")
_REFUSED = frozenset(
    {
        # they run what stands in them, or show it as if it were a page of ours
        "javascript", "data", "vbscript", "blob", "filesystem", "view-source", "about", "srcdoc",
        # they start programs with what stands in them, and are not the scheme of a client
        "file", "intent", "ms-appx", "mailto", "tel", "sms", "ftp", "ws", "wss", "jar", "content", "market",
    }
)  # fmt: skip


def check_client_url(url: str) -> None:
    """Raises M_INVALID_PARAM unless the URL can be that of a client: http, https, or an app's own scheme."""
    refused = invalid_param("The redirectUrl is not the URL of a client.")
    if not 0 < len(url) <= limits.users.SSO_URL_CHARACTERS_MAX or set(url) & set(' "<>\\^`{|}'):
        raise refused
    if not (url.isascii() and url.isprintable()):
        raise refused
    try:
        parts = urlsplit(url)
        host = parts.hostname  # the port may not be a number
        _ = parts.port
    except ValueError:
        raise refused from None
    if not _SCHEME.fullmatch(parts.scheme) or parts.scheme in _REFUSED or "@" in parts.netloc:
        raise refused
    if parts.scheme in ("http", "https") and not host:
        raise refused


def is_trusted(url: str, trusted: Iterable[str]) -> bool:
    """Returns whether the URL begins with one of the trusted ones: same scheme, host and port, and below its path."""
    return any(_begins_with(url, beginning) for beginning in trusted)


def _begins_with(url: str, beginning: str) -> bool:
    ours, wanted = urlsplit(url), urlsplit(beginning)
    if (ours.scheme, ours.netloc.lower()) != (wanted.scheme, wanted.netloc.lower()):
        return False
    if any(part in (".", "..") for part in re.split(r"/|%2[fF]", ours.path.replace("%2e", ".").replace("%2E", "."))):
        return False  # browsers resolve these, so the path would lead elsewhere
    path = wanted.path.rstrip("/")
    return ours.path == path or ours.path.startswith(f"{path}/")


def with_login_token(url: str, token: str) -> str:
    """Returns the URL with the query parameter `loginToken`, instead of any that it has."""
    parts = urlsplit(url)
    kept = [part for part in parts.query.split("&") if part and not _is_login_token(part)]
    query = "&".join([*kept, urlencode({"loginToken": token})])
    return urlunsplit((parts.scheme, parts.netloc, parts.path, query, parts.fragment))


def _is_login_token(part: str) -> bool:
    return any(name == "loginToken" for name, _ in parse_qsl(part, keep_blank_values=True))


def source_of(url: str) -> str:
    """Returns what a Content-Security-Policy calls the place of a URL: its origin, or the scheme of an app."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc}" if parts.scheme in ("http", "https") else f"{parts.scheme}:"


def shown(url: str) -> str:
    """Returns what people should read of a URL before they trust it: the host, or the scheme of an app."""
    parts = urlsplit(url)
    return parts.netloc if parts.scheme in ("http", "https") else f"the app for “{parts.scheme}:”"
