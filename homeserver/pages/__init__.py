"""Pages for people who open the server's address in a browser: a Quart application next to the Matrix API.

Quart is imported when the first page is requested, so a server that only speaks Matrix never loads it.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any
from urllib.parse import urlsplit

from homeserver.config import Config
from homeserver.pages import chat

# These pages load nothing from elsewhere and cannot be framed; the markup needs only its own style.
SECURITY_HEADERS = {
    "content-security-policy": "default-src 'none'; style-src 'unsafe-inline'; img-src data:; frame-ancestors 'none'",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
}


def make_pages(config: Config) -> Callable[..., Awaitable[None]]:
    """Returns the ASGI application for every path outside the Matrix API, and for the page to talk in."""
    from quart import Response, abort, render_template, request  # late on purpose, see above
    from quart_trio import QuartTrio

    pages = QuartTrio(__name__, template_folder=".", static_folder=None)

    @pages.get("/")
    async def show_welcome() -> str:
        return await render_template("welcome.html", **welcome(config))

    if config.chat.enabled:
        files = chat.ChatFiles(config.server_name)

        @pages.get(chat.PATH)
        @pages.get(f"{chat.PATH}/<path:file>")
        async def show_chat(file: str = "") -> Any:
            answer = files.find(request.path, {name.lower(): value for name, value in request.headers.items()})
            if answer is None:
                abort(404)
            return Response(answer.body, answer.status, dict(answer.headers))

    @pages.errorhandler(404)
    async def show_missing(_: Exception) -> tuple[str, int]:
        return await render_template("missing.html", server_name=config.server_name), 404

    @pages.after_request
    async def add_headers(response: Any) -> Any:
        for name, value in SECURITY_HEADERS.items():
            response.headers.setdefault(name, value)
        return response

    return pages


def welcome(config: Config) -> dict[str, Any]:
    """Returns the variables of the first page: names, addresses, and how to get an account."""
    registration = config.registration
    if registration.enabled and registration.require_token:
        accounts = "New accounts need a registration token. Ask the people who run this server for one."
    elif registration.enabled:
        accounts = "Registration is open: choose “Create account” in your client."
    else:
        accounts = "Accounts are created by the people who run this server. Ask them for one."
    by_name = config.public.serve_well_known and urlsplit(config.base_url).hostname == config.server_name
    return {
        "server_name": config.server_name,
        "base_url": config.base_url,
        "homeserver": config.server_name if by_name else config.base_url,
        "accounts": accounts,
        "federates": config.federation.enabled,
        "chat": config.chat.enabled,
    }
