"""Coming and going: kick, ban, leave, rejoin, invites refused and withdrawn, knocks, restricted rooms."""

from __future__ import annotations

import pytest

from tests.interop.clients import Client, RequestFailed, wait_until
from tests.interop.servers import Server

Sides = tuple[Server, Server]


def wait_membership(room_id: str, user_id: str, membership: str, *clients: Client) -> None:
    """Waits until every client's server says so."""
    for client in clients:
        what = f"{user_id} is {membership!r} on {client.server.kind}"
        wait_until(what, lambda client=client: client.membership_of(room_id, user_id) == membership)


@pytest.mark.parametrize("version", ("12", "10", "6"))
def test_kick_ban_unban_rejoin(sides: Sides, version: str) -> None:
    here, there = sides
    alice, bob, dave = Client(here, "alice"), Client(there, "bob"), Client(there, "dave")
    room_id = alice.create_room(version, preset="public_chat")
    bob.join(room_id, via=here)
    dave.join(room_id, via=here)
    bob.sync()
    alice.membership("kick", room_id, bob.user_id)
    wait_membership(room_id, bob.user_id, "leave", alice, dave)
    bob.wait("kicked out", lambda: room_id in bob.left)
    bob.join(room_id, via=here)
    wait_membership(room_id, bob.user_id, "join", alice, dave)
    bob.send(room_id, "back after the kick")
    alice.wait_message(room_id, "back after the kick")
    alice.membership("ban", room_id, bob.user_id)
    wait_membership(room_id, bob.user_id, "ban", alice, dave)
    with pytest.raises(RequestFailed) as refusal:
        bob.join(room_id, via=here)
    assert refusal.value.status == 403
    alice.membership("unban", room_id, bob.user_id)
    wait_membership(room_id, bob.user_id, "leave", alice, dave)
    bob.join(room_id, via=here)
    wait_membership(room_id, bob.user_id, "join", alice, dave)
    bob.membership("leave", room_id)
    wait_membership(room_id, bob.user_id, "leave", alice, dave)


@pytest.mark.parametrize("version", ("12", "10"))
def test_last_of_a_server_leaves_and_comes_back(sides: Sides, version: str) -> None:
    """Messages sent in between were not delivered there; they have to be fetched."""
    here, there = sides
    alice, bob = Client(here, "alice"), Client(there, "bob")
    room_id = alice.create_room(version, preset="public_chat")
    bob.join(room_id, via=here)
    alice.wait("joined", lambda: alice.membership_of(room_id, bob.user_id) == "join")
    bob.membership("leave", room_id)
    wait_membership(room_id, bob.user_id, "leave", alice)
    missed = [alice.send(room_id, f"while you were away {number}") for number in range(30)]
    alice.set_state(room_id, "m.room.topic", {"topic": "changed meanwhile"})
    bob.join(room_id, via=here)
    wait_membership(room_id, bob.user_id, "join", alice)
    assert bob.state_content(room_id, "m.room.topic") == {"topic": "changed meanwhile"}
    wait_until("the missed messages", lambda: set(missed) <= {event["event_id"] for event in bob.history(room_id)})
    bob.send(room_id, "here again")
    alice.wait_message(room_id, "here again")


@pytest.mark.parametrize("version", ("12", "10", "6", "1"))
def test_invite_refused(sides: Sides, version: str) -> None:
    here, there = sides
    alice, bob = Client(here, "alice"), Client(there, "bob")
    room_id = alice.create_room(version, preset="private_chat", invite=[bob.user_id])
    bob.wait_invite(room_id)
    bob.membership("leave", room_id)
    wait_membership(room_id, bob.user_id, "leave", alice)
    bob.wait("the invite is gone", lambda: room_id not in bob.invites)
    with pytest.raises(RequestFailed) as refusal:
        bob.join(room_id, via=here)
    assert refusal.value.status == 403


def test_invite_withdrawn(sides: Sides) -> None:
    here, there = sides
    alice, bob = Client(here, "alice"), Client(there, "bob")
    room_id = alice.create_room("12", preset="private_chat", invite=[bob.user_id])
    bob.wait_invite(room_id)
    alice.membership("kick", room_id, bob.user_id)
    bob.wait("the invite is gone", lambda: room_id not in bob.invites)
    with pytest.raises(RequestFailed) as refusal:
        bob.join(room_id, via=here)
    assert refusal.value.status == 403


def test_invite_by_the_other_side(sides: Sides) -> None:
    """A user who has joined from the other server invites users of both servers."""
    here, there = sides
    alice, carol, bob, dave = Client(here, "alice"), Client(here, "carol"), Client(there, "bob"), Client(there, "dave")
    room_id = alice.create_room("12", preset="private_chat", invite=[bob.user_id])
    bob.wait_invite(room_id)
    bob.join(room_id)
    for guest in (carol, dave):
        bob.membership("invite", room_id, guest.user_id)
        guest.wait_invite(room_id)
        guest.join(room_id)
        wait_membership(room_id, guest.user_id, "join", alice, bob)
    dave.send(room_id, "four of us")
    carol.wait_message(room_id, "four of us")


@pytest.mark.parametrize("version", ("12", "7"))
def test_knock(sides: Sides, version: str) -> None:
    here, there = sides
    alice, bob = Client(here, "alice"), Client(there, "bob")
    join_rules = {"type": "m.room.join_rules", "state_key": "", "content": {"join_rule": "knock"}}
    room_id = alice.create_room(version, preset="private_chat", initial_state=[join_rules])
    with pytest.raises(RequestFailed):
        bob.join(room_id, via=here)
    bob.knock(room_id, via=here)
    wait_membership(room_id, bob.user_id, "knock", alice)
    alice.membership("invite", room_id, bob.user_id)
    bob.wait_invite(room_id)
    bob.join(room_id, via=here)
    bob.send(room_id, "thank you")
    alice.wait_message(room_id, "thank you")
    bob.membership("leave", room_id)
    wait_membership(room_id, bob.user_id, "leave", alice)
    bob.knock(room_id, via=here)
    wait_membership(room_id, bob.user_id, "knock", alice)
    alice.membership("kick", room_id, bob.user_id)
    wait_membership(room_id, bob.user_id, "leave", alice)


@pytest.mark.parametrize("version", ("12", "10", "8"))
def test_restricted_room(sides: Sides, version: str) -> None:
    """Members of one room may join another; the server of a member who may invite vouches for it."""
    here, there = sides
    alice, bob, dave = Client(here, "alice"), Client(there, "bob"), Client(there, "dave")
    lobby = alice.create_room(version, preset="public_chat")
    allow = [{"type": "m.room_membership", "room_id": lobby}]
    rule = {"join_rule": "restricted", "allow": allow}
    join_rules = {"type": "m.room.join_rules", "state_key": "", "content": rule}
    inner = alice.create_room(version, preset="private_chat", initial_state=[join_rules])
    with pytest.raises(RequestFailed) as refusal:
        bob.join(inner, via=here)
    assert refusal.value.status == 403
    bob.join(lobby, via=here)
    wait_membership(lobby, bob.user_id, "join", alice)
    bob.join(inner, via=here)
    wait_membership(inner, bob.user_id, "join", alice)
    bob.send(inner, "let in")
    alice.wait_message(inner, "let in")
    # A second one from there: its own server is in both rooms now, and may not be able to vouch.
    dave.join(lobby, via=here)
    wait_membership(lobby, dave.user_id, "join", alice, bob)
    dave.join(inner, via=here)
    wait_membership(inner, dave.user_id, "join", alice, bob)
