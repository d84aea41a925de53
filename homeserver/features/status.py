"""User status: heartbeats, from which others see who is online. Not in the spec, see docs/status.md.

Every request is a heartbeat (`homeserver.http.dispatch`), so a client needs `POST /heartbeat` only if it has nothing
else to ask. `homeserver.users.status` computes the status for whatever lists people.
"""

from __future__ import annotations

from contextlib import suppress

import trio

from homeserver import limits
from homeserver.api.routes import Empty, Routes
from homeserver.authenticate import Requester, note_heartbeat
from homeserver.database import DatabaseUnavailable
from homeserver.feature import Feature
from homeserver.resources import Resources
from homeserver.users.status import STORED_PER_WRITE, forget_heartbeats, store_heartbeats

# For the last heartbeats when the server closes.
_LAST_WRITE_S_MAX = 5

routes = Routes()


@routes.post("/_homeserver/client/v1/heartbeat", allow_guest=True, allow_suspended=True)
async def heartbeat(hs: Resources, requester: Requester) -> Empty:
    """Shows that the requester is online. Application services do so for their users as well."""
    note_heartbeat(hs, requester.user_id)
    return Empty()


async def store_regularly(hs: Resources) -> None:
    """Stores the heartbeats of the last minute, and the last ones when the server closes."""
    try:
        while True:
            await trio.sleep(limits.users.HEARTBEATS_STORED_INTERVAL_S)
            await _store_all(hs)
    finally:
        with trio.move_on_after(_LAST_WRITE_S_MAX, shield=True), suppress(DatabaseUnavailable):
            await _store_all(hs)


async def _store_all(hs: Resources) -> None:
    while hs.heartbeats.list_unstored(1) and await hs.database.write(store_heartbeats) == STORED_PER_WRITE:
        pass


FEATURE = Feature(
    name="status",
    spec="none: docs/status.md",
    routes=routes,
    background=(store_regularly,),
    forget_user=forget_heartbeats,
)
