"""Rooms with a policy server: which of their events it has to sign. Spec: server-server-api/#policy-servers

Theory of operation. Our own event is built and checked first. If the room's policy server has not signed it, the write
that appends it cannot go on: `find_recommended` raises PolicySignatureNeeded, and `Database.write` undoes the write,
lets `homeserver/remote/policy_servers.py` ask that server, and repeats the write with the outcome. The signed event
keeps the place that it was built for, even if the room has moved on meanwhile. If it is refused, the write gets that
error where it appends the event. Only a user who leaves is never held back: then the event is appended without the
signature.

Events of other servers without a valid signature are soft-failed when they are received.
"""

from __future__ import annotations

from homeserver.database import Needed, Transaction
from homeserver.errors import MatrixError, forbidden
from homeserver.federation import canonical_json
from homeserver.federation.event import Event
from homeserver.federation.identifiers import RoomID, server_name_of
from homeserver.federation.policy import PolicyServer, is_recommended, needs_recommendation, parse_policy
from homeserver.rooms.heads import Head, state_content, state_position
from homeserver.rooms.membership import is_server_joined

STATES_CACHED_MAX = 5_000  # 100 bytes each


class PolicySignatureNeeded(Needed):
    """The policy server of a room has to sign an event of ours. What is given is the signed Event, or a MatrixError."""

    def __init__(self, event: Event, policy: PolicyServer) -> None:
        content = canonical_json.encode(event.pdu["content"], strict=False)
        redacts = event.pdu.get("redacts")
        super().__init__((event.room_id, event.type, event.state_key, event.sender, redacts, content))
        self.event = event
        self.policy = policy


def find_policy_server(tx: Transaction, room_id: RoomID, root: bytes) -> PolicyServer | None:
    """Returns the policy server of a room whose current state has that root, None if it has none.

    It must have a user in the room: otherwise a room could force any server to look at its events.
    """
    without = tx.cache("states_without_policy", STATES_CACHED_MAX)
    if without.get(root) is not None:
        return None
    if state_position(tx, root, "m.room.policy") is None:
        if tx.is_write:  # the state may come from this write, which may be rolled back
            tx.after_commit(without.put, root, True)
        else:
            without.put(root, True)
        return None
    content = state_content(tx, root, "m.room.policy")
    policy = None if content is None else parse_policy(content)
    return policy if policy is not None and is_server_joined(tx, room_id, policy.name) else None


def find_unmet_policy(tx: Transaction, head: Head, event: Event) -> PolicyServer | None:
    """Returns the policy server that does not recommend the event of another server, None if nothing is amiss.

    Events of this server were recommended before they were sent, or by a resident when we joined.
    """
    if server_name_of(event.sender) == tx.server.name or not needs_recommendation(event):
        return None
    policy = find_policy_server(tx, event.room_id, head.state_root)
    return None if policy is None or is_recommended(event, policy) else policy


def find_recommended(tx: Transaction, head: Head, event: Event) -> Event | None:
    """Returns our event as the policy server has signed it, None if it needs no signature.

    Raises PolicySignatureNeeded at first, and then MatrixError if the policy server has refused.
    """
    policy = find_policy_server(tx, event.room_id, head.state_root) if needs_recommendation(event) else None
    if policy is None:
        return None
    needed = PolicySignatureNeeded(event, policy)
    given = tx.given.get(needed.key)
    if given is None:
        raise needed
    if isinstance(given, Event) and is_recommended(given, policy):
        return given
    if event.membership == "leave" and event.sender == event.state_key:
        return None
    raise given if isinstance(given, MatrixError) else forbidden("The policy server of the room has changed.")
