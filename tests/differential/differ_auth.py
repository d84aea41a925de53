"""Random events in random room states of every version: our authorisation rules and Synapse's must agree."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import Any

import pytest

from homeserver.federation.auth_events import select_auth_keys_of
from homeserver.federation.auth_rules import StateKey, check, check_auth_events
from homeserver.federation.event import Event, InvalidEvent, parse_event
from homeserver.federation.power_levels import LEVEL_DEFAULTS, parse_level
from homeserver.federation.room_versions import ROOM_VERSIONS, RoomVersion
from tests.differential.cases import CREATOR, MEMBERSHIPS, Case, Maker, Pdu, case
from tests.differential.conftest import Effort
from tests.differential.differences import Deviation, Difference, Report, refused
from tests.differential.oracle_client import Oracle
from tests.differential.shrink import shrink_json
from tests.differential.values import chance

BATCH = 50


def parse(pdu: Pdu, version: RoomVersion) -> Event | None:
    try:
        return parse_event(pdu, version)
    except InvalidEvent:
        return None


def room_state(pdus: Sequence[Pdu], version: RoomVersion) -> dict[StateKey, Event] | None:
    """The state that the PDUs make, without those that no room could have accepted; None without a create event."""
    state: dict[StateKey, Event] = {}
    for pdu in pdus:
        event = parse(pdu, version)
        if event is None or event.state_key is None:
            continue
        if event.type == "m.room.create" and check(event, {}) is not None:
            return None
        if event.type == "m.room.power_levels" and not is_first_power_levels(event, state, version):
            continue
        if event.type == "m.room.member" and event.membership not in MEMBERSHIPS:
            continue
        state[event.key] = event
    return state if ("m.room.create", "") in state else None


def is_first_power_levels(event: Event, state: Mapping[StateKey, Event], version: RoomVersion) -> bool:
    """Returns whether the creator could have sent these as the room's first power levels."""
    create = state.get(("m.room.create", ""))
    if create is None:
        return False
    joined = parse(
        Maker(random.Random(0), version).pdu("m.room.member", CREATOR, {"membership": "join"}, CREATOR), version
    )
    return joined is not None and check(event, {create.key: create, joined.key: joined}) is None


def ask_auth(
    oracle: Oracle, version: RoomVersion, questions: Sequence[tuple[Event, Mapping[StateKey, Event]]]
) -> list[Any]:
    """Synapse's verdicts: True, or a Refusal."""
    answers = []
    for event, state in questions:
        events = {str(number): each.pdu for number, each in enumerate(state.values())}
        call = {"op": "auth", "event": "event", "state": [*events]}
        answers += oracle.ask(version.id, {**events, "event": event.pdu}, [call])
    return answers


def has_unreadable_levels(difference: Difference) -> bool:
    """Returns whether the power levels contain an invalid level, which room versions below 10 do not forbid."""
    version = ROOM_VERSIONS[difference.version]
    contents = [pdu["content"] for pdu in all_pdus(difference) if pdu["type"] == "m.room.power_levels"]
    return any(not is_readable(content, version) for content in contents)


def is_readable(content: Mapping[str, Any], version: RoomVersion) -> bool:
    groups = [content.get(group, {}) for group in ("users", "events", "notifications")]
    if not all(isinstance(group, dict) for group in groups):
        return False
    levels = [content[name] for name in LEVEL_DEFAULTS if name in content]
    levels += [level for group in groups for level in group.values()]
    return all(type(level) in (int, str, float) and parse_level(level, version) is not None for level in levels)


def all_pdus(difference: Difference) -> list[Pdu]:
    return [difference.material["event"], *difference.material["state"]]


AUTH_DEVIATIONS = (
    Deviation(
        "m.federate",
        "all versions: an m.federate that is false closes the room to senders of other servers. For Synapse "
        "everything but true does, and nobody may change the membership of a user of another server either",
        lambda it: refused(it.synapse) and "unfederatable" in it.synapse.text,
    ),
    Deviation(
        "unreadable power levels",
        "rooms/v1 … v9 check nothing of the first m.room.power_levels but its users. Where another level is none, "
        "we take it for absent in the room's state and refuse to bring it in by a change; Synapse reads it as "
        "Python's int() does (true is 1, fullwidth and Arabic digits and underscores count) or raises, which drops "
        "the event",
        has_unreadable_levels,
    ),
    Deviation(
        "power levels beside the power levels",
        "the levels in force are those of state_key ''; Synapse compares an m.room.power_levels event of another "
        "state_key with the one before it under that same key, and stumbles over one that is no state event",
        lambda it: event_type(it) == "m.room.power_levels" and it.material["event"].get("state_key") != "",
    ),
    Deviation(
        "redaction of nothing",
        "rooms/v1, rule 11: without the redact level it needs an event_id of the same domain; Synapse lets a "
        "redaction without any pass",
        lambda it: (
            it.synapse is True
            and event_type(it) == "m.room.redaction"
            and not isinstance(it.material["event"].get("redacts"), str)
        ),
    ),
    Deviation(
        "member that is no user",
        "the state_key of m.room.member is a user ID; Synapse rejects only what has no domain at all",
        lambda it: it.synapse is True and "state_key of an m.room.member event must" in repr(it.ours),
    ),
    Deviation(
        "authorising user that is none, of what is no join",
        "rooms/v8, rule 4.2: the server of the user that join_authorised_via_users_server names has to have signed, "
        "and what is no user ID has none; Synapse looks at it in joins only",
        lambda it: it.synapse is True and "join_authorised_via_users_server must be" in repr(it.ours),
    ),
    Deviation(
        "third-party invite",
        "public keys that are no strings, or no array, match no signature; Synapse stumbles over them before it "
        "looks at the others",
        lambda it: (
            refused(it.synapse)
            and not it.synapse.is_verdict
            and "third_party_invite" in it.material["event"]["content"]
        ),
    ),
    Deviation(
        "an m.room.create that is no state event (12)",
        "no rule speaks of it, and no room can have it twice; Synapse refuses it on parsing",
        lambda it: (
            refused(it.synapse) and event_type(it) == "m.room.create" and "state_key" not in it.material["event"]
        ),
    ),
)


def event_type(difference: Difference) -> Any:
    return difference.material["event"]["type"]


def differs(oracle: Oracle, version: RoomVersion, material: Any) -> bool:
    """Returns whether a reduced case is still valid and still has different verdicts."""
    try:
        event, state = parse(material["event"], version), room_state(material["state"], version)
    except (KeyError, TypeError):
        return False
    if event is None or state is None or len(state) != len(material["state"]):
        return False
    (theirs,) = ask_auth(oracle, version, [(event, state)])
    return (check(event, state) is None) != (theirs is True)


@pytest.mark.parametrize("version", ROOM_VERSIONS.values(), ids=lambda version: version.id)
def test_verdict(oracle: Oracle, effort: Effort, version: RoomVersion) -> None:
    report = Report(AUTH_DEVIATIONS)
    allowed = 0
    for seed in effort.seeds(800):
        it = case(seed, version)
        event, state = parse(it.event, version), room_state(it.state, version)
        if event is None or state is None:
            continue
        (theirs,) = ask_auth(oracle, version, [(event, state)])
        ours = check(event, state) or True
        allowed += ours is True
        same = (ours is True) == (theirs is True)
        material: dict[str, Any] = {"event": event.pdu, "state": [each.pdu for each in state.values()]}
        found = Difference("verdict", version.id, seed, ours, theirs, material)
        if not same and not any(deviation.applies(found) for deviation in AUTH_DEVIATIONS):
            material = shrink_json(material, lambda smaller: differs(oracle, version, smaller))
            found = Difference("verdict", version.id, seed, ours, theirs, material)
        report.compare(found, same=same)
    print(f"{allowed} allowed")
    report.conclude()


SELECTION_DEVIATIONS = (
    Deviation(
        "nothing to select by",
        "an m.room.member without membership, or whose third_party_invite has no token, is rejected anyway; Synapse "
        "stumbles over it",
        lambda it: refused(it.synapse) and not it.synapse.is_verdict,
    ),
    Deviation(
        "create event (12)",
        "rooms/v12: the m.room.create event must not be selected. Synapse's function names it, and leaves it out "
        "elsewhere",
        lambda it: it.version == "12" and it.synapse == sorted([*it.ours, ["m.room.create", ""]]),
    ),
    Deviation(
        "selected by what is no string",
        "a token or an authorising user that is no string selects nothing, and the event is rejected; Synapse "
        "selects a state_key of that value, which no event has",
        lambda it: any(not isinstance(state_key, str) for _, state_key in it.synapse),
    ),
)


@pytest.mark.parametrize("version", ROOM_VERSIONS.values(), ids=lambda version: version.id)
def test_auth_events_selection(oracle: Oracle, effort: Effort, version: RoomVersion) -> None:
    report = Report(SELECTION_DEVIATIONS)
    seeds = [*effort.seeds(300)]
    for at in range(0, len(seeds), BATCH):
        parsed = {str(seed): parse(case(seed, version).event, version) for seed in seeds[at : at + BATCH]}
        events = {seed: event for seed, event in parsed.items() if event is not None and event.type != "m.room.create"}
        pdus = {seed: event.pdu for seed, event in events.items()}
        answers = oracle.ask(version.id, pdus, [{"op": "auth_keys", "event": seed} for seed in pdus])
        for (seed, event), theirs in zip(events.items(), answers, strict=True):
            ours = sorted([list(key) for key in select_auth_keys_of(event)])
            report.compare(Difference("selection", version.id, seed, ours, theirs, event.pdu), same=ours == theirs)
    report.conclude()


def cite(rng: random.Random, maker: Maker, it: Case) -> tuple[Pdu, list[Pdu], set[int]]:
    """The case's event with auth events, mostly the right ones; what it cites, and which of that was rejected."""
    version = it.version
    event = parse(it.event, version)
    wanted = set() if event is None else set(select_auth_keys_of(event))
    cited = [pdu for pdu in it.state if (pdu["type"], pdu.get("state_key")) in wanted]
    if chance(rng, 0.15):
        cited.append(rng.choice(it.state))
    if cited and chance(rng, 0.1):
        cited.append(rng.choice(cited))
    if cited and chance(rng, 0.1):
        cited.remove(rng.choice(cited))
    if cited and chance(rng, 0.05):
        at = rng.randrange(len(cited))
        if "room_id" in cited[at]:
            cited[at] = cited[at] | {"room_id": "!other:alpha.test" if ":" in maker.room_id else "!" + "A" * 43}
    rejected = {rng.randrange(len(cited))} if cited and chance(rng, 0.1) else set()
    return it.event | {"auth_events": [maker.reference(pdu) for pdu in cited]}, cited, rejected


@pytest.mark.parametrize("version", ROOM_VERSIONS.values(), ids=lambda version: version.id)
def test_list_of_auth_events(oracle: Oracle, effort: Effort, version: RoomVersion) -> None:
    report = Report(LIST_DEVIATIONS)
    for seed in effort.seeds(300):
        it = case(seed, version)
        rng = random.Random(f"list {version.id} {seed}")
        pdu, cited, rejected = cite(rng, Maker(rng, version), it)
        event = parse(pdu, version)
        known = [parse(each, version) for each in cited]
        if event is None or event.type == "m.room.create" or any(each is None for each in known):
            continue
        auth_events = [each for each in known if each is not None]
        rejected_ids = {auth_events[number].event_id for number in rejected}
        ours = check_auth_events(event, auth_events, rejected_ids) or True
        events = {str(number): each.pdu for number, each in enumerate(auth_events)}
        create = {"create": it.state[0]} if version.room_id_is_create_event_id else {}
        call = {"op": "auth_list", "event": "event", "known": [*events, *create]}
        names = [str(number) for number, each in enumerate(auth_events) if each.event_id in rejected_ids]
        (theirs,) = oracle.ask(version.id, {**events, **create, "event": event.pdu}, [call], names)
        same = (ours is True) == (theirs is True)
        material = {"event": event.pdu, "cited": [each.pdu for each in auth_events], "rejected": names}
        report.compare(Difference("auth events", version.id, seed, ours, theirs, material), same=same)
    report.conclude()


LIST_DEVIATIONS = (
    Deviation(
        "nothing to select by",
        "an m.room.member that is no state event, without membership, or whose third_party_invite has no token, is "
        "rejected by a later rule; Synapse stumbles over it here",
        lambda it: (
            refused(it.synapse) and not it.synapse.is_verdict and it.material["event"]["type"] == "m.room.member"
        ),
    ),
)
