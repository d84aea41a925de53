"""Transactions of other servers. Spec: server-server-api/#transactions

Theory of operation. A transaction goes through these steps:

1. A repetition of a transaction that is still in progress waits for the same answer (`flights`). One that was answered
   before gets the stored answer, and changes nothing.
2. Transactions of one origin run one after another, so that its events arrive in order. At most
   TRANSACTIONS_WAITING_MAX wait; more get 429. Those of different origins run in parallel.
3. The PDUs are received (`inbound_pdus`), then the EDUs, one after another. EDUs of types that no feature declares are
   ignored, and so are the parts of an EDU that the origin may not send.
4. The answer is stored. The newest TRANSACTIONS_KEPT answers to an origin are kept, because an origin sends the next
   transaction only when it has the answer to the one before.

An EDU or event that this server fails on is left out, logged and counted; the others are received. An outage of storage
ends the transaction without an answer, so the origin sends it again. Events that were stored before the outage are
recognised then. The same happens if a feature limits the origin (429), so that what it sends is late and not lost.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

import orjson

from homeserver import limits
from homeserver.api.arguments import decode_parts
from homeserver.api.routes import Response, Routes
from homeserver.database import Transaction
from homeserver.errors import MatrixError, bad_json, invalid_param
from homeserver.feature import Edu
from homeserver.federation.edus import InvalidEdu, parse_edu
from homeserver.federation.identifiers import ServerName
from homeserver.federation.transaction import InvalidTransaction, parse_transaction
from homeserver.federation.transaction import Transaction as ReceivedTransaction
from homeserver.process.outages import is_outage
from homeserver.process.rate_limits import limit_exceeded
from homeserver.remote.access import RoomAccess, find_accesses
from homeserver.remote.inbound_pdus import decode_one, leave_out, receive_pdus
from homeserver.resources import Resources

P = TypeVar("P")

_log = logging.getLogger("homeserver.federation")

TXN_ID_CHARACTERS_MAX = 255


def transaction_routes(edus: Mapping[str, Edu[Any]]) -> Routes:
    """Returns the route of PUT /send, which receives the declared types of EDUs and ignores all others."""
    routes = Routes()

    @routes.put(
        "/_matrix/federation/v1/send/{txn_id}",
        rate_limit="federation",
        max_body_bytes=limits.peers.TRANSACTION_BODY_BYTES_MAX,
        max_json_nodes=limits.peers.TRANSACTION_JSON_NODES_MAX,
        decode=decode_parts,
    )
    async def send_transaction(hs: Resources, origin: ServerName, txn_id: str, body: dict) -> Response:
        if len(txn_id) > TXN_ID_CHARACTERS_MAX:
            raise invalid_param(f"A transaction ID has at most {TXN_ID_CHARACTERS_MAX} characters.")
        try:
            transaction = parse_transaction(body)
        except InvalidTransaction as error:
            raise bad_json(str(error)) from None
        if transaction.origin != origin:
            raise invalid_param("The transaction is of another origin than its request.")
        key = ("transaction", origin, txn_id)
        answer = await hs.flights.join(hs.nursery, key, _process, hs, edus, origin, txn_id, transaction)
        return Response(200, answer, {"content-type": "application/json"})

    return routes


async def _process(
    hs: Resources, edus: Mapping[str, Edu[Any]], origin: ServerName, txn_id: str, transaction: ReceivedTransaction
) -> bytes:
    if hs.peers.locks.waiting(("origin", origin)) >= limits.peers.TRANSACTIONS_WAITING_MAX:
        raise limit_exceeded(1000)
    async with hs.peers.locks.hold(("origin", origin)):
        answer = await hs.database.read(find_answer, origin, txn_id)
        if answer is None:
            results = await receive_pdus(hs, origin, transaction.pdus)
            await _receive_edus(hs, edus, origin, transaction.edus)
            answer = orjson.dumps({"pdus": results})
            await hs.database.write(store_answer, origin, txn_id, answer)
    return answer


async def _receive_edus(
    hs: Resources, declared: Mapping[str, Edu[Any]], origin: ServerName, edus: Sequence[object]
) -> None:
    for each in edus:
        try:
            edu_type, content = parse_edu(await decode_one(hs, each))
            edu = declared.get(edu_type)
            parts = [] if edu is None else edu.parts_from(origin, content)
        except InvalidEdu:
            continue
        if edu is None or not parts:
            continue
        try:
            allowed = await _without_rooms(hs, edu, origin, parts)
            if allowed:
                await edu.handler(hs, origin, allowed)
        except MatrixError as error:
            if error.status == 429:
                raise
            _log.info("EDU refused", extra={"edu_type": edu_type, "origin": origin, "reason": error.error})
        except Exception as error:  # must not block the other EDUs, or make the origin repeat the transaction forever
            if is_outage(error):
                raise
            leave_out(hs, "EDU", error, {"edu_type": edu_type, "origin": origin})


async def _without_rooms(hs: Resources, edu: Edu[P], origin: ServerName, parts: Sequence[P]) -> Sequence[P]:
    """Returns the parts whose room both this server and the origin are in, and whose ACL allows the origin."""
    if edu.room is None:
        return parts
    rooms = [edu.room(part) for part in parts]
    accesses = await hs.database.read(find_accesses, hs.server_name, list(dict.fromkeys(rooms)), origin)
    return [part for part, room_id in zip(parts, rooms, strict=True) if _may_speak(accesses[room_id])]


def _may_speak(access: RoomAccess | None) -> bool:
    return access is not None and access.is_resident and access.is_allowed and access.has_origin


def find_answer(tx: Transaction, origin: ServerName, txn_id: str) -> bytes | None:
    """Returns the answer to the transaction, None if it is new."""
    row = tx.one("SELECT answer FROM transactions WHERE origin_nid = ? AND txn_id = ?", tx.find(origin), txn_id)
    return None if row is None else bytes(row[0])


def store_answer(tx: Transaction, origin: ServerName, txn_id: str, answer: bytes) -> None:
    """Stores the answer, and deletes those to the origin that are older than the newest TRANSACTIONS_KEPT."""
    nid = tx.intern(origin)
    (newest_ms,) = tx.one("SELECT COALESCE(MAX(received_ms), 0) FROM transactions WHERE origin_nid = ?", nid) or (0,)
    tx.run(
        "INSERT INTO transactions (origin_nid, txn_id, received_ms, answer) VALUES (?, ?, ?, ?)"
        " ON CONFLICT (origin_nid, txn_id) DO NOTHING",
        nid, txn_id, max(tx.now_ms, newest_ms + 1), answer,
    )  # fmt: skip
    rows = tx.values("SELECT txn_id FROM transactions WHERE origin_nid = ? ORDER BY received_ms DESC, txn_id", nid)
    for old in rows[limits.peers.TRANSACTIONS_KEPT :]:
        if old == txn_id:
            continue
        tx.run("DELETE FROM transactions WHERE origin_nid = ? AND txn_id = ?", nid, old)
