"""What a page that has done something says on the next one: `?done=…` names one of these sentences."""

from __future__ import annotations

from collections.abc import Mapping

from homeserver.pages.account.visits import Visit

NOTICES: Mapping[str, str] = {
    "deactivated": "Your account has been deactivated.",
    "password": "Your password has been changed.",
    "device": "The device has been logged out.",
    "renamed": "The device has been renamed.",
    "profile": "Your profile has been saved.",
    "approved": "The device is being logged in. You can go back to it.",
    "refused": "The device has not been logged in.",
    "reset": "You can now reset your digital identity in your app, within the next ten minutes.",
    "passkey": "The passkey has been added.",
    "passkey-removed": "The passkey has been removed. Delete it on your device, too.",
}


def notice_of(visit: Visit) -> str:
    """Returns what the page before has done, "" if nothing."""
    return NOTICES.get(visit.query.get("done", ""), "")
