"""The features, in the spec's words. FEATURES is the table of contents of the server."""

from __future__ import annotations

from homeserver.feature import Feature
from homeserver.features import (
    account,
    account_data,
    capabilities,
    devices,
    filters,
    health,
    login,
    logout,
    media,
    membership,
    presence,
    profile,
    receipts,
    refresh,
    registration,
    room_creation,
    room_directory,
    room_history,
    room_members,
    room_state,
    sending,
    shared_secret_registration,
    tags,
    typing,
    versions,
    well_known,
    whoami,
)

FEATURES: tuple[Feature, ...] = (
    # Who: accounts, their devices and what they keep
    versions.FEATURE,
    well_known.FEATURE,
    capabilities.FEATURE,
    registration.FEATURE,
    shared_secret_registration.FEATURE,
    login.FEATURE,
    logout.FEATURE,
    refresh.FEATURE,
    whoami.FEATURE,
    account.FEATURE,
    devices.FEATURE,
    filters.FEATURE,
    profile.FEATURE,
    account_data.FEATURE,
    tags.FEATURE,
    presence.FEATURE,
    # Where: rooms
    room_creation.FEATURE,
    membership.FEATURE,
    sending.FEATURE,
    room_state.FEATURE,
    room_history.FEATURE,
    room_members.FEATURE,
    room_directory.FEATURE,
    receipts.FEATURE,
    typing.FEATURE,
    media.FEATURE,
    # How: running the server
    health.FEATURE,
)
