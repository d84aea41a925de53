"""Asking policy servers to sign events. Spec: server-server-api/#asking-for-a-policy-server-signature-on-an-event

Events of ours that are not signed are not sent (`rooms/policy.py`). Events of other servers that came without a valid
signature get another chance: the key may have changed on the way, or their server did not ask. A policy server that
does not answer is in back-off like every other server; meanwhile events are refused or soft-failed at once.
"""

from __future__ import annotations

from collections.abc import Sequence

import trio

from homeserver import limits
from homeserver.database import Transaction
from homeserver.errors import MatrixError, forbidden
from homeserver.federation.event import Event
from homeserver.federation.identifiers import ServerName
from homeserver.federation.policy import PolicyServer, needs_recommendation, with_recommendation
from homeserver.process.peers import PERSON, Cause
from homeserver.remote.requests import Answer, Unreachable, send_signed
from homeserver.resources import Resources
from homeserver.rooms.heads import find_head
from homeserver.rooms.policy import PolicySignatureNeeded, find_policy_server, find_unmet_policy
from homeserver.rooms.storage import find_position

URI = "/_matrix/policy/v1/sign"


async def give_signature(hs: Resources, needed: PolicySignatureNeeded) -> Event | MatrixError:
    """Returns what a write needs: the event with the signature of the policy server, or a MatrixError."""
    try:
        return await _sign(hs, needed.event, needed.policy, PERSON)
    except MatrixError as error:
        return error


async def recommend(hs: Resources, event: Event) -> Event:
    """Returns an event of ours, not stored yet, with the signature that its room requires. Raises MatrixError."""
    policy = await hs.database.read(_find_policy, event)
    return event if policy is None else await _sign(hs, event, policy, PERSON)


async def recommend_received(hs: Resources, events: Sequence[Event], cause: Cause) -> list[Event]:
    """Returns checked events of one room, with the signatures of its policy server that they lack, if it gives them."""
    unmet = await hs.database.read(list_unmet, events)
    return await sign_unmet(hs, events, unmet, cause) if unmet else list(events)


async def sign_unmet(
    hs: Resources, events: Sequence[Event], unmet: Sequence[tuple[int, PolicyServer]], cause: Cause
) -> list[Event]:
    """Does the same as `recommend_received` with the outcome of `list_unmet`."""
    signed = list(events)
    turns = trio.CapacityLimiter(limits.peers.POLICY_REQUESTS_AT_ONCE)

    async def sign(number: int, policy: PolicyServer) -> None:
        async with turns:
            try:
                signed[number] = await _sign(hs, events[number], policy, cause)
            except MatrixError:
                return  # it will be soft-failed

    async with trio.open_nursery() as nursery:
        for number, policy in unmet:
            nursery.start_soon(sign, number, policy)
    return signed


def list_unmet(tx: Transaction, events: Sequence[Event]) -> list[tuple[int, PolicyServer]]:
    """Returns the number of each new event that lacks the signature of its room's policy server, and that server."""
    found = []
    for number, event in enumerate(events):
        head = find_head(tx, event.room_id)
        policy = None if head is None else find_unmet_policy(tx, head, event)
        if policy is not None and find_position(tx, event.event_id) is None:
            found.append((number, policy))
    return found


def _find_policy(tx: Transaction, event: Event) -> PolicyServer | None:
    head = find_head(tx, event.room_id)
    if head is None or not needs_recommendation(event):
        return None
    return find_policy_server(tx, event.room_id, head.state_root)


async def _sign(hs: Resources, event: Event, policy: PolicyServer, cause: Cause) -> Event:
    """Returns the event with the policy server's signature. Raises MatrixError."""
    if policy.name == hs.server_name:
        raise forbidden("The room wants this server to check its events, but it is not a policy server.")
    timeout_s = limits.peers.POLICY_TIMEOUT_S
    try:
        answer = await send_signed(hs, policy.name, "POST", URI, event.pdu, cause=cause, timeout_s=timeout_s)
    except Unreachable as error:
        raise MatrixError(
            502, "M_UNKNOWN", f"{policy.name}, which checks the events of this room, does not answer."
        ) from error
    if answer.status != 200:
        raise _refusal(answer, policy.name)
    signed = with_recommendation(event, policy, answer.content)
    if signed is None:
        raise MatrixError(
            502, "M_UNKNOWN", f"{policy.name}, which checks the events of this room, gave no valid signature."
        )
    return signed


def _refusal(answer: Answer, policy: ServerName) -> MatrixError:
    """Returns the error of the policy server, which the client gets as it is."""
    if answer.is_unknown_endpoint:
        return MatrixError(502, "M_UNKNOWN", f"{policy}, which should check the events of this room, cannot do that.")
    if answer.status == 429 and answer.errcode == "M_LIMIT_EXCEEDED":
        retry_ms = answer.content.get("retry_after_ms")
        extra = {"retry_after_ms": retry_ms} if isinstance(retry_ms, int) and 0 <= retry_ms < 2**53 else {}
        return MatrixError(429, "M_LIMIT_EXCEEDED", f"{policy} checks too many events of this server.", **extra)
    return answer.error(policy)
