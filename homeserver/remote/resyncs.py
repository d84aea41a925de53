"""Fetching the device lists of users of other servers. What is done with them: `homeserver/remote/device_lists.py`.

Theory of operation. Each server with lists to fetch has one task, which asks for one list after another, so that no
server is flooded. Servers are asked in parallel, and take turns, one list each: a slow or silent one delays no other
for long, however many lists it has. A list that cannot be fetched is tried again after a growing pause, and at once
when its server sends an update of it. Everything is in the table `device_list_resyncs`, so a restart loses nothing.

Spec: server-server-api/#get_matrixfederationv1userdevicesuserid
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
import trio

from homeserver import limits
from homeserver.database import Transaction
from homeserver.database.lane import Lane
from homeserver.database.parked import RETRY_KEY
from homeserver.errors import MatrixError
from homeserver.federation.identifiers import ServerName, UserID
from homeserver.moments import latest
from homeserver.process.back_off import retry_delay_ms
from homeserver.process.peers import peer
from homeserver.process.turns import Turns
from homeserver.remote.device_keys import check_keys
from homeserver.remote.device_lists import (
    WAKE_KEY,
    Snapshot,
    delete_list,
    forget_unshared_lists,
    is_known,
    make_snapshot,
    store_snapshot,
)
from homeserver.remote.requests import ask, path_to
from homeserver.resources import Resources
from homeserver.users.encryption.device_lists import note_device_list_changed

_log = logging.getLogger("homeserver.federation")


class Resync(msgspec.Struct, frozen=True):
    """A list to be fetched. failures: how often that has failed."""

    user_id: UserID
    failures: int


async def fetch_lists(hs: Resources) -> None:
    """Fetches the lists that are wanted, for ever. One node of several does."""
    while hs.config.federation.enabled:
        async with hs.database.hold("device_lists"), trio.open_nursery() as nursery:
            await _Fetching(hs, nursery).run()


class _Fetching:
    """The servers that are being asked. `_waiting` ends the pause when one of them has nothing left."""

    def __init__(self, hs: Resources, nursery: trio.Nursery) -> None:
        self._hs = hs
        self._nursery = nursery
        self._busy: set[ServerName] = set()
        self._turns = Turns(limits.encryption.RESYNC_SERVERS_AT_ONCE, limits.encryption.RESYNC_PATIENCE_S)
        self._lane = Lane("device_lists", hs.database, hs.metrics)
        self._waiting = trio.CancelScope()

    async def run(self) -> None:
        while True:
            servers, next_ms, position = await self._hs.database.read(list_servers_due)
            for server in servers:
                if server not in self._busy:
                    self._busy.add(server)
                    self._nursery.start_soon(self._fetch_from, server)
            with trio.CancelScope() as self._waiting:
                deadline = trio.current_time() + next_ms / 1000
                await self._hs.stream.wait((WAKE_KEY, RETRY_KEY), position, deadline)

    async def _fetch_from(self, server: ServerName) -> None:
        is_stuck = True
        while due := await self._lane.without_parked(await self._hs.database.read(list_due, server), _name_of):
            is_stuck = False
            for resync in due:
                async with self._turns.take():
                    await self._lane.work([resync], self._fetch, _name_of)
        if is_stuck:  # all its lists are parked, which `list_servers_due` does not see
            await trio.sleep(limits.BACKGROUND_PAUSE_S)
        self._busy.discard(server)
        self._waiting.cancel()

    async def _fetch(self, resyncs: Sequence[Resync]) -> None:
        for resync in resyncs:
            await fetch_list(self._hs, resync)


def _name_of(resync: Resync) -> str:
    return resync.user_id


async def fetch_list(hs: Resources, resync: Resync) -> None:
    """Fetches one list. If its server refuses or does not answer, notes when to try again."""
    server = ServerName(resync.user_id.partition(":")[2])
    position = await hs.database.read(_position)
    try:
        answer = await ask(
            hs, server, "GET", path_to("v1", "user", "devices", resync.user_id),
            cause=peer(server), max_bytes=limits.encryption.REMOTE_KEYS_ANSWER_BYTES_MAX,
        )  # fmt: skip
        read = (resync.user_id, answer, position)
        snapshot = await hs.workers.run(_read, *read) if _is_large(answer) else _read(*read)
        if snapshot is None:
            raise MatrixError(502, "M_UNKNOWN", f"The answer of {server} is not a list of devices.")
    except MatrixError as error:
        about = {"user_id": resync.user_id, "reason": error.error}
        _log.info("device list not fetched", extra=about)
        await hs.database.write(_note_failed, server, resync, error.status in (400, 403, 404))
    else:
        await hs.database.write(_store, snapshot, resync.failures > 0)


def _store(tx: Transaction, snapshot: Snapshot, was_late: bool) -> None:
    store_snapshot(tx, snapshot, was_late=was_late)


def _position(tx: Transaction) -> int:
    return tx.position


def _is_large(answer: Mapping[str, Any]) -> bool:
    """Returns whether checking the signatures of an answer would hold up the event loop."""
    devices = answer.get("devices")
    return isinstance(devices, list) and len(devices) > limits.encryption.SIGNATURES_INLINE_MAX


def _read(user_id: UserID, answer: Mapping[str, Any], position: int) -> Snapshot | None:
    """Checks the answer of `GET /user/devices/{userId}`. Keys that are not good are left out."""
    devices: dict[str, Any] = {}
    listed = answer.get("devices")
    if not isinstance(listed, list):
        return None
    for device in listed:
        if isinstance(device, dict) and isinstance(device.get("keys"), dict):
            device_id, name = device.get("device_id"), device.get("device_display_name")
            if isinstance(device_id, str):
                devices[device_id] = {**device["keys"], "unsigned": {"device_display_name": name}}
    query = {
        "device_keys": {user_id: devices},
        "master_keys": {user_id: answer.get("master_key")},
        "self_signing_keys": {user_id: answer.get("self_signing_key")},
    }
    return make_snapshot(user_id, answer, check_keys(query, {user_id: ()}), position)


async def sweep(hs: Resources) -> None:
    """Forgets, from time to time, the lists of users with whom no room is shared any more."""
    while True:
        after: int | None = 0
        while after is not None:
            after = await hs.database.write(forget_unshared_lists, after, limits.encryption.LISTS_PER_SWEEP)
        await trio.sleep(limits.encryption.LIST_SWEEP_INTERVAL_S)


# --- storage ---


def list_servers_due(tx: Transaction) -> tuple[list[ServerName], float, int]:
    """Returns the servers with lists that are due, in how many ms the next ones are, and the stream's position."""
    # A time that lies further ahead was set by a wrong clock.
    behind_ms = latest(tx.now_ms, 2 * limits.encryption.RESYNC_RETRY_MS_MAX)
    nids = tx.values(
        "SELECT DISTINCT server_nid FROM device_list_resyncs WHERE retry_after_ms <= ? OR retry_after_ms > ?",
        tx.now_ms, behind_ms,
    )  # fmt: skip
    row = tx.one(
        "SELECT MIN(retry_after_ms) FROM device_list_resyncs WHERE retry_after_ms > ? AND retry_after_ms <= ?",
        tx.now_ms, behind_ms,
    )  # fmt: skip
    next_ms = math.inf if row is None or row[0] is None else row[0] - tx.now_ms
    return [ServerName(name) for name in tx.names(nids).values()], next_ms, tx.position


def list_due(tx: Transaction, server: ServerName) -> list[Resync]:
    """Returns some of the lists of a server that are due."""
    behind_ms = latest(tx.now_ms, 2 * limits.encryption.RESYNC_RETRY_MS_MAX)
    rows = tx.all(
        "SELECT user_nid, failures FROM device_list_resyncs WHERE server_nid = ?"
        " AND (retry_after_ms <= ? OR retry_after_ms > ?) ORDER BY wanted_position LIMIT 50",
        tx.find(server), tx.now_ms, behind_ms,
    )  # fmt: skip
    return [Resync(UserID(tx.name(nid)), failures) for nid, failures in rows]


def _note_failed(tx: Transaction, server: ServerName, resync: Resync, is_refused: bool) -> None:
    """Notes when to ask again. A server that does not know the user, or refuses, need not be asked again."""
    if is_refused:
        # Clients hear of it only if they may have got the keys from the cache. Else every query would cause another.
        if is_known(tx, resync.user_id):
            note_device_list_changed(tx, resync.user_id)
        delete_list(tx, resync.user_id)
        return
    delay_ms = min(retry_delay_ms(tx.server.name, server, resync.failures), limits.encryption.RESYNC_RETRY_MS_MAX)
    tx.run(
        "UPDATE device_list_resyncs SET failures = ?, retry_after_ms = ? WHERE user_nid = ?",
        resync.failures + 1, tx.now_ms + delay_ms, tx.find(resync.user_id),
    )  # fmt: skip
