"""What clients from before v1.7 of the spec, and scripts, still call."""

from __future__ import annotations

from urllib.parse import quote

from tests.support.homeservers import Server
from tests.support.keys import CrossSigning
from tests.support.people import create, get_event, messages, path_of, public_room, redact, say, texts

RULE = "pushrules/global/override/mine"


async def test_events_are_sent_without_a_transaction_id(server: Server) -> None:
    alice, bob = await server.register("alice"), await server.register("bob")
    room_id = await create(alice)
    path, body = path_of(room_id, "send", "m.room.message"), {"msgtype": "m.text", "body": "hello"}
    sent = [await alice.ok("POST", path, json=body) for _ in range(2)]
    assert sent[0]["event_id"] != sent[1]["event_id"], "nothing says that it is a repetition"
    assert texts((await messages(alice, room_id))["chunk"])[:2] == ["hello", "hello"]
    assert await bob.refused("POST", path, json=body) == (403, "M_FORBIDDEN")
    for nonsense in (None, [], "text"):
        assert (await alice.refused("POST", path, json=nonsense))[0] == 400
    event = await get_event(alice, room_id, sent[0]["event_id"])
    assert "transaction_id" not in event["unsigned"]


async def test_events_are_redacted_without_a_transaction_id(server: Server) -> None:
    alice, bob = await server.register("alice"), await server.register("bob")
    room_id = await public_room(alice, bob)
    (event_id,) = await say(alice, room_id, "hello")
    path = path_of(room_id, "redact", event_id)
    assert await bob.refused("POST", path, json={}) == (403, "M_FORBIDDEN")
    redaction = await alice.ok("POST", path, json={"reason": "wrong room"})
    event = await get_event(alice, room_id, event_id)
    assert event["content"] == {} and event["unsigned"]["redacted_by"] == redaction["event_id"]
    assert event["unsigned"]["redacted_because"]["content"]["reason"] == "wrong room"


async def test_redacted_events_name_the_redaction(server: Server) -> None:
    alice = await server.register("alice")
    room_id = await create(alice)
    (event_id,) = await say(alice, room_id, "hello")
    redaction = await redact(alice, room_id, event_id)
    assert (await get_event(alice, room_id, event_id))["unsigned"]["redacted_by"] == redaction


async def test_old_paths_of_push_rules(server: Server) -> None:
    alice = await server.register("alice")
    rules = await alice.ok("GET", "pushrules/")
    assert await alice.ok("GET", "pushrules") == rules
    assert await alice.ok("GET", "pushrules/global") == rules["global"]
    assert await alice.ok("GET", "pushrules/global/underride/") == rules["global"]["underride"]
    assert (await alice.refused("GET", "pushrules/global/nonsense/"))[0] == 400
    nothing = {kind: [] for kind in rules["global"]}
    assert await alice.ok("GET", "pushrules/device/phone/") == nothing, "there are no rules of devices any more"
    path = "pushrules/device/phone/content/cat"
    assert await alice.refused("GET", path) == (404, "M_NOT_FOUND")
    rule = {"pattern": "cat", "actions": ["notify"]}
    assert await alice.refused("PUT", path, json=rule) == (400, "M_INVALID_PARAM")


async def test_old_actions_are_left_out(server: Server) -> None:
    alice = await server.register("alice")
    await alice.ok("PUT", RULE, json={"actions": ["dont_notify", "coalesce", "notify"], "conditions": []})
    assert await alice.ok("GET", f"{RULE}/actions") == {"actions": ["notify"]}
    await alice.ok("PUT", f"{RULE}/actions", json={"actions": ["dont_notify"]})
    assert await alice.ok("GET", f"{RULE}/actions") == {"actions": []}


async def test_keys_of_this_server_are_found_by_id(server: Server) -> None:
    keys = await server.anonymous.ok("GET", "/_matrix/key/v2/server")
    (key_id,) = keys["verify_keys"]
    for wanted in (key_id, "ed25519:unknown", "nonsense"):
        found = await server.anonymous.ok("GET", f"/_matrix/key/v2/server/{quote(wanted, safe='')}")
        assert found["verify_keys"] == keys["verify_keys"] and found["signatures"]
        path = f"/_matrix/key/v2/query/{server.name}/{quote(wanted, safe='')}"
        (answered,) = (await server.anonymous.ok("GET", path))["server_keys"]
        assert answered["verify_keys"] == keys["verify_keys"]


async def test_features_that_clients_look_for_are_announced(server: Server) -> None:
    """Clients of before these were in the spec go on using, and asking for, the names that they had."""
    features = (await server.anonymous.ok("GET", "/_matrix/client/versions"))["unstable_features"]
    for name in (
        "org.matrix.e2e_cross_signing",  # without it Element neither sets up cross-signing nor verifies anybody
        "org.matrix.msc3827.stable",  # without it Element does not list public spaces
        "uk.half-shot.msc2666.query_mutual_rooms",
        "uk.tcpip.msc4133",
    ):
        assert features[name] is True


async def test_profile_fields_at_their_old_path(server: Server) -> None:
    alice, bob = await server.register("alice"), await server.register("bob")
    path = f"/_matrix/client/unstable/uk.tcpip.msc4133/profile/{quote(alice.user_id)}/us.cloke.msc4175.tz"
    time_zone = {"us.cloke.msc4175.tz": "Europe/Lisbon"}
    await alice.ok("PUT", path, json=time_zone)
    assert await bob.ok("GET", path) == time_zone
    assert (await bob.refused("PUT", path, json=time_zone))[0] == 403
    await alice.ok("DELETE", path)
    assert await bob.refused("GET", path) == (404, "M_NOT_FOUND")


async def test_mutual_rooms_at_their_old_path(server: Server) -> None:
    alice, bob = await server.register("alice"), await server.register("bob")
    room_id = await public_room(alice, bob)
    path = "/_matrix/client/unstable/uk.half-shot.msc2666/user/mutual_rooms"
    assert (await alice.ok("GET", path, params={"user_id": bob.user_id}))["joined"] == [room_id]


async def test_cross_signing_keys_at_their_old_path(server: Server) -> None:
    alice = await server.register("alice")
    path, body = "/_matrix/client/unstable/keys/device_signing/upload", CrossSigning(alice.user_id).body()
    await alice.ok("POST", path, json=body)
    assert await alice.ok("POST", path, json={}) == {}, "Element asks so what it takes to replace keys"
    answer = await alice.ok("POST", "keys/query", json={"device_keys": {alice.user_id: []}})
    assert answer["master_keys"] == {alice.user_id: body["master_key"]}
