"""Pages for people who open the server's address in a browser, next to the Matrix API.

The page to talk in is made of files, which need no framework. The others, such as the account pages, are a Quart
application. It takes much of a second to import, so it is imported when the first of them is requested: a server that
only speaks Matrix, or serves the page to talk in, never loads it.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, Literal
from urllib.parse import urlsplit

from homeserver.config import Config
from homeserver.pages import chat
from homeserver.pages.files import Files
from homeserver.resources import Resources

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
AsgiApp = Callable[[Scope, Receive, Send], Awaitable[None]]

# These pages load nothing from elsewhere and cannot be framed; the markup needs only its own style.
SECURITY_HEADERS = {
    "content-security-policy": "default-src 'none'; style-src 'unsafe-inline'; img-src data:; frame-ancestors 'none'",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
}
ACCOUNTS = {
    "token": "New accounts need a registration token. Ask the people who run this server for one.",
    "open": "Registration is open: choose “Create account” on the chat page or in your client.",
    "closed": "Accounts are created by the people who run this server. Ask them for one.",
}


def make_pages(hs: Resources, files: Files | None = None) -> AsgiApp:
    """Returns the ASGI application for every path outside the Matrix API, and for the pages below `/_homeserver/`.

    files: how pictures are stored; without it people cannot change theirs.
    """
    return Pages(hs, files)


class Pages:
    """The ASGI application of all pages. Its requests are of HTTP only."""

    def __init__(self, hs: Resources, files: Files | None) -> None:
        self._hs = hs
        self._storage = files
        config = hs.config
        self._files = chat.ChatFiles(config.server_name, registration_of(config)) if config.chat.enabled else None
        self._others: AsgiApp | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        answer = None
        if self._files is not None:
            headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}
            answer = self._files.find(scope["path"].removeprefix(scope.get("root_path", "")), headers)
        if answer is None:
            if self._others is None:
                self._others = await self._hs.workers.run(_make_others, self._hs, self._storage)
            await self._others(scope, receive, send)
        elif scope["method"] not in ("GET", "HEAD"):
            await _send(chat.Answer(405, {"allow": "GET, HEAD"}), scope, send)
        else:
            await _send(answer, scope, send)


async def _send(answer: chat.Answer, scope: Scope, send: Send) -> None:
    fields = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in answer.headers.items()]
    if answer.status != 304:
        fields.append((b"content-length", b"%d" % len(answer.body)))
    await send({"type": "http.response.start", "status": answer.status, "headers": fields})
    await send({"type": "http.response.body", "body": b"" if scope["method"] == "HEAD" else answer.body})


def _make_others(hs: Resources, files: Files | None) -> AsgiApp:
    """Returns the Quart application of the pages that are made from templates."""
    from quart import render_template  # late on purpose, see above
    from quart_trio import QuartTrio

    from homeserver.pages.account import add_account_pages
    from homeserver.pages.templates import compiled_templates

    config = hs.config
    pages = QuartTrio(__name__, template_folder=".", static_folder=None)
    pages.jinja_options = {**pages.jinja_options, "bytecode_cache": compiled_templates()}
    add_account_pages(pages, hs, files)

    @pages.get("/")
    async def show_welcome() -> str:
        return await render_template("welcome.html", **welcome(config))

    @pages.errorhandler(404)
    async def show_missing(_: Exception) -> tuple[str, int]:
        return await render_template("missing.html", server_name=config.server_name), 404

    @pages.after_request
    async def add_headers(response: Any) -> Any:
        for name, value in SECURITY_HEADERS.items():
            response.headers.setdefault(name, value)
        return response

    return pages


def registration_of(config: Config) -> Literal["closed", "token", "open"]:
    """Returns who can create an account: nobody, people with a registration token, or anyone."""
    if not config.registration.enabled:
        return "closed"
    return "token" if config.registration.require_token else "open"


def welcome(config: Config) -> dict[str, Any]:
    """Returns the variables of the first page: names, addresses, and how to get an account."""
    accounts = ACCOUNTS[registration_of(config)]
    by_name = config.public.serve_well_known and urlsplit(config.base_url).hostname == config.server_name
    return {
        "server_name": config.server_name,
        "base_url": config.base_url,
        "homeserver": config.server_name if by_name else config.base_url,
        "accounts": accounts,
        "federates": config.federation.enabled,
        "chat": config.chat.enabled,
    }
