"""The account pages: log-in, consent to apps, devices, profile, password, deactivation. docs/account_pages.md

Server-rendered, and usable without scripts; only passkeys need one. `visits` says how a page is declared, `serving`
what protects all of them, and each other module has the pages of one topic: a handler reads and writes with functions
of `homeserver.users`, in one read and at most one write. They are imported when the first page is requested.
"""

from __future__ import annotations

from quart import Quart

from homeserver.pages.account import (
    authorize,
    cross_signing,
    deactivate,
    devices,
    link,
    login,
    overview,
    passkeys,
    password,
    profile,
    register,
)
from homeserver.pages.account.serving import Serving
from homeserver.pages.files import Files
from homeserver.resources import Resources

MODULES = (
    login, register, authorize, link,
    overview, profile, devices, password, passkeys, cross_signing, deactivate,
)  # fmt: skip


def add_account_pages(app: Quart, hs: Resources, files: Files | None) -> None:
    """Adds the account pages to the application of all pages."""
    Serving(hs, files).add_to(app, [route for module in MODULES for route in module.routes])
