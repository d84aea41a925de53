"""Random PDUs of every room version: canonical JSON, hashes, redaction, event ids, signatures, ours and Synapse's."""

from __future__ import annotations

import random
from base64 import b64encode
from collections.abc import Callable
from typing import Any

import pytest

from homeserver.federation import canonical_json
from homeserver.federation.build import sign_event
from homeserver.federation.canonical_json import NotCanonical
from homeserver.federation.event import Event, InvalidEvent, parse_event
from homeserver.federation.hashing import content_hash, reference_hash
from homeserver.federation.identifiers import ServerName
from homeserver.federation.pdu_checks import check_hash, required_signatures
from homeserver.federation.redaction import redact
from homeserver.federation.room_versions import ROOM_VERSIONS, RoomVersion
from homeserver.federation.signing import SigningKey
from tests.differential.cases import SERVERS, Pdu, case
from tests.differential.conftest import Effort
from tests.differential.differences import Deviation, Difference, Report, refused
from tests.differential.oracle_client import Oracle, Refusal
from tests.differential.values import value

BATCH = 100


def answer(function: Callable[..., Any], *args: object) -> Any:
    """Returns our function's result, or its refusal."""
    try:
        return function(*args)
    except (NotCanonical, InvalidEvent) as refusal:
        return refusal


def batches(effort: Effort, version: RoomVersion, count: int) -> list[dict[str, Pdu]]:
    """PDUs by the text of their seed."""
    seeds = [*effort.seeds(count)]
    return [
        {str(seed): case(seed, version).event for seed in seeds[at : at + BATCH]} for at in range(0, len(seeds), BATCH)
    ]


def ask_each(oracle: Oracle, version: RoomVersion, pdus: dict[str, Pdu], **call: object) -> list[tuple[str, Pdu, Any]]:
    """One call for each PDU: (seed, PDU, Synapse's answer)."""
    answers = oracle.ask(version.id, pdus, [{**call, "event": seed} for seed in pdus])
    return [(seed, pdu, theirs) for (seed, pdu), theirs in zip(pdus.items(), answers, strict=True)]


@pytest.mark.parametrize("version", ROOM_VERSIONS.values(), ids=lambda version: version.id)
def test_canonical_json(oracle: Oracle, effort: Effort, version: RoomVersion) -> None:
    report = Report()
    values = {
        seed: value(random.Random(f"json {seed}"), strict=version.canonical_json_strict, depth=6)
        for seed in effort.seeds(300)
    }
    answers = oracle.ask(version.id, {}, [{"op": "canonical_json", "value": each} for each in values.values()])
    for (seed, each), theirs in zip(values.items(), answers, strict=True):
        ours = canonical_json.encode(each, strict=version.canonical_json_strict).decode()
        report.compare(Difference("canonical JSON", version.id, seed, ours, theirs, each), same=ours == theirs)
        again = canonical_json.decode(ours.encode(), strict=version.canonical_json_strict)
        report.compare(Difference("round trip", version.id, seed, again, each, each), same=again == each)
    report.conclude()


@pytest.mark.parametrize("version", ROOM_VERSIONS.values(), ids=lambda version: version.id)
def test_content_hash(oracle: Oracle, effort: Effort, version: RoomVersion) -> None:
    report = Report()
    for pdus in batches(effort, version, 300):
        for seed, pdu, theirs in ask_each(oracle, version, pdus, op="content_hash"):
            ours = answer(content_hash, pdu, version)
            report.compare(Difference("content hash", version.id, seed, ours, theirs, pdu), same=ours == theirs)
    report.conclude()


def without_unsigned(pdu: Any, version: RoomVersion) -> Any:
    """A redacted PDU without what neither hash nor signature covers."""
    if not isinstance(pdu, dict):
        return pdu
    dropped = (
        {"unsigned", "room_id"}
        if version.room_id_is_create_event_id and pdu.get("type") == "m.room.create"
        else {"unsigned"}
    )
    return {key: item for key, item in pdu.items() if key not in dropped}


REDACTION_DEVIATIONS = (
    Deviation(
        "nothing to redact",
        "a PDU without a type that is a string or a content that is an object is not an event, and is refused "
        "before it is redacted",
        lambda it: refused(it.synapse) and not isinstance(parsed(it), Event),
    ),
)


def parsed(difference: Difference) -> Any:
    return answer(parse_event, difference.material, ROOM_VERSIONS[difference.version])


@pytest.mark.parametrize("version", ROOM_VERSIONS.values(), ids=lambda version: version.id)
def test_redaction(oracle: Oracle, effort: Effort, version: RoomVersion) -> None:
    report = Report(REDACTION_DEVIATIONS)
    for pdus in batches(effort, version, 300):
        for seed, pdu, theirs in ask_each(oracle, version, pdus, op="redact"):
            ours = answer(redact, pdu, version)
            same = without_unsigned(ours, version) == without_unsigned(theirs, version)
            report.compare(Difference("redaction", version.id, seed, ours, theirs, pdu), same=same)
    report.conclude()


def reading(event: Event) -> dict[str, Any]:
    """An event in the words of the oracle's `describe`."""
    auth_events = [*event.auth_events]
    if event.version.create_event_in_auth_events == "forbidden" and event.type != "m.room.create":
        auth_events.append("$" + event.room_id[1:])  # Synapse adds to the list what the room ID implies
    return {
        "event_id": event.event_id,
        "reference_hash": b64encode(reference_hash(event.pdu, event.version)).decode().rstrip("="),
        "room_id": event.room_id,
        "type": event.type,
        "state_key": event.state_key,
        "sender": event.sender,
        "depth": event.depth,
        "prev_events": [*event.prev_events],
        "auth_events": auth_events,
        "redacts": event.redacts,
    }


@pytest.mark.parametrize("version", ROOM_VERSIONS.values(), ids=lambda version: version.id)
def test_event_id_and_fields(oracle: Oracle, effort: Effort, version: RoomVersion) -> None:
    report = Report(READING_DEVIATIONS)
    for pdus in batches(effort, version, 300):
        for seed, pdu, theirs in ask_each(oracle, version, pdus, op="describe"):
            event = answer(parse_event, pdu, version)
            if not isinstance(event, Event):
                continue
            ours = reading(event)
            if event.type != "m.room.redaction" and isinstance(theirs, dict):
                theirs = {**theirs, "redacts": None}  # means nothing in other events
            report.compare(Difference("event id and fields", version.id, seed, ours, theirs, pdu), same=ours == theirs)
    report.conclude()


def is_create_with_room_id(difference: Difference) -> bool:
    pdu = difference.material
    return difference.version == "12" and pdu["type"] == "m.room.create" and "room_id" in pdu


def why(difference: Difference) -> str:
    """The reason of Synapse's refusal; empty where it did not refuse."""
    return difference.synapse.text if isinstance(difference.synapse, Refusal) else ""


READING_DEVIATIONS = (
    Deviation(
        "a create event with a room_id (12)",
        "rooms/v12, authorisation rule 1.2, rejects it: Synapse does so on parsing, we when the rules are checked. "
        "Its redaction drops the room_id, ours does not; nobody signs such an event",
        is_create_with_room_id,
    ),
    Deviation(
        "an m.room.create that is no state event (12)",
        "no rule speaks of it; Synapse refuses it on parsing",
        lambda it: refused(it.synapse) and it.material["type"] == "m.room.create" and "state_key" not in it.material,
    ),
)


RECEIVING_DEVIATIONS = (
    *READING_DEVIATIONS,
    Deviation(
        "looser format",
        "rooms/*, event format: the PDU's schema gives every field a type; Synapse looks at fewer of them, we drop "
        "the PDU as server-server-api/#checks-performed-on-receipt-of-a-pdu demands",
        lambda it: isinstance(it.ours, InvalidEvent) and it.synapse is True,
    ),
    Deviation(
        "depth",
        "rooms/v1 … v5 allow a depth up to 2^63-1; Synapse drops such events in every version",
        lambda it: why(it) == "400: Depth too large" and it.material["depth"] > 2**53 - 1,
    ),
    Deviation(
        "m.room.member without membership",
        "its authorisation rule rejects it; Synapse stumbles over it earlier",
        lambda it: why(it) == "'membership'" and "membership" not in it.material["content"],
    ),
    Deviation(
        "authorising user without a domain",
        "the authorisation rules reject it; Synapse stumbles over it earlier",
        lambda it: (
            "join_authorised_via_users_server" in it.material["content"]
            and refused(it.synapse)
            and not it.synapse.is_verdict
        ),
    ),
)


def receive(pdu: Pdu, version: RoomVersion) -> Any:
    event = parse_event(pdu, version)
    check_hash(event)
    return True


@pytest.mark.parametrize("version", ROOM_VERSIONS.values(), ids=lambda version: version.id)
def test_receipt(oracle: Oracle, effort: Effort, version: RoomVersion) -> None:
    """The same events are dropped as malformed: if Synapse accepts an event that we drop, the room's history splits."""
    report = Report(RECEIVING_DEVIATIONS)
    signatures = {server: {"ed25519:1": "c2lnbmF0dXJl"} for server in SERVERS}
    for pdus in batches(effort, version, 300):
        signed = {seed: pdu | ({"signatures": signatures} if "signatures" in pdu else {}) for seed, pdu in pdus.items()}
        for seed, pdu, theirs in ask_each(oracle, version, signed, op="receive"):
            ours = answer(receive, pdu, version)
            same = isinstance(ours, InvalidEvent) == refused(theirs)
            report.compare(Difference("receipt", version.id, seed, ours, theirs, pdu), same=same)
    report.conclude()


SIGNERS_DEVIATIONS = (
    *RECEIVING_DEVIATIONS,
    Deviation(
        "authorising server of what is no join",
        "rooms/v8, rule 4.2: whoever join_authorised_via_users_server names has to have signed, whatever the "
        "membership; Synapse asks for it in joins only",
        lambda it: it.synapse is True and it.material["content"].get("membership") != "join",
    ),
    Deviation(
        "third_party_invite that is no object",
        "the authorisation rules reject such an invite; Synapse lets it go unsigned until then, we do not",
        lambda it: it.synapse is True and not isinstance(it.material["content"].get("third_party_invite", {}), dict),
    ),
)


@pytest.mark.parametrize("version", ROOM_VERSIONS.values(), ids=lambda version: version.id)
def test_required_signatures(oracle: Oracle, effort: Effort, version: RoomVersion) -> None:
    """The same signatures are required of an event: each server's is left out at random."""
    report = Report(SIGNERS_DEVIATIONS)
    rng = random.Random(f"signers {version.id}")
    for pdus in batches(effort, version, 300):
        events = {
            seed: event for seed, pdu in pdus.items() if isinstance(event := answer(parse_event, pdu, version), Event)
        }
        signed = {}
        for seed, event in events.items():
            signers = rng.sample(SERVERS, rng.randrange(1, 4))
            signed[seed] = event.pdu | {"signatures": {server: {"ed25519:1": "c2lnbmF0dXJl"} for server in signers}}
        for seed, pdu, theirs in ask_each(oracle, version, signed, op="receive"):
            ours = required_signatures(events[seed]) <= set(pdu["signatures"])
            report.compare(Difference("signers", version.id, seed, ours, theirs, pdu), same=ours == (theirs is True))
    report.conclude()


@pytest.mark.parametrize("version", ROOM_VERSIONS.values(), ids=lambda version: version.id)
def test_signature(oracle: Oracle, effort: Effort, version: RoomVersion) -> None:
    report = Report(READING_DEVIATIONS)
    key = SigningKey("a_1", random.Random("key").randbytes(32))
    seed_base64 = b64encode(key.seed).decode().rstrip("=")
    for pdus in batches(effort, version, 60):
        parsed = {seed: answer(parse_event, pdu, version) for seed, pdu in pdus.items()}
        well_formed = {
            seed: event.pdu | {"signatures": {}} for seed, event in parsed.items() if isinstance(event, Event)
        }
        call = {"op": "sign", "key_version": key.version, "seed": seed_base64, "server_name": "alpha.test"}
        for seed, pdu, theirs in ask_each(oracle, version, well_formed, **call):
            ours = sign_event(pdu, version, ServerName("alpha.test"), key)
            same = without_unsigned(ours, version) == without_unsigned(theirs, version)
            report.compare(Difference("hash and signature", version.id, seed, ours, theirs, pdu), same=same)
    report.conclude()
