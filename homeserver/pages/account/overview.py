"""The first page of an account, and the links by which clients lead to one of its pages.

Spec: client-server-api/#oauth-20-account-management. Clients may still use the names of MSC4191 and MSC2965, the
proposals from before.
"""

from __future__ import annotations

from collections.abc import Mapping
from urllib.parse import quote

from homeserver.database import Transaction
from homeserver.feature import JsonObject
from homeserver.federation.identifiers import UserID
from homeserver.pages.account.notices import notice_of
from homeserver.pages.account.visits import Answer, Page, PageRoutes, Redirect, Visit, page_path
from homeserver.resources import Resources
from homeserver.users.devices import list_devices
from homeserver.users.profile import get_member_profile

routes = PageRoutes()

ACTIONS: Mapping[str, str] = {
    "org.matrix.profile": "profile",
    "org.matrix.devices_list": "devices",
    "org.matrix.device_view": "devices/view",
    "org.matrix.device_delete": "devices/delete",
    "org.matrix.account_deactivate": "deactivate",
    "org.matrix.cross_signing_reset": "cross_signing_reset",
    "org.matrix.sessions_list": "devices",
    "org.matrix.session_view": "devices/view",
    "org.matrix.session_end": "devices/delete",
    "profile": "profile",
    "sessions_list": "devices",
    "session_view": "devices/view",
    "session_end": "devices/delete",
    "account_deactivate": "deactivate",
    "cross_signing_reset": "cross_signing_reset",
}
"""What clients may ask for, and the page that does it. The first six are those of the specification."""


@routes.get("")
async def show_overview(hs: Resources, visit: Visit) -> Answer:
    action = ACTIONS.get(visit.query.get("action", ""))
    if action is not None:
        device_id = visit.query.get("device_id")
        query = f"?device_id={quote(device_id, safe='')}" if device_id and action.startswith("devices/") else ""
        return Redirect(page_path("devices" if action.startswith("devices/") and not query else action) + query)
    profile, count = await hs.database.read(_read_overview, visit.user_id)
    values = {"profile": profile, "devices": count, "notice": notice_of(visit)}
    return Page("overview.html", values)


def _read_overview(tx: Transaction, user_id: UserID) -> tuple[JsonObject, int]:
    """Returns display name and avatar of the user, and the number of devices."""
    return get_member_profile(tx, user_id), len(list_devices(tx, user_id))
