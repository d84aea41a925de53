"""Push notifications through a gateway that checks each request: what it is told, and that nothing gets lost."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator

import pytest

from tests.interop.clients import Client, wait_until
from tests.interop.gateway import APP_ID, Gateway, Json
from tests.interop.servers import Server, World

EVENT_ID = re.compile(r"\$[\w-]{43}", re.ASCII)
CATCH_UP_TIMEOUT_S = 60.0  # a gateway that has failed is left alone for a while


@pytest.fixture
def gateway() -> Iterator[Gateway]:
    """A gateway. Afterwards, no request to it may have been wrong."""
    with Gateway() as gateway:
        yield gateway
    assert gateway.faults == []


def set_pusher(client: Client, pusher: Json) -> None:
    client.v3("POST", "/pushers/set", pusher)


def keys(client: Client) -> list[str]:
    return [pusher["pushkey"] for pusher in client.v3("GET", "/pushers")["pushers"]]


def read(client: Client, room_id: str, event_id: str) -> None:
    client.v3("POST", f"/rooms/{room_id}/receipt/m.read/{event_id}", {})


def badge(gateway: Gateway, pushkey: str) -> int | None:
    """The number of unread events that the device was told last."""
    told = gateway.of(pushkey)
    return told[-1]["counts"].get("unread", 0) if told else None


def meet(world: World) -> tuple[Client, Client, str]:
    """Alice of Synapse and Bob of ours, in a room of her server."""
    alice, bob = Client(world.synapse, "alice"), Client(world.ours, "bob")
    room_id = alice.create_room("12", preset="public_chat", name="Kitchen")
    bob.join(room_id, via=world.synapse)
    alice.wait("joined", lambda: alice.membership_of(room_id, bob.user_id) == "join")
    return alice, bob, room_id


def test_pushes_survive_restarts_in_the_middle_of_a_queue(world: World, gateway: Gateway) -> None:
    """The gateway fails after a few; the server is stopped, and then killed, with the rest in the queue."""
    alice, bob, room_id = meet(world)
    set_pusher(bob, gateway.pusher("phone"))
    set_pusher(bob, gateway.pusher("tablet", format="event_id_only"))
    said = [alice.send(room_id, "first")]
    for pushkey in ("phone", "tablet"):
        wait_until("a push", gateway.has(pushkey, said))
    gateway.capacity = 3
    said += [alice.send(room_id, f"message {number}") for number in range(6)]
    bob.wait_message(room_id, "message 5")
    wait_until("the gateway fails", lambda: gateway.failures > 0)
    world.ours.stop()
    world.ours.start()
    said.append(alice.send(room_id, "after the stop"))
    bob.wait_message(room_id, "after the stop")
    world.ours.kill()
    world.ours.start()
    gateway.capacity = None
    for pushkey in ("phone", "tablet"):
        wait_until(f"all pushes of {pushkey}", gateway.has(pushkey, said), CATCH_UP_TIMEOUT_S)
    assert badge(gateway, "phone") == badge(gateway, "tablet") == len(said)
    texts = [told["content"]["body"] for told in gateway.of("phone")]
    assert list(dict.fromkeys(texts)) == ["first", *(f"message {number}" for number in range(6)), "after the stop"]
    for told in gateway.of("tablet"):
        assert told.keys() == {"event_id", "room_id", "counts", "devices"}


def test_badges_follow_what_is_read(world: World, gateway: Gateway) -> None:
    """Reading on one device tells all devices, and so does reading in part."""
    alice, bob, room_id = meet(world)
    for pushkey in ("phone", "tablet"):
        set_pusher(bob, gateway.pusher(pushkey))
    said = [alice.send(room_id, f"message {number}") for number in range(4)]
    wait_until("all pushes", lambda: all(gateway.has(key, said)() for key in ("phone", "tablet")))
    assert [badge(gateway, key) for key in ("phone", "tablet")] == [4, 4]
    for event_id, left in ((said[1], 2), (said[3], 0)):
        read(bob, room_id, event_id)
        for pushkey in ("phone", "tablet"):
            wait_until(f"{pushkey} shows {left}", lambda: badge(gateway, pushkey) == left)  # noqa: B023 (called at once)
    assert gateway.has("phone", said)()


def test_a_rejected_key_ends_its_pusher_and_no_other(world: World, gateway: Gateway) -> None:
    alice, bob, room_id = meet(world)
    for pushkey in ("phone", "tablet"):
        set_pusher(bob, gateway.pusher(pushkey))
    gateway.rejected = {"tablet"}
    said = [alice.send(room_id, "is the tablet still there?")]
    wait_until("the pusher is gone", lambda: keys(bob) == ["phone"])
    said.append(alice.send(room_id, "no"))
    wait_until("both pushes", gateway.has("phone", said))
    assert gateway.has("tablet", said[:1])()
    bob.v3("POST", "/pushers/set", {"app_id": APP_ID, "pushkey": "phone", "kind": None})
    alice.send(room_id, "nor is the phone")
    bob.wait_message(room_id, "nor is the phone")
    assert keys(bob) == []
    assert gateway.has("phone", said)()


def test_gateways_are_told_what_synapse_tells_them(world: World, gateway: Gateway) -> None:
    """The same things are said to a user of each server, and pushed alike."""
    with Gateway() as other:  # Synapse adds fields that the specification does not have
        assert list_pushed(world.ours, gateway) == list_pushed(world.synapse, other)


def list_pushed(server: Server, gateway: Gateway) -> list[Json]:
    """Returns what the gateway is told when much is said to a user of a server."""
    alice, bob, carol = people = [Client(server, name) for name in ("alice", "bob", "carol")]
    set_pusher(bob, gateway.pusher("phone"))
    last = say_everything(alice, bob, carol)
    wait_until("the last of all pushes", lambda: last in gateway.events("phone"))
    names = {each.user_id: each.localpart.rstrip("0123456789") for each in people}
    names |= {each.localpart: each.localpart.rstrip("0123456789").title() for each in people}
    return [normalised(told, names) for told in gateway.of("phone")]


def say_everything(alice: Client, bob: Client, carol: Client) -> str:
    """Returns the last event."""
    pair = alice.create_room("12", preset="private_chat", name="A pair", invite=[bob.user_id], is_direct=True)
    bob.join(pair)
    alice.send(pair, "in a room of two")
    alice.send_event(pair, "m.room.encrypted", {"algorithm": "m.megolm.v1.aes-sha2", "ciphertext": "x"})
    alice.send_event(pair, "m.call.invite", {"call_id": "1", "version": "1", "lifetime": 1000})
    group = alice.create_room("12", preset="public_chat", name="A group")
    for guest in (bob, carol):
        guest.join(group)
    alice.send(group, "in a room of three")
    alice.send_event(group, "m.room.message", {"msgtype": "m.notice", "body": "a notice is no news"})
    mention = {"msgtype": "m.text", "body": "you", "m.mentions": {"user_ids": [bob.user_id]}}
    first = carol.send_event(group, "m.room.message", mention)
    edit = {**mention, "m.new_content": mention, "m.relates_to": {"rel_type": "m.replace", "event_id": first}}
    carol.send_event(group, "m.room.message", edit)
    relates = {"rel_type": "m.annotation", "event_id": first, "key": "🌹"}
    alice.send_event(group, "m.reaction", {"m.relates_to": relates})
    alice.send_event(group, "m.room.message", {"msgtype": "m.text", "body": "all", "m.mentions": {"room": True}})
    carol.set_state(group, "m.room.member", {"membership": "join", "displayname": "Carol"}, carol.user_id)
    alice.set_state(group, "m.room.tombstone", {"body": "over", "replacement_room": "!gone"})
    return alice.send(group, "the last")


def normalised(told: Json, names: dict[str, str]) -> Json:
    """Returns a notification without what differs from run to run, and without what only Synapse tells.

    Synapse counts rooms in badges, repeats what is in the content and in `event_id`, and tells tweaks that are off.
    """
    (device,) = told["devices"]
    assert device["pushkey_ts"] > 0
    left: Json = {name: told[name] for name in told.keys() - {"counts", "event_id", "room_id", "id", "membership"}}
    tweaks = {name: value for name, value in device["tweaks"].items() if value is not False}
    left["devices"] = [{"app_id": device["app_id"], "data": device["data"], "tweaks": tweaks}]
    text = EVENT_ID.sub("$event", json.dumps(left))
    for name, other in names.items():
        text = text.replace(name, other)
    result: Json = json.loads(text)
    return result
