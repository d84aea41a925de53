"""A decoded /sync request. Spec: client-server-api/#get_matrixclientv3sync"""

from __future__ import annotations

import msgspec

from homeserver.api.filters import Filter
from homeserver.authenticate import Requester
from homeserver.feature import PresenceState, SyncStart
from homeserver.federation.identifiers import UserID


class SyncRequest(msgspec.Struct, frozen=True):
    """A decoded `/sync` request. `since` is None on an initial sync; `timeout_ms` is how long to wait for news.

    token_position: the position of the stream before the requester's token was read; 0 if it is not known.

    queue_since: up to where the client has received its queue, see `SyncContext`. None: up to `since`, like all else.

    is_anew: the client has synced before, but against another history (the database was restored). The answer contains
    everything, including the rooms that the user has left. Every timeline is `limited`, so that the client discards its
    events instead of appending the new ones to them.
    """

    requester: Requester
    since: int | None
    filter: Filter
    is_anew: bool = False
    timeout_ms: int = 0
    queue_since: int | None = None
    full_state: bool = False
    use_state_after: bool = False
    set_presence: PresenceState = "online"
    token_position: int = 0

    @property
    def user_id(self) -> UserID:
        return self.requester.user_id

    @property
    def device(self) -> tuple[UserID, str]:
        return (self.requester.user_id, self.requester.device_id)

    @property
    def is_whole(self) -> bool:
        """Whether the client asks for everything, so that it gets an answer without waiting for news."""
        return self.since is None or self.full_state

    @property
    def queue_begin(self) -> int:
        """Up to where the client has received its queue; 0 on an initial sync."""
        return (self.since or 0) if self.queue_since is None else self.queue_since

    @property
    def start(self) -> SyncStart:
        """The start of this sync, as features receive it."""
        return SyncStart(*self.device, self.since or 0, self.queue_begin, self.set_presence, self.is_anew)
