"""Logging in to the account pages, showing again who one is before a dangerous action, and logging out.

Passwords are checked as `POST /login` checks them: the same limits, the same error for a wrong name and for a wrong
password, the same line in the log.
"""

from __future__ import annotations

from urllib.parse import quote, urlencode

from homeserver import limits
from homeserver.database import Transaction
from homeserver.errors import MatrixError
from homeserver.federation.identifiers import UserID
from homeserver.moments import is_recent
from homeserver.pages.account.notices import notice_of
from homeserver.pages.account.visits import Answer, Page, PageRoutes, Problem, Redirect, Visit, page_path
from homeserver.process.rate_limits import address_key
from homeserver.resources import Resources
from homeserver.users.accounts import find_user
from homeserver.users.page_sessions import PAGES_PATH, Method, create_page_session, delete_page_session, local_path
from homeserver.users.passkeys import are_passkeys_possible, list_passkeys
from homeserver.users.password_login import check_password, count_login, keep_checked, log_failed_login

routes = PageRoutes()

# A link to the log-in page may fill in a name. IDs have at most 255 bytes.
NAME_CHARACTERS_MAX = 255
NAME_MISSING = Problem("username", "Enter your username.")
PASSWORD_MISSING = Problem("password", "Enter your password.")


@routes.get("login", is_public=True)
async def show_login(hs: Resources, visit: Visit) -> Answer:
    return_to = local_path(visit.query.get("return_to"))
    if visit.session is not None:
        return Redirect(return_to)
    return login_page(hs, return_to, visit.query.get("name", "")[:NAME_CHARACTERS_MAX], notice=notice_of(visit))


def login_page(
    hs: Resources, return_to: str, name: str, problems: tuple[Problem, ...] = (), status: int = 200, notice: str = ""
) -> Page:
    """Returns the log-in page, which leads on to `return_to`."""
    values = {
        "return_to": return_to,
        "name": name,
        "may_register": hs.config.registration.enabled,
        "passkeys": are_passkeys_possible(hs.config),
        "providers": _providers(hs, return_to),
        "notice": notice,
    }
    return Page("login.html", values, problems, status, scripts=True)


def _providers(hs: Resources, return_to: str) -> list[tuple[str, str]]:
    """Returns name and address of each outside provider with which people can log in, see docs/sso.md."""
    begin = "/_homeserver/sso/begin"
    return [
        (each.name, f"{begin}?{urlencode({'provider': each.id, 'return_to': return_to})}") for each in hs.config.sso
    ]


@routes.post("login", is_public=True)
async def log_in(hs: Resources, visit: Visit) -> Answer:
    return_to = local_path(visit.text("return_to"))
    if visit.session is not None:
        return Redirect(return_to)
    name, password = visit.text("username").strip(), visit.text("password")
    missing = tuple(problem for text, problem in ((name, NAME_MISSING), (password, PASSWORD_MISSING)) if not text)
    if missing:
        return login_page(hs, return_to, name, missing, 400)
    try:
        token = await _log_in(hs, visit, name, password)
    except MatrixError as error:
        problem = Problem("" if error.status == 429 else "password", said_of(error))
        return login_page(hs, return_to, name, (problem,), error.status)
    return Redirect(return_to, session=token)


async def _log_in(hs: Resources, visit: Visit, name: str, password: str) -> str:
    """Returns the token of a new session. Raises MatrixError."""
    address = address_key(visit.address)
    try:
        hs.rate_limits.take("login", address, hs.now_ms())
        is_email = "@" in name and not name.startswith("@")
        identifier = {"type": "m.id.thirdparty", "medium": "email", "address": name} if is_email else None
        user_id, new_hash = await check_password(hs, identifier, name, password, address=address)
        token = await hs.database.write(_store_login, user_id, new_hash, visit)
    except MatrixError as error:
        count_login(hs, "refused")
        log_failed_login(visit.address, name, error.errcode)
        raise
    count_login(hs, "accepted")
    return token


def _store_login(tx: Transaction, user_id: UserID, new_hash: str | None, visit: Visit) -> str:
    keep_checked(tx, user_id, new_hash)
    return begin_session(tx, user_id, "password", visit)


def begin_session(tx: Transaction, user_id: UserID, method: Method, visit: Visit) -> str:
    """Returns the token of a new session; the browser's old one ends. Raises MatrixError if the account may not."""
    token = create_page_session(tx, user_id, method, address=visit.address, user_agent=visit.user_agent)
    if visit.token:
        delete_page_session(tx, visit.token)
    return token


def said_of(error: MatrixError) -> str:
    """Returns an error as a sentence for people."""
    if error.status == 429:
        seconds = max(1, round(error.extra.get("retry_after_ms", 1000) / 1000))
        return f"Too many attempts. Try again in {seconds} seconds." if seconds > 1 else "Too many attempts. Try again."
    return error.error


# --- again, before a dangerous action ---


def is_confirmed(hs: Resources, visit: Visit) -> bool:
    """Returns whether the person has shown who they are within `limits.PAGE_CONFIRMATION_MS`."""
    assert visit.session is not None, "the route is public"
    return is_recent(visit.session.created_ms, hs.now_ms(), limits.PAGE_CONFIRMATION_MS)


def ask_again(return_to: str) -> Redirect:
    """Returns the way to the page that asks who the person is, and leads on to `return_to`."""
    return Redirect(f"{page_path('confirm')}?return_to={quote(return_to, safe='')}")


@routes.get("confirm")
async def show_confirm(hs: Resources, visit: Visit) -> Answer:
    return await _confirm_page(hs, visit, local_path(visit.query.get("return_to")))


async def _confirm_page(
    hs: Resources, visit: Visit, return_to: str, problems: tuple[Problem, ...] = (), status: int = 200
) -> Page:
    has_password, has_passkey = await hs.database.read(_read_ways, visit.user_id)
    values = {
        "return_to": return_to,
        "has_password": has_password,
        "has_passkey": has_passkey,
        "providers": _providers(hs, return_to),
    }
    return Page("confirm.html", values, problems, status, scripts=True)


def _read_ways(tx: Transaction, user_id: UserID) -> tuple[bool, bool]:
    """Returns whether the user can show by password, and whether by passkey, who they are."""
    user = find_user(tx, user_id)
    return user is not None and user.password_hash is not None, bool(list_passkeys(tx, user_id))


@routes.post("confirm")
async def confirm(hs: Resources, visit: Visit) -> Answer:
    return_to = local_path(visit.text("return_to"))
    password = visit.text("password")
    if not password:
        return await _confirm_page(hs, visit, return_to, (PASSWORD_MISSING,), 400)
    try:
        token = await _log_in(hs, visit, visit.user_id, password)
    except MatrixError as error:
        problem = Problem("" if error.status == 429 else "password", said_of(error))
        return await _confirm_page(hs, visit, return_to, (problem,), error.status)
    return Redirect(return_to, session=token)


# --- logging out ---


@routes.get("logout", is_public=True)
async def show_logout(hs: Resources, visit: Visit) -> Answer:
    if visit.session is None:
        return Redirect(page_path("login"))
    return Page("logout.html", {"return_to": local_path(visit.query.get("return_to"))})


@routes.post("logout", is_public=True)
async def log_out(hs: Resources, visit: Visit) -> Answer:
    if visit.session is not None:
        await hs.database.write(delete_page_session, visit.token)
    return_to = local_path(visit.text("return_to"))
    login = page_path("login")
    return Redirect(login if return_to == PAGES_PATH else f"{login}?return_to={quote(return_to, safe='')}", session="")
