"""The admin API for tools of other servers, for administrators of this server. It is not part of the specification.

Paths and formats are those that tools for Synapse's admin API expect. docs/administration.md has a table of what is
served. What commands share with it is in `homeserver/users/administration.py` and `homeserver/rooms/administration.py`.
Reports and media have their part of this API in their own features.
"""

from __future__ import annotations

from homeserver.api.routes import Routes
from homeserver.feature import Feature, Worklist
from homeserver.features.administration import (
    account_changes,
    accounts,
    destinations,
    devices,
    history_changes,
    notices,
    room_changes,
    room_history,
    room_members,
    rooms,
    server,
    tokens,
)
from homeserver.features.administration.working import run_task
from homeserver.rooms.tasks import WAKE_KEY, list_unfinished
from homeserver.users.notice_rooms import forget_notice_room

routes = Routes()
for _module in (
    tokens, accounts, account_changes, devices, rooms, room_history, room_changes, room_members, history_changes,
    destinations, notices, server,
):  # fmt: skip
    routes.include(_module.routes)

FEATURE = Feature(
    name="administration",
    spec="",
    routes=routes,
    worklists=[Worklist("tasks", list_unfinished, run_task, wake_key=WAKE_KEY)],
    forget_user=forget_notice_room,
)
