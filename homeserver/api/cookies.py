"""Cookies: read from requests, and written for answers. Spec: RFC 6265

All are for this server only (`__Host-`), invisible to scripts, and not sent with what other sites post or embed.
"""

from __future__ import annotations

from homeserver.api.routes import Request


def cookie_name(name: str, base_url: str) -> str:
    """Returns the name under which a cookie is stored. Browsers allow the prefix over https only."""
    return f"__Host-{name}" if base_url.startswith("https:") else name


def find_cookie(request: Request, name: str) -> str:
    """Returns the value of a cookie, "" if the browser has sent none of this name, or several."""
    found = {
        value
        for header in request.list_header(b"cookie")  # HTTP/2 allows several
        for key, _, value in (part.strip().partition("=") for part in header.split(";"))
        if key == name
    }
    return found.pop() if len(found) == 1 else ""


def write_cookie(name: str, value: str, base_url: str, *, max_age_s: int) -> str:
    """Returns a Set-Cookie header. `max_age_s` 0 deletes the cookie."""
    secure = "; Secure" if base_url.startswith("https:") else ""
    return f"{name}={value}; Path=/; Max-Age={max_age_s}; HttpOnly; SameSite=Lax{secure}"
