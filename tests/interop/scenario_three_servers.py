"""Three organisations in one room: events that reach a server through another one are checked as well."""

from __future__ import annotations

from tests.interop.clients import Client, wait_until
from tests.interop.scenario_conversation import assert_same_state
from tests.interop.servers import Server, World


def talk(room_id: str, *clients: Client) -> None:
    """Everybody says something, and everybody hears it."""
    for client in clients:
        client.send(room_id, f"{client.localpart} says hello")
    for client in clients:
        for other in clients:
            client.wait_message(room_id, f"{other.localpart} says hello")


def test_join_by_way_of_another(world: World, third: Server) -> None:
    """The room is ours; the third joins through Synapse, which is only a guest in it."""
    alice, bob, carol = Client(world.ours, "alice"), Client(world.synapse, "bob"), Client(third, "carol")
    room_id = alice.create_room("12", preset="public_chat")
    bob.join(room_id, via=world.ours)
    assert_same_state(room_id, alice, bob)
    carol.join(room_id, via=world.synapse)
    wait_until("three members", lambda: len(alice.joined_members(room_id)) == 3)
    assert_same_state(room_id, alice, carol)
    talk(room_id, alice, bob, carol)


def test_we_join_by_way_of_another(world: World, third: Server) -> None:
    """The room is the third's; we join through Synapse, and read what was said before."""
    alice, bob, carol = Client(world.ours, "alice"), Client(world.synapse, "bob"), Client(third, "carol")
    room_id = carol.create_room("10", preset="public_chat")
    bob.join(room_id, via=third)
    assert_same_state(room_id, carol, bob)
    said = [carol.send(room_id, f"early {number}") for number in range(15)]
    bob.wait_message(room_id, "early 14")
    alice.join(room_id, via=world.synapse)
    wait_until("history", lambda: set(said) <= {event["event_id"] for event in alice.history(room_id)})
    assert_same_state(room_id, carol, alice)
    talk(room_id, alice, bob, carol)


def test_one_away(world: World, third: Server) -> None:
    """Two go on while the third is cut off; then it hears all, also what the other guest said."""
    alice, bob, carol = Client(world.ours, "alice"), Client(world.synapse, "bob"), Client(third, "carol")
    room_id = alice.create_room("12", preset="public_chat")
    bob.join(room_id, via=world.ours)
    carol.join(room_id, via=world.ours)
    wait_until("three members", lambda: len(alice.joined_members(room_id)) == 3)
    assert_same_state(room_id, alice, bob)
    assert_same_state(room_id, alice, carol)
    third.relay.cut()
    said = {alice.send(room_id, "without carol"), bob.send(room_id, "without carol too")}
    carol.send(room_id, "I still get out")
    alice.wait_message(room_id, "I still get out")
    alice.wait_message(room_id, "without carol too")
    third.relay.mend()
    said.add(alice.send(room_id, "with carol again"))
    said.add(bob.send(room_id, "with carol again too"))
    wait_until("all of it", lambda: said <= {event["event_id"] for event in carol.history(room_id)}, 90)
    assert_same_state(room_id, alice, carol)
