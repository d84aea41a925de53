"""The features, in the spec's words. FEATURES is the table of contents of the server.

Four more features are generated from these: `versions`, `capabilities`, `homeserver.sync` and `homeserver.remote`.
"""

from __future__ import annotations

from homeserver.feature import Feature
from homeserver.features import (
    account,
    account_data,
    administration,
    contact_information,
    device_lists,
    devices,
    encryption_keys,
    filters,
    guest_access,
    health,
    key_backup,
    login,
    logout,
    media,
    membership,
    notifications,
    presence,
    profile,
    push_rules,
    pushers,
    receipts,
    refresh,
    registration,
    relations,
    reports,
    room_creation,
    room_directory,
    room_history,
    room_members,
    room_state,
    room_upgrade,
    sending,
    shared_secret_registration,
    tags,
    third_party_networks,
    to_device,
    typing,
    user_directory,
    voice_over_ip,
    well_known,
    whoami,
)

FEATURES: tuple[Feature, ...] = (
    # The server: where to find it
    well_known.FEATURE,
    # Accounts: creating one, logging in and out, ending it
    registration.FEATURE,
    shared_secret_registration.FEATURE,
    login.FEATURE,
    refresh.FEATURE,
    whoami.FEATURE,
    devices.FEATURE,
    logout.FEATURE,
    account.FEATURE,
    contact_information.FEATURE,
    encryption_keys.FEATURE,
    to_device.FEATURE,
    device_lists.FEATURE,
    key_backup.FEATURE,
    # The user: what others see, and what is stored for the user's own devices
    profile.FEATURE,
    presence.FEATURE,
    account_data.FEATURE,
    tags.FEATURE,
    filters.FEATURE,
    push_rules.FEATURE,
    pushers.FEATURE,
    # Rooms: creating them, finding them, and their members
    room_creation.FEATURE,
    room_upgrade.FEATURE,
    room_directory.FEATURE,
    user_directory.FEATURE,
    third_party_networks.FEATURE,
    membership.FEATURE,
    room_members.FEATURE,
    guest_access.FEATURE,
    # In a room: messages, state, history, receipts and typing
    sending.FEATURE,
    room_state.FEATURE,
    room_history.FEATURE,
    relations.FEATURE,
    receipts.FEATURE,
    notifications.FEATURE,
    typing.FEATURE,
    voice_over_ip.FEATURE,
    # Files
    media.FEATURE,
    # Running the server
    administration.FEATURE,
    reports.FEATURE,
    health.FEATURE,
)
