"""Deactivating the account, for good: with the password again, or another way to show who one is."""

from __future__ import annotations

from homeserver.database import Transaction
from homeserver.errors import MatrixError
from homeserver.pages.account.login import ask_again, is_confirmed, said_of
from homeserver.pages.account.password import check_own_password
from homeserver.pages.account.visits import Answer, Page, PageRoutes, Problem, Redirect, Visit, page_path
from homeserver.resources import ForgetUser, Resources
from homeserver.users.accounts import find_user
from homeserver.users.departures import end_account
from homeserver.users.page_sessions import check_may_enter

routes = PageRoutes()

CONSENT_MISSING = Problem("sure", "Tick the box if you are sure.")
PASSWORD_MISSING = Problem("password", "Enter your password.")


@routes.get("deactivate")
async def show_deactivate(hs: Resources, visit: Visit) -> Answer:
    if not await _has_password(hs, visit) and not is_confirmed(hs, visit):
        return ask_again(page_path("deactivate"))
    return await _page(hs, visit)


async def _page(hs: Resources, visit: Visit, problems: tuple[Problem, ...] = (), status: int = 200) -> Page:
    values = {
        "has_password": await _has_password(hs, visit),
        "sure": bool(visit.text("sure")),
        "erase": bool(visit.text("erase")),
    }
    return Page("deactivate.html", values, problems, status)


async def _has_password(hs: Resources, visit: Visit) -> bool:
    user = await hs.database.read(find_user, visit.user_id)
    return user is not None and user.password_hash is not None


@routes.post("deactivate")
async def deactivate(hs: Resources, visit: Visit) -> Answer:
    has_password, password = await _has_password(hs, visit), visit.text("password")
    if not has_password and not is_confirmed(hs, visit):
        return ask_again(page_path("deactivate"))
    problems = (*([] if visit.text("sure") else [CONSENT_MISSING]),)
    if has_password and not password:
        problems = (*problems, PASSWORD_MISSING)
    if problems:
        return await _page(hs, visit, problems, 400)
    if has_password:
        try:
            await check_own_password(hs, visit, password)
        except MatrixError as error:
            return await _page(hs, visit, (Problem("password", said_of(error)),), error.status)
    # The user leaves their rooms in the background, see `homeserver.features.account`.
    await hs.database.write(_end_account, hs.forgetters, visit)
    return Redirect(page_path("login") + "?done=deactivated", session="")


def _end_account(tx: Transaction, forgetters: tuple[ForgetUser, ...], visit: Visit) -> None:
    check_may_enter(tx, visit.user_id)  # locked or deactivated while the password was checked
    end_account(tx, forgetters, visit.user_id, erase=bool(visit.text("erase")))
