"""Resources: what every handler is given as `hs`. Things with a lifetime, never behaviour."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import msgspec
import trio

from homeserver.blobs import Blobs
from homeserver.config import Config, RegisteredServices
from homeserver.database import Database, Transaction
from homeserver.database.stream import Stream
from homeserver.federation.identifiers import RoomID, ServerName, UserID
from homeserver.federation.signing import SigningKey
from homeserver.federation.wire import Wire
from homeserver.process.acknowledged import Acknowledged
from homeserver.process.budgets import Budgets
from homeserver.process.claims import Claims
from homeserver.process.documents import Documents
from homeserver.process.early_presence import EarlyPresence
from homeserver.process.flights import Flights
from homeserver.process.heartbeats import Heartbeats
from homeserver.process.metrics import Metrics
from homeserver.process.outages import Outages
from homeserver.process.peers import Peers
from homeserver.process.rate_limits import RateLimits
from homeserver.process.token_cache import TokenCache
from homeserver.process.workers import Service, Workers

ForgetUser = Callable[[Transaction, UserID, bool], bool]
"""forget_user(tx, user_id, erase): forgets what a feature keeps of a user whose account ends.

Called in the write that ends the account, where it forgets what must be gone at once, and a bounded number of rows of
the rest. True if something is left: then it is called again, in writes of its own; also when nothing is left any more.
erase: the user asked to be erased, so what others see of the user goes as well, unless it is part of a room.
"""


ForgetRoom = Callable[[Transaction, RoomID], None]
"""forget_room(tx, room_id): deletes what a feature keeps of a room's contents, see `homeserver.rooms.forgetting`.

Called in the write that deletes the room's key. What a feature keeps sealed with that key is unreadable afterwards.
"""


ForgetFiles = Callable[[Transaction, Sequence[tuple[ServerName, str]], bool], tuple[int, int]]
"""forget_files(tx, files, is_estimate): deletes files that no event shows any more, by server and media ID, unless the
feature needs them otherwise. If it is an estimate, it only counts them. Returns how many there are, and their bytes.
"""


class Resources(msgspec.Struct):
    """Opened by `homeserver.server`, closed by it in reverse order.

    is_ready: False once the server has been told to stop. stopping: set at the same time, for those that wait.
    forgetters, room_forgetters, file_forgetters: how each feature forgets a user, the contents of a room, or files.
    search: the index, see `homeserver.search.service`; None if search is turned off.
    `now_ms` is the one source of wall time. `nursery` outlives requests: work started there is awaited at close.
    """

    config: Config
    server_name: ServerName
    signing_key: SigningKey
    database: Database
    stream: Stream
    blobs: Blobs
    workers: Workers
    wire: Wire
    now_ms: Callable[[], int]
    nursery: trio.Nursery
    heartbeats: Heartbeats
    application_services: RegisteredServices = msgspec.field(default_factory=RegisteredServices)
    acknowledged: Acknowledged = msgspec.field(default_factory=Acknowledged)
    early_presence: EarlyPresence[Any] = msgspec.field(default_factory=EarlyPresence)
    token_cache: TokenCache[Any] = msgspec.field(default_factory=TokenCache)
    rate_limits: RateLimits = msgspec.field(default_factory=RateLimits)
    claims: Claims = msgspec.field(default_factory=Claims)
    documents: Documents = msgspec.field(default_factory=Documents)
    flights: Flights = msgspec.field(default_factory=Flights)
    peers: Peers = msgspec.field(default_factory=Peers)
    metrics: Metrics = msgspec.field(default_factory=Metrics)
    outages: Outages = msgspec.field(default_factory=Outages)
    forgetters: tuple[ForgetUser, ...] = ()
    room_forgetters: tuple[ForgetRoom, ...] = ()
    file_forgetters: tuple[ForgetFiles, ...] = ()
    budgets: Budgets = msgspec.field(default_factory=Budgets)
    is_ready: bool = True
    stopping: trio.Event = msgspec.field(default_factory=trio.Event)
    search: Service | None = None
