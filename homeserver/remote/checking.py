"""The first three checks of a PDU from another server: its format, its signatures, its hash.

The other checks need the room: see `homeserver/rooms/authorization.py`.
Spec: server-server-api/#checks-performed-on-receipt-of-a-pdu
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import TypeVar, TypeVarTuple

import msgspec

from homeserver.errors import MatrixError
from homeserver.federation.event import Event, InvalidEvent, NotCanonicalEvent, parse_event
from homeserver.federation.identifiers import EventID, RoomID, ServerName
from homeserver.federation.pdu_checks import check_hash, check_signatures, signing_keys_of
from homeserver.federation.room_versions import RoomVersion
from homeserver.federation.server_keys import VerifyKey
from homeserver.process.peers import Cause
from homeserver.remote.keys import WantedKey, find_keys, lacks_keys
from homeserver.resources import Resources

T = TypeVar("T")
Ts = TypeVarTuple("Ts")

INLINE_MAX = 8  # up to this many events cost less than a thread hop


class Dropped(msgspec.Struct, frozen=True):
    """A PDU that is ignored. `event_id`: None if unknown. `errcode`: for a server that sent only this PDU."""

    event_id: EventID | None
    reason: str
    errcode: str = "M_INVALID_PARAM"

    def error(self) -> MatrixError:
        """Returns the error for a server that sent only this PDU."""
        return MatrixError(400, self.errcode, self.reason)


async def parse_pdus(
    hs: Resources, pdus: Sequence[object], version: RoomVersion, room_id: RoomID, *, is_dense: bool = False
) -> list[Event | Dropped]:
    """Returns the events of the PDUs, in order. Their signatures are not checked yet.

    is_dense: even a few of them have too many values for the event loop.
    """
    return await _run(hs, is_dense or len(pdus) > INLINE_MAX, _parse, pdus, version, room_id)


async def check_signed(
    hs: Resources,
    parsed: Sequence[Event | Dropped],
    version: RoomVersion,
    cause: Cause,
    askable: Collection[ServerName] | None = None,
    *,
    is_dense: bool = False,
) -> list[Event | Dropped]:
    """Returns the events: redacted if the content hash is wrong, dropped if they are not signed with a known key.

    Missing keys are fetched, but only from servers in `askable` unless that is None.
    """
    wanted: dict[tuple[ServerName, str], int] = {}
    for event in parsed:
        if isinstance(event, Event):
            signed_ts = event.origin_server_ts if version.signing_key_validity_enforced else 0
            for named in signing_keys_of(event):
                wanted[named] = max(signed_ts, wanted.get(named, 0))
    needs = [WantedKey(*named, signed_ts) for named, signed_ts in wanted.items()]
    keys = await find_keys(hs, needs, cause, askable)
    return await _run(hs, is_dense or len(parsed) > INLINE_MAX, _check, parsed, keys)


async def list_keyless(
    hs: Resources, events: Sequence[Event], version: RoomVersion, askable: Collection[ServerName] | None = None
) -> list[Event]:
    """Returns the events that cannot be checked before a key is fetched from one of the `askable` servers.

    Leaves out events whose servers have just answered without that key.
    """
    found: list[Event] = []
    now_ms = hs.now_ms()
    for event in events:
        signed_ts = event.origin_server_ts if version.signing_key_validity_enforced else 0
        wanted = [
            WantedKey(server, key_id, signed_ts)
            for server, key_id in signing_keys_of(event)
            if (askable is None or server in askable) and not hs.peers.is_keyless(server, now_ms)
        ]
        if await lacks_keys(hs, [each for each in wanted if each.server != hs.server_name]):
            found.append(event)
    return found


async def check_pdu(
    hs: Resources,
    pdu: object,
    version: RoomVersion,
    room_id: RoomID,
    cause: Cause,
    askable: Collection[ServerName] | None = None,
) -> Event | Dropped:
    """Returns the event of one PDU after `parse_pdus` and `check_signed`."""
    return (await check_signed(hs, await parse_pdus(hs, [pdu], version, room_id), version, cause, askable))[0]


async def check_good_pdus(
    hs: Resources, pdus: Sequence[object], version: RoomVersion, room_id: RoomID, cause: Cause
) -> list[Event]:
    """Returns the events of the PDUs that pass all checks, each once."""
    return await keep_signed(hs, await parse_pdus(hs, pdus, version, room_id), version, cause)


async def keep_signed(
    hs: Resources, parsed: Sequence[Event | Dropped], version: RoomVersion, cause: Cause
) -> list[Event]:
    """Returns the events that are correctly signed, each once."""
    unique = {event.event_id: event for event in parsed if isinstance(event, Event)}
    checked = await check_signed(hs, list(unique.values()), version, cause)
    return [each for each in checked if isinstance(each, Event)]


def check_with_keys(events: Sequence[Event], keys: Mapping[ServerName, Mapping[str, VerifyKey]]) -> list[Event]:
    """Returns the events that are signed with one of the keys; redacted if the content hash is wrong."""
    return [each for each in _check(events, keys) if isinstance(each, Event)]


async def _run(hs: Resources, is_large: bool, fn: Callable[[*Ts], T], *args: *Ts) -> T:
    return await hs.workers.run(fn, *args) if is_large else fn(*args)


def _parse(pdus: Sequence[object], version: RoomVersion, room_id: RoomID) -> list[Event | Dropped]:
    return [parse_pdu(pdu, version, room_id) for pdu in pdus]


def parse_pdu(pdu: object, version: RoomVersion, room_id: RoomID) -> Event | Dropped:
    """Returns the event of a PDU. Its signatures are not checked yet."""
    try:
        event = parse_event(pdu, version)
    except InvalidEvent as error:
        return dropped(error)
    if event.room_id != room_id:
        return Dropped(event.event_id, "The event is from another room.")
    # An event that no table can store must not prevent the others in its batch from being stored.
    if "\0" in event.type or "\0" in (event.state_key or ""):
        return Dropped(event.event_id, "The type or the state key of the event has a NUL character.")
    return event


def dropped(error: InvalidEvent) -> Dropped:
    """Returns the result for a PDU that is not an event. Spec: rooms/v6/#canonical-json, which asks for M_BAD_JSON."""
    return Dropped(None, str(error), "M_BAD_JSON" if isinstance(error, NotCanonicalEvent) else "M_INVALID_PARAM")


def _check(
    parsed: Sequence[Event | Dropped], keys: Mapping[ServerName, Mapping[str, VerifyKey]]
) -> list[Event | Dropped]:
    return [_check_one(event, keys) if isinstance(event, Event) else event for event in parsed]


def _check_one(event: Event, keys: Mapping[ServerName, Mapping[str, VerifyKey]]) -> Event | Dropped:
    rejection = check_signatures(event, keys)
    return Dropped(event.event_id, rejection.reason) if rejection is not None else check_hash(event)
