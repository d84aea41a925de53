"""Logging in a device that has no browser: the person types the code that it shows, and sees what asks for what.

The code may be in the link that led here, but somebody else may have sent that link. So the page always asks, and says
which app has asked, and from which address. Spec: client-server-api/#device-authorisation-flow, RFC 8628, section 5.4
"""

from __future__ import annotations

from homeserver.database import Transaction
from homeserver.errors import MatrixError
from homeserver.pages.account.authorize import check_is_enabled, client_values
from homeserver.pages.account.login import said_of
from homeserver.pages.account.visits import Answer, Page, PageRoutes, Problem, Redirect, Visit, page_path
from homeserver.resources import Resources
from homeserver.users.oauth.device_grants import (
    DeviceGrant,
    approve_device_grant,
    open_device_grant,
    refuse_device_grant,
)

routes = PageRoutes()

# Longer texts are not codes; they are cut, as they are shown again.
_SHOWN_CHARACTERS_MAX = 32


@routes.get("link")
async def show_link(hs: Resources, visit: Visit) -> Answer:
    check_is_enabled(hs.config)
    return _page(visit.query.get("user_code", ""))


def _page(user_code: str, problems: tuple[Problem, ...] = (), status: int = 200) -> Page:
    return Page("link.html", {"user_code": user_code[:_SHOWN_CHARACTERS_MAX]}, problems, status)


@routes.post("link")
async def check_code(hs: Resources, visit: Visit) -> Answer:
    check_is_enabled(hs.config)
    user_code = visit.text("user_code").strip()
    if not user_code:
        return _page("", (Problem("user_code", "Enter the code that the other device shows."),), 400)
    try:
        grant = await open_device_grant(hs, visit.user_id, user_code)
    except MatrixError as error:
        return _page(user_code, (Problem("user_code", said_of(error)),), error.status)
    return Page("link_confirm.html", {**_grant_values(grant), "user_code": user_code[:_SHOWN_CHARACTERS_MAX]})


def _grant_values(grant: DeviceGrant) -> dict[str, object]:
    return {
        "client": client_values(grant.client),
        "device_id": grant.scope.device_id,
        "address": grant.address,
        "user_agent": grant.user_agent,
    }


@routes.post("link/decide")
async def decide(hs: Resources, visit: Visit) -> Answer:
    check_is_enabled(hs.config)
    user_code, allows = visit.text("user_code"), visit.text("decision") == "allow"
    try:
        grant = await open_device_grant(hs, visit.user_id, user_code)
        await hs.database.write(_store_decision, grant, visit, allows)
    except MatrixError as error:
        return _page(user_code, (Problem("user_code", said_of(error)),), error.status)
    return Redirect(f"{page_path('')}?done={'approved' if allows else 'refused'}")


def _store_decision(tx: Transaction, grant: DeviceGrant, visit: Visit, allows: bool) -> None:
    """Lets the client in, unless the person refuses: anything but "allow" is a refusal."""
    if allows:
        approve_device_grant(tx, grant, visit.user_id)
    else:
        refuse_device_grant(tx, grant)
