"""Changing the password: with the present one, as the operation asks for it. All other browsers are logged out.

Somebody whose account has none, such as after single sign-on, can set one soon after a log-in.
"""

from __future__ import annotations

from homeserver.database import Transaction
from homeserver.errors import MatrixError
from homeserver.federation.identifiers import UserID
from homeserver.pages.account.login import ask_again, begin_session, is_confirmed, said_of
from homeserver.pages.account.visits import Answer, Page, PageRoutes, Problem, Redirect, Visit, page_path, problem_of
from homeserver.resources import Resources
from homeserver.users.accounts import find_user
from homeserver.users.page_sessions import check_may_enter
from homeserver.users.password_login import replace_password
from homeserver.users.passwords import check_new_password, hash_password, verify_password

routes = PageRoutes()


@routes.get("password")
async def show_password(hs: Resources, visit: Visit) -> Answer:
    if await _password_hash_of(hs, visit) is None and not is_confirmed(hs, visit):
        return ask_again(visit.here)
    return await _page(hs, visit)


async def _page(hs: Resources, visit: Visit, problems: tuple[Problem, ...] = (), status: int = 200) -> Page:
    has_password = await _password_hash_of(hs, visit) is not None
    values = {
        "has_password": has_password,
        "length_min": hs.config.passwords.length_min,
        # A first password makes no device suspicious.
        "keeps_devices": not visit.text("logout_devices") and (bool(problems) or not has_password),
    }
    return Page("password.html", values, problems, status)


async def _password_hash_of(hs: Resources, visit: Visit) -> str | None:
    user = await hs.database.read(find_user, visit.user_id)
    return None if user is None else user.password_hash


@routes.post("password")
async def change_password(hs: Resources, visit: Visit) -> Answer:
    old_hash = await _password_hash_of(hs, visit)
    if old_hash is None and not is_confirmed(hs, visit):
        return ask_again(page_path("password"))
    problems = _problems(hs, visit, has_password=old_hash is not None)
    if problems:
        return await _page(hs, visit, problems, 400)
    try:
        if old_hash is not None:
            await check_own_password(hs, visit, visit.text("current"))
    except MatrixError as error:
        return await _page(hs, visit, (Problem("current", said_of(error)),), error.status)
    password_hash = await hash_password(hs, visit.text("new"))
    logout_devices = bool(visit.text("logout_devices"))
    token = await hs.database.write(_store_password, visit, old_hash, password_hash, logout_devices)
    if token is None:
        said = "The password was changed meanwhile. Enter the current one."
        return await _page(hs, visit, (Problem("current", said),), 409)
    return Redirect(page_path("") + "?done=password", session=token)


def _problems(hs: Resources, visit: Visit, *, has_password: bool) -> tuple[Problem, ...]:
    new = visit.text("new")
    if has_password and not visit.text("current"):
        return (Problem("current", "Enter your current password."),)
    try:
        check_new_password(hs, new)
    except MatrixError as error:
        return problem_of(error, "new")
    if new != visit.text("repeated"):
        return (Problem("repeated", "The two new passwords are not the same."),)
    return ()


async def check_own_password(hs: Resources, visit: Visit, password: str) -> None:
    """Raises M_FORBIDDEN unless it is the password of the user who is logged in; M_LIMIT_EXCEEDED after many guesses.

    The limits are those of the operations that ask for the password again.
    """
    hs.rate_limits.take("login", visit.user_id, hs.now_ms())
    verdict = await verify_password(hs, visit.user_id, await _password_hash_of(hs, visit), password)
    if not verdict.is_right:
        raise MatrixError(403, "M_FORBIDDEN", "The password is wrong.")


def _store_password(
    tx: Transaction, visit: Visit, old_hash: str | None, password_hash: str, logout_devices: bool
) -> str | None:
    """Stores the password, and returns the token of a new session for this browser.

    Returns None if the account had no password when that was checked, and has one now: it must be asked for.
    """
    user_id: UserID = visit.user_id
    check_may_enter(tx, user_id)  # deactivated while the password was checked
    user = find_user(tx, user_id)
    if old_hash is None and user is not None and user.password_hash is not None:
        return None
    replace_password(tx, user_id, password_hash, logout_devices=logout_devices)
    return begin_session(tx, user_id, "password", visit)
