"""What administrators see of other servers, and how they have one tried again, by command and in the admin API."""

from __future__ import annotations

import math
from collections.abc import Iterable

import msgspec
import trio

from homeserver.database import Transaction
from homeserver.federation.identifiers import ServerName
from homeserver.process.back_off import BackOff
from homeserver.remote.destinations import list_destinations
from homeserver.resources import Resources
from homeserver.rooms.administration import count_rooms_of_servers

WAKE_KEY = "destination-retries"
"""The stream key that is woken when a server is to be tried again."""
CONTACTS_SECONDS = 2.0
"""How often a node tells others of the servers that it has heard of."""


class Destination(msgspec.Struct, frozen=True):
    """A server. back_off: None if it answers. acked_position: up to where it has everything, None if it lacks nothing.

    rooms: how many it is in with us.
    """

    server: ServerName
    back_off: BackOff | None
    acked_position: int | None
    rooms: int

    @property
    def delay_ms(self) -> int:
        """How long the server is left alone."""
        if self.back_off is None:
            return 0
        return max(0, self.back_off.retry_after_ms - (self.back_off.tried_ms or self.back_off.since_ms))


async def list_servers(hs: Resources) -> list[Destination]:
    """Returns the servers that share a room with us, and those that lack something that we have sent, in any order.

    The back-off is what this process knows; a command knows what the server has stored.
    """
    rooms, behind = await hs.database.read(_list_servers)
    return [_destination(hs, server, rooms, behind) for server in {*rooms, *behind}]


async def find_destination(hs: Resources, server: ServerName) -> Destination | None:
    """Returns one of them, None if we have nothing to do with that server."""
    rooms, behind = await hs.database.read(_list_servers)
    if server not in rooms and server not in behind and hs.peers.find_back_off(server) is None:
        return None
    return _destination(hs, server, rooms, behind)


Behind = dict[ServerName, tuple[int, BackOff | None]]


def _destination(hs: Resources, server: ServerName, rooms: dict[ServerName, int], behind: Behind) -> Destination:
    acked, stored = behind.get(server, (None, None))
    return Destination(server, hs.peers.find_back_off(server) or stored, acked, rooms.get(server, 0))


def _list_servers(tx: Transaction) -> tuple[dict[ServerName, int], Behind]:
    """Returns how many rooms each server is in, and the servers that lack something."""
    found, _ = list_destinations(tx)
    behind: Behind = {}
    for server, lanes in found.items():
        back_offs = [back_off for _, back_off in lanes.values() if back_off is not None]
        worst = max(back_offs, key=lambda each: each.retry_after_ms, default=None)
        behind[server] = min(acked for acked, _ in lanes.values()), worst
    return count_rooms_of_servers(tx), behind


def request_retry(tx: Transaction, server: ServerName) -> None:
    """Ends the back-off of a server. The process that sends notices it, whichever it is."""
    set_retried(tx, server)
    tx.next_position(WAKE_KEY)


def retry_failed(tx: Transaction, servers: Iterable[ServerName]) -> None:
    """Ends the back-off of those of the servers that did not answer the process that sends."""
    for server in servers:
        if _has_failed(tx, server):
            request_retry(tx, server)


def list_failed(tx: Transaction, servers: Iterable[ServerName]) -> list[ServerName]:
    """Returns those of the servers that did not answer the process that sends."""
    return [server for server in servers if _has_failed(tx, server)]


def _has_failed(tx: Transaction, server: ServerName) -> bool:
    row = tx.one("SELECT 1 FROM destinations_behind WHERE server_nid = ? AND failures > 0 LIMIT 1", tx.find(server))
    return row is not None


def set_retried(tx: Transaction, server: ServerName) -> None:
    """Notes that a server is to be tried again now."""
    tx.run(
        "UPDATE destinations_behind SET failures = 0, retry_after_ms = ? WHERE server_nid = ?",
        tx.now_ms, tx.find(server),
    )  # fmt: skip


def list_retried(tx: Transaction) -> list[ServerName]:
    """Returns the servers that lack something and are not in back-off."""
    nids = set(tx.values("SELECT server_nid FROM destinations_behind WHERE failures = 0"))
    return [ServerName(name) for name in tx.names(nids).values()]


async def tell_contacts(hs: Resources) -> None:
    """Tells the node that sends of servers that have shown themselves to this one. Runs as long as the server is open.

    Returns at once if there are no other nodes.
    """
    while hs.database.is_shared:
        seen = await hs.peers.wait_seen()
        if failed := await hs.database.read(list_failed, seen):
            await hs.database.write(retry_failed, failed)
        await trio.sleep(CONTACTS_SECONDS)


async def retry_requested(hs: Resources) -> None:
    """Tries servers again for which an administrator or another node asks. Runs as long as the server is open."""
    position = hs.stream.position
    while True:
        position = await hs.stream.wait((WAKE_KEY,), position, math.inf)
        for server in await hs.database.read(list_retried):
            hs.peers.note_contact(server)
