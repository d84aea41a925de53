"""The user: account, passwords, devices, profile, presence, and what is kept for the user. No routes, no network.

Everything that several features ask or change of a user is here, with its tables; SCHEMAS are for `open_database`.
Of `homeserver.rooms` it asks whom a change concerns, never the other way round.
`user_interactive` holds the stages that a request must pass before it is done.
"""

from __future__ import annotations

from homeserver.database import Schema
from homeserver.users import (
    account_data,
    accounts,
    devices,
    filters,
    presence,
    profile,
    push_rules,
    registration_tokens,
    user_interactive,
)

SCHEMAS: tuple[Schema, ...] = (
    accounts.SCHEMA,
    registration_tokens.SCHEMA,
    user_interactive.SCHEMA,
    devices.SCHEMA,
    profile.SCHEMA,
    account_data.SCHEMA,
    filters.SCHEMA,
    push_rules.SCHEMA,
    presence.SCHEMA,
)
