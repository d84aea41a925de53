"""ServerIdentity: what the functions of reads and writes need to know of the server whose database it is."""

from __future__ import annotations

from dataclasses import dataclass

from homeserver.config import Config
from homeserver.federation.identifiers import ServerName
from homeserver.federation.signing import SigningKey


@dataclass(frozen=True, slots=True)
class ServerIdentity:
    """The server's name, the key that signs its events, and its settings.

    All threads of the database share it, so nothing in it changes. What belongs to the trio thread, such as caches,
    nurseries and sockets, has no place here.
    """

    name: ServerName
    signing_key: SigningKey
    config: Config
