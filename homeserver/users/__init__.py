"""The user: account, passwords, devices, profile, presence, and other data of the user. No routes, no network.

Everything about users that several features read or change is here, with its tables; SCHEMAS are for `open_database`.
Functions here may call `homeserver.rooms` to find out which rooms and servers a change concerns, never the reverse.
`user_interactive` has the stages that a request must pass before it is carried out.
"""

from __future__ import annotations

from homeserver.database import Schema
from homeserver.users import (
    account_data,
    accounts,
    delayed_events,
    delivered,
    departures,
    devices,
    email_validation,
    figures,
    filters,
    friends,
    mail,
    notice_rooms,
    page_sessions,
    passkeys,
    presence,
    profile,
    proof_tokens,
    push_rules,
    receipts,
    registration_tokens,
    single_sign_on,
    status,
    sync_connections,
    thread_subscriptions,
    threepids,
    told_audiences,
    user_interactive,
)
from homeserver.users.encryption import (
    cross_signing,
    dehydrated,
    device_keys,
    device_lists,
    inbox,
    one_time_keys,
    outbox,
    queue_sizes,
)
from homeserver.users.oauth import schema as oauth
from homeserver.users.push import notifications, pushers

SCHEMAS: tuple[Schema, ...] = (
    accounts.SCHEMA,
    departures.SCHEMA,
    registration_tokens.SCHEMA,
    user_interactive.SCHEMA,
    mail.SCHEMA,
    threepids.SCHEMA,
    email_validation.SCHEMA,
    devices.SCHEMA,
    proof_tokens.SCHEMA,
    page_sessions.SCHEMA,
    oauth.SCHEMA,
    passkeys.SCHEMA,
    single_sign_on.SCHEMA,
    sync_connections.SCHEMA,
    device_lists.SCHEMA,
    device_keys.SCHEMA,
    dehydrated.SCHEMA,
    one_time_keys.SCHEMA,
    cross_signing.SCHEMA,
    queue_sizes.SCHEMA,
    inbox.SCHEMA,
    outbox.SCHEMA,
    profile.SCHEMA,
    account_data.SCHEMA,
    filters.SCHEMA,
    push_rules.SCHEMA,
    thread_subscriptions.SCHEMA,
    delayed_events.SCHEMA,
    receipts.SCHEMA,
    delivered.SCHEMA,
    notifications.SCHEMA,
    pushers.SCHEMA,
    presence.SCHEMA,
    friends.SCHEMA,
    told_audiences.SCHEMA,
    status.SCHEMA,
    figures.SCHEMA,
    notice_rooms.SCHEMA,
)
