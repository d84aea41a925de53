"""Resources: what every handler is given as `hs`. Things with a lifetime, never behaviour."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import trio

from homeserver.blobs import Blobs
from homeserver.config import Config
from homeserver.database import Database
from homeserver.federation.identifiers import ServerName
from homeserver.federation.signing import SigningKey
from homeserver.federation.wire import Wire
from homeserver.flights import Flights
from homeserver.metrics import Metrics
from homeserver.outages import Outages
from homeserver.peers import Peers
from homeserver.rate_limits import RateLimits
from homeserver.stream import Stream
from homeserver.token_cache import TokenCache
from homeserver.workers import Workers


@dataclass(slots=True)
class Resources:
    """Opened by `homeserver.server`, closed by it in reverse order.

    is_ready: False once the server has been told to stop.
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
    token_cache: TokenCache[Any] = field(default_factory=TokenCache)
    rate_limits: RateLimits = field(default_factory=RateLimits)
    flights: Flights = field(default_factory=Flights)
    peers: Peers = field(default_factory=Peers)
    metrics: Metrics = field(default_factory=Metrics)
    outages: Outages = field(default_factory=Outages)
    is_ready: bool = True

