"""ServerIdentity: what reads and writes need to know about the server that owns the database."""

from __future__ import annotations

from dataclasses import dataclass, field

from homeserver.config import Config, RegisteredServices
from homeserver.federation.identifiers import ServerName
from homeserver.federation.signing import SigningKey
from homeserver.process.heartbeats import Heartbeats, LocalHeartbeats
from homeserver.process.sealing import MasterKeys


@dataclass(frozen=True, slots=True)
class ServerIdentity:
    """The server's name, the key that signs its events, its settings, its master keys (`rooms/keys.py`), the
    application services that are registered with it, and the heartbeats of its users.

    All threads of the database share it, so it never changes, and the heartbeats may be used on any thread. It must not
    contain anything that belongs to the trio thread, such as caches, nurseries and sockets.
    """

    name: ServerName
    signing_key: SigningKey
    config: Config
    master_keys: MasterKeys
    application_services: RegisteredServices = field(default_factory=RegisteredServices)
    heartbeats: Heartbeats = field(default_factory=LocalHeartbeats, compare=False)
