"""Approving that an app replaces the keys of cross-signing, for a person who has lost them.

Spec: client-server-api/#oauth-authentication
"""

from __future__ import annotations

from homeserver.database import Transaction
from homeserver.pages.account.login import ask_again, is_confirmed
from homeserver.pages.account.visits import Answer, Page, PageRoutes, Redirect, Visit, page_path
from homeserver.resources import Resources
from homeserver.users.oauth.cross_signing import note_reset_approved
from homeserver.users.page_sessions import check_may_enter

routes = PageRoutes()

PATH = "cross_signing_reset"


@routes.get(PATH)
async def show_reset(hs: Resources, visit: Visit) -> Answer:
    if not is_confirmed(hs, visit):
        return ask_again(page_path(PATH))
    return Page("cross_signing.html")


@routes.post(PATH)
async def approve_reset(hs: Resources, visit: Visit) -> Answer:
    if not is_confirmed(hs, visit):
        return ask_again(page_path(PATH))
    await hs.database.write(_store_approval, visit)
    return Redirect(page_path("") + "?done=reset")


def _store_approval(tx: Transaction, visit: Visit) -> None:
    check_may_enter(tx, visit.user_id)
    note_reset_approved(tx, visit.user_id)
