"""The account pages as a Quart application: sessions, form tokens, headers, errors.

Theory of operation. Each request passes the same steps, in this order:
1. The rate limit of its address.
2. Its session. Without one, a page that needs it leads to the log-in page, which leads back.
3. For a form: it comes from this site (`Sec-Fetch-Site`, if the browser sends it), is not too large, and carries the
   token that follows from the browser's cookie. Forms of browsers that are not logged in are bound to a cookie of their
   own, so nobody can log another person in to an account of theirs.
4. The handler.
5. The headers, which are the same for all pages: nothing is stored, framed, or loaded from elsewhere.
"""

from __future__ import annotations

import hashlib
import hmac
import logging
import secrets
from collections.abc import Awaitable, Callable, Iterable
from pathlib import Path
from urllib.parse import quote, urlsplit

from msgspec.structs import replace
from quart import Quart, Response, render_template, request
from werkzeug.exceptions import HTTPException

from homeserver import limits
from homeserver.api.cookies import cookie_name, write_cookie
from homeserver.authenticate import new_token
from homeserver.background import single_error
from homeserver.blobs import BlobError
from homeserver.database import DatabaseError
from homeserver.errors import MatrixError
from homeserver.pages.account.visits import Answer, Data, Page, PageRoute, Redirect, Visit, page_path
from homeserver.pages.files import Files
from homeserver.process.rate_limits import address_key
from homeserver.resources import Resources
from homeserver.users.page_sessions import (
    PAGES_PATH,
    PageSession,
    find_page_session,
    form_token,
    local_path,
    session_cookie,
    set_session_cookie,
)

_log = logging.getLogger(__name__)

FILES = {"style.css": "text/css; charset=utf-8", "passkeys.js": "text/javascript; charset=utf-8"}
# The cookie of a browser that is not logged in: its forms are bound to it.
BROWSER_COOKIE = "homeserver-browser"
HEADERS = {
    "cache-control": "no-store",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(), geolocation=(), microphone=()",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
}
_TITLES = {401: "Please log in", 403: "This is not allowed", 404: "Nothing here", 429: "Please wait"}


class Serving:
    """Serves the routes of the account pages on a Quart application."""

    def __init__(self, hs: Resources, storage: Files | None) -> None:
        self._hs = hs
        self._storage = storage
        self._base_url = hs.config.base_url
        self._root = urlsplit(self._base_url).path.rstrip("/")  # of a proxy that serves all of it below another path
        folder = Path(__file__).parent
        self._files = {name: (folder / name).read_bytes() for name in FILES}
        self._version = hashlib.sha256(b"\0".join(self._files.values())).hexdigest()[:16]

    def add_to(self, app: Quart, routes: Iterable[PageRoute]) -> None:
        """Adds the pages and their files."""
        app.config["MAX_CONTENT_LENGTH"] = limits.PAGE_PICTURE_BYTES_MAX + limits.PAGE_FORM_BYTES_MAX
        app.config["MAX_FORM_MEMORY_SIZE"] = limits.PAGE_FORM_BYTES_MAX
        app.config["MAX_FORM_PARTS"] = limits.PAGE_FORM_FIELDS_MAX
        for route in routes:
            name = f"account {route.method} {route.path}"
            app.add_url_rule(page_path(route.path), name, self._serve(route), methods=[route.method])
        app.add_url_rule(PAGES_PATH + "files/<version>/<name>", "account files", self._serve_file)
        app.add_url_rule(PAGES_PATH.rstrip("/"), "account", self._serve(PageRoute("GET", "", _to_overview, True)))
        missing = self._serve(PageRoute("GET", "missing", _show_missing, True))

        async def show_missing(rest: str) -> Response:
            return await missing()

        app.add_url_rule(PAGES_PATH + "<path:rest>", "account missing", show_missing)

    def _serve(self, route: PageRoute) -> Callable[[], Awaitable[Response]]:
        async def serve() -> Response:
            visit = None
            try:
                self._hs.rate_limits.take("default", address_key(_address()), self._hs.now_ms())
                visit = await self._visit()
                answer = await self._answer(route, visit)
            except Exception as error:  # an unexpected exception must not show its details to the visitor
                answer = _error_page(_explain(error, route))
            return await self._respond(answer, visit)

        return serve

    async def _visit(self) -> Visit:
        """Returns the request with its session."""
        token = request.cookies.get(session_cookie(self._base_url), "")
        session = await self._find_session(token)
        browser = request.cookies.get(cookie_name(BROWSER_COOKIE, self._base_url), "")
        is_new = session is None and not 0 < len(browser) <= limits.ACCESS_TOKEN_CHARACTERS_MAX
        if is_new:
            browser = new_token("hspb")
        return Visit(
            path=request.path,
            query_string=request.query_string.decode("latin-1"),
            query=request.args.to_dict(),
            form={},
            address=_address(),
            user_agent=request.headers.get("User-Agent", ""),
            session=session,
            token=token if session is not None else "",
            form_token=form_token(token if session is not None else browser),
            new_browser=browser if is_new else "",
            root=request.root_path or self._root,
            files=self._storage,
        )

    async def _find_session(self, token: str) -> PageSession | None:
        if not 0 < len(token) <= limits.ACCESS_TOKEN_CHARACTERS_MAX:
            return None
        return await self._hs.database.read(find_page_session, token)

    async def _answer(self, route: PageRoute, visit: Visit) -> Answer:
        if visit.session is None and not route.is_public:
            back = visit.here if route.method == "GET" else PAGES_PATH
            return Redirect(f"{page_path('login')}?return_to={quote(back, safe='')}")
        if visit.session is not None and visit.session.flags.is_locked and route.path != "logout":
            return Page("locked.html", {"title": "Your account is locked"}, status=403)
        if route.method == "POST":
            return await self._take_form(route, visit)
        return await route.handler(self._hs, visit)

    async def _take_form(self, route: PageRoute, visit: Visit) -> Answer:
        """Reads and checks a form, then lets the handler answer it."""
        if request.headers.get("Sec-Fetch-Site", "same-origin") not in ("same-origin", "none"):
            raise MatrixError(403, "M_FORBIDDEN", "This form was sent from another site.")
        most = limits.PAGE_FORM_BYTES_MAX + (limits.PAGE_PICTURE_BYTES_MAX if route.takes_picture else 0)
        if (request.content_length or 0) > most:
            raise MatrixError(413, "M_TOO_LARGE", f"What you have sent is too large: the limit is {most >> 10} KiB.")
        form = (await request.form).to_dict()
        if not hmac.compare_digest(form.get("form_token", "").encode(), visit.form_token.encode()):
            if route.is_public and visit.session is not None:  # logged in meanwhile, in another tab
                return Redirect(local_path(form.get("return_to")))
            raise MatrixError(403, "M_FORBIDDEN", "This form is no longer valid. Open the page again.")
        picture = None
        if route.takes_picture and (file := (await request.files).get("picture")) is not None and file.filename:
            picture = (file.content_type or "", file.read())
        return await route.handler(self._hs, replace(visit, form=form, picture=picture))

    async def _respond(self, answer: Answer, visit: Visit | None) -> Response:
        if isinstance(answer, Page):
            response = Response(
                await self._render(answer, visit), answer.status, content_type="text/html; charset=utf-8"
            )
            response.headers["content-security-policy"] = _policy(answer)
        elif isinstance(answer, Data):
            response = Response(answer.content, 200, content_type=answer.content_type)
            response.headers["content-security-policy"] = "default-src 'none'; sandbox; frame-ancestors 'none'"
        else:
            to = answer.to if answer.is_outside or visit is None else visit.root + answer.to
            response = Response("", 303, {"location": to})
            if answer.session is not None:
                response.headers.add("set-cookie", set_session_cookie(self._base_url, answer.session))
                response.headers.add("set-cookie", self._browser_cookie(""))
        if visit is not None and visit.new_browser and isinstance(answer, Page):
            response.headers.add("set-cookie", self._browser_cookie(visit.new_browser))
        response.headers.update(HEADERS)
        return response

    def _browser_cookie(self, token: str) -> str:
        age_s = limits.PAGE_SESSION_LIFETIME_MS // 1000 if token else 0
        return write_cookie(cookie_name(BROWSER_COOKIE, self._base_url), token, self._base_url, max_age_s=age_s)

    async def _render(self, page: Page, visit: Visit | None) -> str:
        root = visit.root if visit is not None else ""
        base = root + PAGES_PATH
        return await render_template(
            f"account/{page.template}",
            root=root,
            base=base,
            files=f"{base}files/{self._version}/",
            form_token="" if visit is None else visit.form_token,
            problems=page.problems,
            problem_at={problem.field: problem.text for problem in reversed(page.problems)},
            scripts=page.scripts,
            server_name=self._hs.config.server_name,
            user_id=visit.session.user_id if visit is not None and visit.session is not None else "",
            **page.values,
        )

    async def _serve_file(self, version: str, name: str) -> Response:
        content = self._files.get(name)
        if content is None or version != self._version:
            return Response("", 404, {**HEADERS})
        response = Response(content, 200, {**HEADERS}, content_type=FILES[name])
        response.headers["cache-control"] = "public, max-age=31536000, immutable"
        return response


async def _to_overview(hs: Resources, visit: Visit) -> Answer:
    return Redirect(f"{PAGES_PATH}?{visit.query_string}" if visit.query_string else PAGES_PATH)


async def _show_missing(hs: Resources, visit: Visit) -> Answer:
    raise MatrixError(404, "M_NOT_FOUND", "There is no such page.")


def _address() -> str:
    return request.scope["client"][0] if request.scope.get("client") else ""


def _explain(error: Exception, route: PageRoute) -> MatrixError:
    """Returns the error that the visitor sees. Logs an exception that nobody has foreseen."""
    inner = single_error(error)
    if isinstance(inner, MatrixError):
        return inner
    if isinstance(inner, HTTPException):  # says what Quart cannot read
        return MatrixError(inner.code or 400, "M_UNKNOWN", inner.description or "Bad request.")
    if isinstance(inner, (DatabaseError, BlobError)):  # logged once for the whole outage
        said = "The storage of this server is not working at the moment. Try again later."
        return MatrixError(503, "M_UNKNOWN", said)
    number = secrets.token_hex(3)
    _log.error("page failed", exc_info=error, extra={"page": route.path, "request_id": number})
    return MatrixError(500, "M_UNKNOWN", f"An unexpected error happened; it is logged as {number}.")


def _error_page(error: MatrixError) -> Page:
    title = _TITLES.get(error.status, "That did not work")
    return Page("error.html", {"title": title, "said": error.error}, status=error.status)


def _policy(page: Page) -> str:
    """Returns the Content-Security-Policy: everything comes from this server, and nothing is inline."""
    scripts = ("script-src 'self'", "connect-src 'self'") if page.scripts else ()
    return "; ".join(
        (
            "default-src 'none'",
            "style-src 'self'",
            "img-src 'self' data:",
            *scripts,
            "base-uri 'none'",
            " ".join(("form-action 'self'", *page.form_targets)),
            "frame-ancestors 'none'",
        )
    )
