"""How account pages are declared: a handler gets a `Visit`, and returns a `Page` or a `Redirect`.

    routes = PageRoutes()

    @routes.post("devices/rename")
    async def rename(hs: Resources, visit: Visit) -> Answer: ...

A handler knows neither HTTP nor Quart, and cannot forget what keeps its page safe. `homeserver.pages.account.serving`
finds the session first: a page needs a log-in, and a form needs the token that was in it, unless the route is declared
otherwise.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator, Mapping
from typing import Any
from urllib.parse import parse_qsl, urlencode

import msgspec

from homeserver.errors import MatrixError
from homeserver.federation.identifiers import UserID
from homeserver.pages.files import Files
from homeserver.resources import Resources
from homeserver.users.page_sessions import PAGES_PATH, PageSession


class Visit(msgspec.Struct, frozen=True):
    """A request for a page. query, form: the first value of each field.

    session: of the browser; None only if the route is public. token: of the session, "" without one.
    form_token: for the forms of this page. new_browser: the token of a cookie that binds them to the browser, if it has
    neither a session nor such a cookie. root: the prefix of links, if the server is mounted below a path.
    picture: an uploaded file, if the form has one: its type and its content. files: None if the server stores none.
    """

    path: str
    query_string: str
    query: Mapping[str, str]
    form: Mapping[str, str]
    address: str
    user_agent: str
    session: PageSession | None
    token: str
    form_token: str
    new_browser: str = ""
    root: str = ""
    picture: tuple[str, bytes] | None = None
    files: Files | None = None

    @property
    def user_id(self) -> UserID:
        """The user who is logged in. Only for routes that need a log-in."""
        assert self.session is not None, "the route is public"
        return self.session.user_id

    @property
    def here(self) -> str:
        """The page's own address, to come back to after a log-in: `local_path` takes it whatever is in the query."""
        given = parse_qsl(self.query_string, keep_blank_values=True)
        return f"{self.path}?{urlencode(given)}" if given else self.path

    def text(self, name: str) -> str:
        """Returns a field of the form; "" if it is not there."""
        return self.form.get(name, "")


class Problem(msgspec.Struct, frozen=True):
    """What is wrong with a form, at one of its fields ("" for the form as a whole)."""

    field: str
    text: str


class Page(msgspec.Struct, frozen=True):
    """A page to show. template: below this folder. values: for the template.

    problems: what was wrong with the form; the status is then 400 unless given.
    form_targets: where else the page's forms may lead to, as sources of the Content-Security-Policy.
    """

    template: str
    values: Mapping[str, Any] = msgspec.field(default_factory=dict)
    problems: tuple[Problem, ...] = ()
    status: int = 200
    scripts: bool = False
    form_targets: tuple[str, ...] = ()


class Redirect(msgspec.Struct, frozen=True):
    """Goes on to another page (`to` begins with PAGES_PATH) or, with `is_outside`, to an address that was checked.

    session: a new session of the browser; "" ends the present one.
    """

    to: str
    session: str | None = None
    is_outside: bool = False


class Data(msgspec.Struct, frozen=True):
    """An answer for a script or a picture of the page."""

    content: bytes
    content_type: str


Answer = Page | Redirect | Data
Handler = Callable[[Resources, Visit], Awaitable[Answer]]


class PageRoute(msgspec.Struct, frozen=True):
    """path: below PAGES_PATH. is_public: for everyone, logged in or not. takes_picture: the form has a file."""

    method: str
    path: str
    handler: Handler
    is_public: bool
    takes_picture: bool = False


class PageRoutes:
    """The pages that a module declares."""

    def __init__(self) -> None:
        self._routes: list[PageRoute] = []

    def __iter__(self) -> Iterator[PageRoute]:
        return iter(self._routes)

    def get(self, path: str, *, is_public: bool = False) -> Callable[[Handler], Handler]:
        """Declares a page."""
        return self._add("GET", path, is_public=is_public, takes_picture=False)

    def post(self, path: str, *, is_public: bool = False, takes_picture: bool = False) -> Callable[[Handler], Handler]:
        """Declares what happens when a form is sent."""
        return self._add("POST", path, is_public=is_public, takes_picture=takes_picture)

    def _add(self, method: str, path: str, *, is_public: bool, takes_picture: bool) -> Callable[[Handler], Handler]:
        def add(handler: Handler) -> Handler:
            self._routes.append(PageRoute(method, path, handler, is_public, takes_picture))
            return handler

        return add


def page_path(path: str) -> str:
    """Returns the address of one of the pages."""
    return PAGES_PATH + path


def problem_of(error: MatrixError, field: str = "") -> tuple[Problem, ...]:
    """Returns an error of an operation as a problem with a field."""
    return (Problem(field, error.error),)
