"""A device that receives keys while its user has no other. Spec: MSC3814, as matrix-js-sdk calls it"""

from __future__ import annotations

from typing import Any

from tests.support.homeservers import Client, Server
from tests.support.keys import SIGNED, Device
from tests.support.people import public_room, sync

PATH = "/_matrix/client/unstable/org.matrix.msc3814.v1/dehydrated_device"
DATA = {"algorithm": "org.matrix.msc3814.v2", "device_pickle": "encrypted", "nonce": "n"}


def body_of(client: Client, device_id: str = "DRIED", **more: Any) -> dict[str, Any]:
    device = Device(client.user_id, device_id)
    keys = {
        "device_keys": device.keys(dehydrated=True),
        "one_time_keys": device.one_time_keys(2),
        "fallback_keys": device.fallback_key("F"),
    }
    return {"device_id": device_id, "device_data": DATA, "initial_device_display_name": "Dried", **keys, **more}


async def events(client: Client, device_id: str = "DRIED", **body: Any) -> dict[str, Any]:
    answer: dict[str, Any] = await client.ok("POST", f"{PATH}/{device_id}/events", json=body)
    return answer


async def post(client: Client, recipient: Client, number: int) -> None:
    messages = {recipient.user_id: {"*": {"number": number}}}
    await client.ok("PUT", f"sendToDevice/org.example/{number}", json={"messages": messages})


async def test_it_is_stored_shown_replaced_and_deleted(server: Server) -> None:
    alice, bob = await server.register("alice"), await server.register("bob")
    assert await alice.refused("GET", PATH) == (404, "M_NOT_FOUND")
    assert await alice.refused("DELETE", PATH) == (404, "M_NOT_FOUND")
    assert await alice.ok("PUT", PATH, json=body_of(alice)) == {"device_id": "DRIED"}
    assert await alice.ok("GET", PATH) == {"device_id": "DRIED", "device_data": DATA}
    assert await bob.refused("GET", PATH) == (404, "M_NOT_FOUND")
    await alice.ok("PUT", PATH, json=body_of(alice, "AGAIN"))
    assert (await alice.ok("GET", PATH))["device_id"] == "AGAIN"
    shown = {device["device_id"] for device in (await alice.ok("GET", "devices"))["devices"]}
    assert shown == {alice.device_id, "AGAIN"}, "the one before is gone"
    assert await alice.ok("DELETE", PATH) == {"device_id": "AGAIN"}
    assert await alice.refused("GET", PATH) == (404, "M_NOT_FOUND")


async def test_others_find_it_and_claim_its_keys(server: Server) -> None:
    alice, bob = await server.register("alice"), await server.register("bob")
    await public_room(alice, bob)
    since = (await sync(bob))["next_batch"]
    await alice.ok("PUT", PATH, json=body_of(alice))
    assert (await sync(bob, since))["device_lists"]["changed"] == [alice.user_id]
    keys = await bob.ok("POST", "keys/query", json={"device_keys": {alice.user_id: []}})
    assert keys["device_keys"][alice.user_id]["DRIED"]["dehydrated"] is True
    claim = {"one_time_keys": {alice.user_id: {"DRIED": SIGNED}}}
    claimed = [await bob.ok("POST", "keys/claim", json=claim) for _ in range(3)]
    found = [answer["one_time_keys"][alice.user_id]["DRIED"] for answer in claimed]
    assert found[0] != found[1] and "fallback" in str(found[2])


async def test_its_messages_are_read_in_pages_and_stay_until_it_is_deleted(server: Server) -> None:
    alice, bob = await server.register("alice"), await server.register("bob")
    await alice.ok("PUT", PATH, json=body_of(alice))
    for number in range(103):
        await post(bob, alice, number)
    for _ in range(2):  # a client that has failed begins again
        page = await events(alice)
        assert [event["content"]["number"] for event in page["events"]] == list(range(100))
        rest = await events(alice, next_batch=page["next_batch"])
        assert [event["content"]["number"] for event in rest["events"]] == [100, 101, 102]
        assert (await events(alice, next_batch=rest["next_batch"]))["events"] == []
    event = page["events"][0]
    assert (event["type"], event["sender"]) == ("org.example", bob.user_id)
    await alice.ok("PUT", PATH, json=body_of(alice))
    assert (await events(alice))["events"] == []


async def test_messages_of_other_devices_are_not_shown(server: Server) -> None:
    alice, bob = await server.register("alice"), await server.register("bob")
    await alice.ok("PUT", PATH, json=body_of(alice))
    for client, device_id in ((alice, alice.device_id), (alice, "UNKNOWN"), (bob, "DRIED"), (bob, bob.device_id)):
        assert await client.refused("POST", f"{PATH}/{device_id}/events", json={}) == (403, "M_FORBIDDEN")
    nonsense = {"next_batch": "nonsense"}
    assert await alice.refused("POST", f"{PATH}/DRIED/events", json=nonsense) == (400, "M_INVALID_PARAM")


async def test_it_cannot_replace_a_device_in_use(server: Server) -> None:
    alice = await server.register("alice")
    await alice.ok("PUT", PATH, json=body_of(alice))
    assert await alice.refused("PUT", PATH, json=body_of(alice, alice.device_id)) == (400, "M_INVALID_PARAM")
    assert (await alice.ok("GET", PATH))["device_id"] == "DRIED", "nothing has changed"
    assert (await alice.ok("GET", "account/whoami"))["device_id"] == alice.device_id


async def test_bad_bodies_leave_nothing_behind(server: Server) -> None:
    alice = await server.register("alice")
    good = body_of(alice)
    forged = Device(alice.user_id, "DRIED", "other").one_time_keys(1)
    for change in (
        {"device_id": ""},
        {"device_id": "OTHER"},
        {"device_data": {}},
        {"device_data": {"algorithm": 7}},
        {"device_data": {**DATA, "more": "x" * 65_536}},
        {"device_keys": {}},
        {"device_keys": None},
        {"one_time_keys": forged},
        {"fallback_keys": {"nonsense": 7}},
    ):
        assert (await alice.refused("PUT", PATH, json={**good, **change}))[0] in (400, 413), change
    for name in ("device_id", "device_data", "device_keys"):
        assert (await alice.refused("PUT", PATH, json={key: good[key] for key in good if key != name}))[0] == 400
    assert await alice.refused("GET", PATH) == (404, "M_NOT_FOUND")
    assert len((await alice.ok("GET", "devices"))["devices"]) == 1
    assert (await server.anonymous.refused("GET", PATH))[0] == 401


async def test_it_ends_with_the_user_and_like_other_devices(server: Server) -> None:
    alice = await server.register("alice")
    await alice.ok("PUT", PATH, json=body_of(alice))
    body = {"auth": alice.password_auth(), "devices": ["DRIED"]}
    await alice.ok("POST", "delete_devices", json=body)
    assert await alice.refused("GET", PATH) == (404, "M_NOT_FOUND")
