"""The signing keys of other servers: fetched from them or from trusted notaries, and stored.

Theory of operation. We search for a key in memory (`hs.peers`), then in the table `server_keys`, and then fetch it. It
suffices if it is known and valid at the time of the signature. To fetch keys, the server itself is asked, then the
trusted notaries one after another until the keys suffice. If the keys of many servers are wanted (NOTARY_FROM), the
notaries are asked first. Only statements signed by the server, and by the notary if one sent it, are stored. A server
that answered without the wanted key is not asked again for KEY_RETRY_MS (`note_keyless`). Concurrent requests for the
keys of one server share one fetch.

Anyone can name any server in a request and so make us fetch its keys. These fetches have the cause "stranger" and are
rate-limited by address, so they cannot use up the connections of others.

Spec: server-server-api/#retrieving-server-keys
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping
from hashlib import blake2b
from typing import NamedTuple

import orjson
import trio

from homeserver import limits
from homeserver.database import Transaction
from homeserver.encoding import to_json
from homeserver.errors import MatrixError
from homeserver.federation import canonical_json
from homeserver.federation.canonical_json import NotCanonical
from homeserver.federation.identifiers import ServerName
from homeserver.federation.server_keys import (
    NOTARY_RESPONSES_MAX,
    VALIDITY_MS_MAX,
    InvalidKeys,
    ServerKeys,
    VerifyKey,
    build_key_response,
    merge_keys,
    parse_key_response,
    parse_notary_response,
)
from homeserver.federation.wire import WireRequest
from homeserver.moments import latest, passed
from homeserver.process.peers import Cause, KnownKeys, stranger
from homeserver.process.rate_limits import address_key, limit_exceeded
from homeserver.remote.answers import Verdict, ask_many
from homeserver.remote.identity import list_old_keys
from homeserver.remote.requests import Unreachable, fetch, hold_answer, is_sparse, note_status
from homeserver.resources import Resources

NOTARY_FROM = 4  # from this many servers on, one request to a notary is cheaper than asking each server


class WantedKey(NamedTuple):
    """A key that something was signed with. `signed_ts`: it must be valid until then; 0 if that does not matter."""

    server: ServerName
    key_id: str
    signed_ts: int


async def find_keys(
    hs: Resources, wanted: Collection[WantedKey], cause: Cause, askable: Collection[ServerName] | None = None
) -> dict[ServerName, Mapping[str, VerifyKey]]:
    """Returns all known keys of the wanted servers. Fetches missing ones first, from `askable` servers only."""
    by_server: dict[ServerName, list[WantedKey]] = defaultdict(list)
    for each in wanted:
        by_server[each.server].append(each)
    known = await _known(hs, by_server)
    lacking = [server for server, needs in by_server.items() if not _suffices(hs, known.get(server), needs)]
    if askable is not None:
        lacking = [server for server in lacking if server in askable]
    if lacking:
        await _refresh(hs, lacking, by_server, cause)
        known |= await _known(hs, lacking)
    return {server: keys.every for server, keys in known.items()}


async def lacks_keys(hs: Resources, wanted: Collection[WantedKey]) -> bool:
    """Returns whether a key would have to be fetched."""
    known = await _known(hs, {each.server for each in wanted})
    return any(not _suffices(hs, known.get(each.server), [each]) for each in wanted)


async def find_request_key(hs: Resources, server: ServerName, key_id: str, client_ip: str) -> VerifyKey | None:
    """Returns the key with which the server may currently sign requests, None if there is none.

    client_ip: the address of the client that claims to be the server. Raises MatrixError 429 if that address makes us
    ask too many servers for their keys.
    """
    now_ms = hs.now_ms()
    key = await _known_request_key(hs, server, key_id, now_ms)
    if key is None and not hs.peers.is_keyless(server, now_ms):
        cause = take_stranger(hs, client_ip, 1)
        await _refresh(hs, [server], {server: [WantedKey(server, key_id, now_ms)]}, cause)
        key = await _known_request_key(hs, server, key_id, now_ms)
    return key


def take_stranger(hs: Resources, client_ip: str, cost: int) -> Cause:
    """Returns the cause of `cost` requests triggered by an address. Raises MatrixError 429 if these are too many."""
    address = address_key(client_ip)
    hs.rate_limits.take("keys", address, hs.now_ms(), cost=cost)
    cause = stranger(address)
    each = limits.peers.CONNECTION_SHARES["stranger"].each
    if hs.peers.shares.using(cause) >= each + limits.peers.STRANGERS_WAITING_MAX:
        raise limit_exceeded(1000)
    return cause


async def _known_request_key(hs: Resources, server: ServerName, key_id: str, now_ms: int) -> VerifyKey | None:
    known = (await _known(hs, [server])).get(server)
    key = known.current.get(key_id) if known is not None else None
    if key is None or not key.may_sign_requests(now_ms) or key.valid_until_ts > latest(now_ms, VALIDITY_MS_MAX):
        return None
    return key


async def _known(hs: Resources, servers: Iterable[ServerName]) -> dict[ServerName, KnownKeys]:
    """Returns the keys in memory or in the table."""
    found: dict[ServerName, KnownKeys] = {}
    unread: list[ServerName] = []
    for server in servers:
        if server == hs.server_name:
            found[server] = await _own_keys(hs)
            continue
        known = hs.peers.find_keys(server)
        if known is None:
            unread.append(server)
        else:
            found[server] = known
    if unread:
        statements = await hs.database.read(list_statements, unread)
        for server, own in statements.items():
            found[server] = _remember(hs, server, own)
    return found


def _remember(hs: Resources, server: ServerName, statements: list[ServerKeys]) -> KnownKeys:
    """Caches and returns a server's keys. `statements`: the most recently fetched one comes first."""
    known = KnownKeys(statements[0].verify_keys, merge_keys(statements)[server])
    hs.peers.remember_keys(server, known)
    return known


def _suffices(hs: Resources, known: KnownKeys | None, needs: Iterable[WantedKey]) -> bool:
    if known is None:
        return False
    latest_ts = hs.now_ms() + limits.peers.KEY_FUTURE_MS
    for need in needs:
        key = known.every.get(need.key_id)
        if key is None:
            return False
        if key.expired_ts is None and key.valid_until_ts < min(need.signed_ts, latest_ts):
            return False
    return True


# Asking


async def _refresh(
    hs: Resources, servers: Iterable[ServerName], needs: Mapping[ServerName, Collection[WantedKey]], cause: Cause
) -> None:
    """Fetches the keys of those servers that may be asked again. If they are many, notaries are asked first."""
    now_ms = hs.now_ms()
    due = [server for server in servers if server != hs.server_name and not hs.peers.is_keyless(server, now_ms)]
    notaries = [ServerName(name) for name in hs.config.federation.trusted_key_servers if name != hs.server_name]
    if len(due) >= NOTARY_FROM:
        for notary in notaries:
            await _ask_notary(hs, notary, [server for server in due if server != notary], needs, cause)
            known = await _known(hs, due)
            due = [server for server in due if not _suffices(hs, known.get(server), needs[server])]
    waiting = iter(due)

    async def refresh() -> None:
        for server in waiting:  # all tasks share this iterator: each takes the next server
            key = ("keys", server, cause.kind)  # so that no person waits for a fetch started by strangers
            try:
                await hs.flights.join(hs.nursery, key, _ask_anyone, hs, server, needs[server], notaries, cause)
            except MatrixError:
                return  # too many fetches are running, or the server is closing: then there are no keys

    async with trio.open_nursery() as nursery:
        for _ in range(min(len(due), limits.peers.KEY_FETCHES_AT_ONCE_MAX)):
            nursery.start_soon(refresh)


async def _ask_anyone(
    hs: Resources,
    server: ServerName,
    needs: Collection[WantedKey],
    notaries: Collection[ServerName],
    cause: Cause,
) -> None:
    has_answered = await _ask_itself(hs, server, cause)
    known = (await _known(hs, [server])).get(server)
    for notary in notaries:
        if _suffices(hs, known, needs):
            break
        if notary != server:
            await _ask_notary(hs, notary, [server], {server: needs}, cause)
            known = (await _known(hs, [server])).get(server)
    if has_answered and not _suffices(hs, known, needs):
        hs.peers.note_keyless(server, hs.now_ms())


async def _ask_itself(hs: Resources, server: ServerName, cause: Cause) -> bool:
    """Asks the server for its keys and stores them. Returns whether it answered, correctly or not."""
    try:
        with hold_answer(hs, server, cause) as hold:
            response = await fetch(
                hs, server, WireRequest("GET", "/_matrix/key/v2/server", {}), cause=cause, hold=hold,
                timeout_s=limits.peers.KEY_FETCH_TIMEOUT_S, max_bytes=limits.peers.KEY_RESPONSE_BYTES_MAX,
            )  # fmt: skip
    except Unreachable:
        return False
    note_status(hs, server, response.status)
    try:
        if response.status != 200 or not is_sparse(response.body):
            return True
        statement = parse_key_response(canonical_json.decode(response.body), server, hs.now_ms())
    except (NotCanonical, InvalidKeys):
        return True
    await hs.database.write(store_statements, [statement])
    await _reread(hs, [server])
    return True


async def _ask_notary(
    hs: Resources,
    notary: ServerName,
    servers: Collection[ServerName],
    needs: Mapping[ServerName, Collection[WantedKey]],
    cause: Cause,
) -> None:
    """Asks a trusted notary for the keys of servers, and stores the statements signed by both."""
    known = (await _known(hs, [notary])).get(notary)
    if known is None:
        await _ask_itself(hs, notary, cause)
        known = (await _known(hs, [notary])).get(notary)
    if known is None:
        return
    listed = list(servers)
    for start in range(0, len(listed), limits.peers.NOTARY_SERVERS_MAX):
        chunk = listed[start : start + limits.peers.NOTARY_SERVERS_MAX]
        question = {
            server: {need.key_id: {"minimum_valid_until_ts": need.signed_ts or hs.now_ms()} for need in needs[server]}
            for server in chunk
        }
        if not await _ask_notary_about(hs, notary, known.current, question, cause):
            return


async def _ask_notary_about(
    hs: Resources,
    notary: ServerName,
    notary_keys: Mapping[str, VerifyKey],
    question: Mapping[ServerName, Mapping[str, Mapping[str, int]]],
    cause: Cause,
) -> bool:
    """Sends one request to a notary, and stores the answer. Returns whether there was one."""
    found: list[ServerKeys] = []

    def take(text: bytes) -> Verdict:
        if len(found) >= NOTARY_RESPONSES_MAX:
            return "full"
        try:
            listed = {"server_keys": [canonical_json.decode(text)]}
            statements = parse_notary_response(listed, notary, notary_keys, hs.now_ms())
        except (NotCanonical, InvalidKeys):
            return "junk"
        found.extend(statement for statement in statements if statement.server_name in question)
        return "taken" if statements else "junk"

    try:
        answer = await ask_many(
            hs, notary, "POST", "/_matrix/key/v2/query", {"server_keys": question},
            cause=cause,
            take={"server_keys": take},
            timeout_s=3 * limits.peers.KEY_FETCH_TIMEOUT_S,
            max_bytes=limits.peers.NOTARY_RESPONSE_BYTES_MAX,
        )  # fmt: skip
    except Unreachable:
        return False
    if answer.status != 200:
        return False
    await hs.database.write(store_statements, found)
    await _reread(hs, {statement.server_name for statement in found})
    return True


async def _reread(hs: Resources, servers: Collection[ServerName]) -> None:
    for server, statements in (await hs.database.read(list_statements, servers)).items():
        _remember(hs, server, statements)


# Our own


async def _own_keys(hs: Resources) -> KnownKeys:
    """Returns our own keys, as other servers know them."""
    known = hs.peers.find_keys(hs.server_name)
    if known is None:
        old_keys = await hs.database.read(list_old_keys)
        current = {hs.signing_key.key_id: VerifyKey(hs.signing_key.verify_key_base64, 1 << 53)}
        known = KnownKeys(current, {**old_keys, **current})
        hs.peers.remember_keys(hs.server_name, known)
    return known


async def own_statement(hs: Resources) -> dict[str, object]:
    """Returns our signed statement about our own keys, valid for a day."""
    known = await _own_keys(hs)
    old_keys = {key_id: key for key_id, key in known.every.items() if key_id not in known.current}
    valid_until_ts = hs.now_ms() + limits.peers.OWN_KEYS_VALID_MS
    return build_key_response(hs.server_name, hs.signing_key, old_keys, valid_until_ts)


# Storage


def list_statements(tx: Transaction, servers: Collection[ServerName]) -> dict[ServerName, list[ServerKeys]]:
    """Returns the stored statements of each server, newest first. Servers without any are left out."""
    nids = {nid: server for server in servers if (nid := tx.find(server)) is not None}
    rows = tx.all_in(
        "SELECT server_nid, fetched_ms, valid_until_ts, response FROM server_keys WHERE server_nid IN (?*)", list(nids)
    )
    found: dict[ServerName, list[ServerKeys]] = defaultdict(list)
    for nid, fetched_ms, _, response in sorted(rows, key=lambda row: (row[1], row[2]), reverse=True):
        since_ms = passed(fetched_ms, tx.now_ms)
        found[nids[nid]].append(parse_key_response(orjson.loads(bytes(response)), nids[nid], since_ms))
    return dict(found)


def store_statements(tx: Transaction, statements: Iterable[ServerKeys]) -> None:
    """Stores statements of servers. If several have the same keys, the one that is valid longest is kept."""
    for statement in statements:
        nid = tx.intern(statement.server_name)
        # A statement fetched while the clock was ahead must not stay valid for longer, or count as the newest.
        tx.run(
            "UPDATE server_keys SET fetched_ms = 0, valid_until_ts = 0 WHERE server_nid = ? AND fetched_ms > ?",
            nid, latest(tx.now_ms, 0),
        )  # fmt: skip
        (newest_ms,) = tx.values("SELECT COALESCE(MAX(fetched_ms), 0) FROM server_keys WHERE server_nid = ?", nid)
        keys = sorted((key_id, key.key_base64) for key_id, key in statement.verify_keys.items())
        tx.run(
            "INSERT INTO server_keys (server_nid, keys_hash, fetched_ms, valid_until_ts, response)"
            " VALUES (?, ?, ?, ?, ?) ON CONFLICT (server_nid, keys_hash) DO UPDATE SET"
            " fetched_ms = excluded.fetched_ms,"
            " valid_until_ts = excluded.valid_until_ts, response = excluded.response"
            " WHERE excluded.valid_until_ts >= server_keys.valid_until_ts",
            nid,
            blake2b(orjson.dumps(keys), digest_size=16).digest(),
            max(tx.now_ms, newest_ms + 1),  # the order in which statements were fetched must be unambiguous
            statement.valid_until_ts,
            to_json(statement.response),
        )
        hashes = tx.values(
            "SELECT keys_hash FROM server_keys WHERE server_nid = ? ORDER BY valid_until_ts DESC, keys_hash", nid
        )
        for keys_hash in hashes[limits.peers.KEY_STATEMENTS_PER_SERVER_MAX :]:
            tx.run("DELETE FROM server_keys WHERE server_nid = ? AND keys_hash = ?", nid, keys_hash)
