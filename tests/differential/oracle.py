"""Synapse's own functions behind a pipe: one JSON request a line on stdin, one JSON answer a line on stdout.

Run by the Python of an environment that has matrix-synapse, never by ours. Synapse is AGPL-3.0-or-later and is called
here, not copied; this caller is Apache-2.0 like the rest of the repository (the two are compatible). It knows nothing
of our packages.

A request is {"version": room version, "events": {name: pdu}, "rejected": [name], "calls": [{"op": ..., ...}]}, where
calls refer to events by name; the answer is a list with one value for each call. A call that Synapse refuses is
answered by {"error": class, "text": why}.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import logging
import sys

from canonicaljson import encode_canonical_json
from signedjson.key import decode_signing_key_base64
from synapse import event_auth
from synapse.api.room_versions import KNOWN_ROOM_VERSIONS
from synapse.crypto.event_signing import (
    add_hashes_and_signatures,
    check_event_content_hash,
    compute_content_hash,
    compute_event_reference_hash,
)
from synapse.events import make_event_from_dict
from synapse.federation.federation_base import event_from_pdu_json
from synapse.state import v1 as state_v1
from synapse.state import v2 as state_v2
from synapse.storage.controllers.state import server_acl_evaluator_from_event
from synapse.storage.databases.main.event_federation import StateDifference
from synapse.synapse_rust.events import redact_event_dict
from synapse.synapse_rust.room_versions import StateResolutionVersions
from unpaddedbase64 import encode_base64


class Room:
    """The events of one request, as Synapse's objects, by the caller's names and by event id."""

    def __init__(self, request: dict) -> None:
        self.version = KNOWN_ROOM_VERSIONS[request["version"]]
        self.pdus = request.get("events", {})
        self.rejected = set(request.get("rejected", ()))
        self._events: dict[str, object] = {}

    def event(self, name: str):
        if name not in self._events:
            reason = "rejected" if name in self.rejected else None
            self._events[name] = make_event_from_dict(self.pdus[name], self.version, rejected_reason=reason)
        return self._events[name]

    def by_id(self, names=None) -> dict:
        return {event.event_id: event for event in map(self.event, self.pdus if names is None else names)}


class Store:
    """What Synapse asks its storage for, answered from the events of the request."""

    def __init__(self, events: dict) -> None:
        self.events = events

    async def get_events(self, event_ids, *args, **kwargs) -> dict:
        return {event_id: self.events[event_id] for event_id in event_ids if event_id in self.events}

    async def get_auth_chain_difference(self, room_id, state_sets, conflicted, *args) -> StateDifference:
        """By the definitions of the spec, in the plainest way; what Synapse has in SQL."""
        chains = [self.chain(state) for state in state_sets]
        difference = set.union(*chains) - set.intersection(*chains)
        if conflicted is None:
            return StateDifference(difference, None)
        between = {event_id for event_id in self.chain(conflicted) if not conflicted.isdisjoint(self.chain([event_id]))}
        return StateDifference(difference, between)

    def chain(self, event_ids) -> set:
        """The events and their auth chains."""
        chain = set(event_ids)
        stack = list(chain)
        while stack:
            found = [auth_id for auth_id in self.events[stack.pop()].auth_event_ids() if auth_id not in chain]
            chain.update(found)
            stack += found
        return chain


class NothingStored(Store):
    """A storage that has none of the events: Synapse, which was given them, does all the work itself."""

    async def get_auth_chain_difference(self, *args, **kwargs) -> StateDifference:
        return StateDifference(set(), set())


class Clock:
    async def sleep(self, duration) -> None:
        """Nothing else runs here, so there is nothing to make room for."""


def run(coroutine):
    """The result of a coroutine that never really waits."""
    try:
        coroutine.send(None)
    except StopIteration as stop:
        return stop.value
    raise RuntimeError("Synapse waited for something")


def content_hash(room: Room, call: dict):
    return encode_base64(compute_content_hash(room.pdus[call["event"]], hashlib.sha256)[1])


def redact(room: Room, call: dict):
    return redact_event_dict(room.version, room.pdus[call["event"]])


def canonical_json(room: Room, call: dict):
    return encode_canonical_json(call["value"]).decode("utf-8")


def describe(room: Room, call: dict):
    """Returns Synapse's interpretation of an event."""
    event = room.event(call["event"])
    return {
        "event_id": event.event_id,
        "reference_hash": encode_base64(compute_event_reference_hash(event)[1]),
        "room_id": event.room_id,
        "type": event.type,
        "state_key": event.get_state_key(),
        "sender": event.sender,
        "depth": event.depth,
        "prev_events": list(event.prev_event_ids()),
        "auth_events": list(event.auth_event_ids()),
        "redacts": event.redacts,
    }


def sign(room: Room, call: dict):
    """The PDU with its content hash and a signature by the given seed."""
    key = decode_signing_key_base64("ed25519", call["key_version"], call["seed"])
    pdu = dict(room.pdus[call["event"]])
    add_hashes_and_signatures(room.version, pdu, call["server_name"], key)
    return pdu


def receive(room: Room, call: dict):
    """The checks that a PDU of another server meets before its signatures are verified."""
    event = event_from_pdu_json(json.loads(json.dumps(room.pdus[call["event"]])), room.version)
    event_auth.validate_event_for_room_version(event)
    check_event_content_hash(event)  # a wrong hash only redacts the event; a malformed one raises
    return True


def auth(room: Room, call: dict):
    """The authorisation rules, given a room state."""
    event = room.event(call["event"])
    if event.type == "m.room.create":
        run(event_auth.check_state_independent_auth_rules(Store({}), event))
    event_auth.check_state_dependent_auth_rules(event, [room.event(name) for name in call["state"]])
    return True


def auth_list(room: Room, call: dict):
    """The authorisation rules about the list of auth events itself."""
    run(event_auth.check_state_independent_auth_rules(Store(room.by_id(call["known"])), room.event(call["event"])))
    return True


def auth_keys(room: Room, call: dict):
    event = room.event(call["event"])
    return sorted(list(key) for key in event_auth.auth_types_for_event(room.version, event))


def resolve(room: Room, call: dict):
    """The resolution of states, each a list of event ids, in a room that has the named events.

    Synapse knows events that its storage has and others that it is only about to store, and finds the auth difference
    of each kind in a different way. With `stored`, all are of the first kind, else of the second, for which Synapse
    walks every path of the graph: only for short histories.
    """
    events = room.by_id(call["events"])
    states = []
    for event_ids in call["states"]:
        states.append({(events[event_id].type, events[event_id].state_key): event_id for event_id in event_ids})
    room_id = events[call["states"][0][0]].room_id
    if room.version.state_res == StateResolutionVersions.V1:
        store = Store(events)
        resolved = run(state_v1.resolve_events_with_store(room_id, room.version, states, None, store.get_events))
    else:
        given, store = ({}, Store(events)) if call["stored"] else (dict(events), NothingStored(events))
        resolved = run(state_v2.resolve_events_with_store(Clock(), room_id, room.version, states, given, store))
    return sorted(set(dict(resolved).values()))


def server_acl(room: Room, call: dict):
    """Returns the servers that an m.room.server_acl event allows."""
    acl = server_acl_evaluator_from_event(room.event(call["event"]))
    return [acl.server_matches_acl_event(name) for name in call["server_names"]]


OPERATIONS = {
    function.__name__: function
    for function in (
        content_hash, redact, canonical_json, describe, sign, receive, auth, auth_list, auth_keys, resolve, server_acl,
    )
}  # fmt: skip


def answer(room: Room, call: dict):
    try:
        return OPERATIONS[call["op"]](room, call)
    except Exception as error:  # whatever Synapse raises is its answer
        return {"error": type(error).__name__, "text": str(error)[:300]}


def main() -> None:
    logging.disable(logging.CRITICAL)
    print(
        json.dumps({"synapse": importlib.metadata.version("matrix-synapse"), "versions": list(KNOWN_ROOM_VERSIONS)}),
        flush=True,
    )
    for line in sys.stdin:
        request = json.loads(line)
        room = Room(request)
        print(json.dumps([answer(room, call) for call in request["calls"]]), flush=True)


if __name__ == "__main__":
    main()
