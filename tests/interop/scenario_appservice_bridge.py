"""A bridge on matrix-appservice-bridge, the library of the bridges to IRC and Slack, and people of two servers."""

from __future__ import annotations

import json
from typing import Any

from tests.interop.clients import Client, wait_until
from tests.interop.programs import run
from tests.interop.servers import Server, bridge_registration
from tests.interop.setup import APPSERVICE_BRIDGE, appservice_bridge_folder

Sides = tuple[Server, Server]


class People:
    """Alice of the bridge's server, and Bob of the other one. They do what the bridge's program asks for."""

    def __init__(self, here: Server, there: Server) -> None:
        self.here = here
        self.alice, self.bob = Client(here, "alice"), Client(there, "bob")

    def grant(self, wish: dict[str, Any]) -> dict[str, Any] | None:
        """Does something, or checks that people see something. Returns what the program needs to know of it."""
        if "do" in wish:
            answer: dict[str, Any] | None = getattr(self, f"do_{wish['do']}")(wish)
            return answer
        getattr(self, f"see_{wish['see']}")(wish)
        return None

    def of(self, who: str) -> Client:
        return self.alice if who == "alice" else self.bob

    # -- what they do --

    def do_join(self, wish: dict[str, Any]) -> dict[str, Any]:
        room_id = self.alice.join(wish["alias"])
        assert self.bob.join(wish["alias"], via=self.here) == room_id
        return {"room_id": room_id, "alice": self.alice.user_id, "bob": self.bob.user_id}

    def do_say(self, wish: dict[str, Any]) -> None:
        self.of(wish["who"]).send(wish["room"], wish["text"])

    def do_notice(self, wish: dict[str, Any]) -> None:
        alice, room = self.alice, wish["room"]
        alice.v3("PUT", f"/rooms/{room}/typing/{alice.user_id}", {"typing": True, "timeout": 30_000})
        alice.v3("POST", f"/rooms/{room}/receipt/m.read/{wish['event']}", {})
        alice.v3("PUT", f"/presence/{alice.user_id}/status", {"presence": "online", "status_msg": "at the fax"})

    def do_invite(self, wish: dict[str, Any]) -> dict[str, Any]:
        inviter = self.of(wish["who"])
        room_id = inviter.create_room("12", preset="private_chat")
        inviter.membership("invite", room_id, wish["user"])
        return {"room_id": room_id}

    # -- what they see --

    def see_message(self, wish: dict[str, Any]) -> None:
        for person in (self.alice, self.bob):
            event = person.wait_message(wish["room"], wish["text"])
            assert event["event_id"] == wish["event"]

    def see_text(self, wish: dict[str, Any]) -> None:
        self.of(wish["who"]).wait_message(wish["room"], wish["text"])

    def see_typing(self, wish: dict[str, Any]) -> None:
        typing = (wish["room"], "m.typing")
        for person in (self.alice, self.bob):
            person.wait("who types", lambda p=person: wish["user"] in p.ephemeral.get(typing, {}).get("user_ids", ()))

    def see_receipt(self, wish: dict[str, Any]) -> None:
        for person in (self.alice, self.bob):
            person.wait("who has read", lambda person=person: self._has_read(person, wish))

    def see_left(self, wish: dict[str, Any]) -> None:
        path = f"/rooms/{wish['room']}/joined_members"
        for person in (self.alice, self.bob):
            wait_until("they are gone", lambda person=person: wish["user"] not in person.v3("GET", path)["joined"])

    def see_directory(self, wish: dict[str, Any]) -> None:
        protocol = self.alice.v3("GET", "/thirdparty/protocols")["fax"]
        (instance,) = protocol["instances"]
        body = {"third_party_instance_id": instance["instance_id"]}
        for rooms in (
            self.alice.v3("POST", "/publicRooms", body),
            self.bob.v3("POST", "/publicRooms", body, server=self.here.server_name),
        ):
            assert [room["room_id"] for room in rooms["chunk"]] == [wish["room"]]

    def see_location(self, wish: dict[str, Any]) -> None:
        (found,) = self.alice.v3("GET", "/thirdparty/location/fax", number=wish["number"])
        assert found["alias"] == wish["alias"]

    def _has_read(self, person: Client, wish: dict[str, Any]) -> bool:
        receipts = person.ephemeral.get((wish["room"], "m.receipt"), {}).get(wish["event"], {})
        return wish["user"] in receipts.get("m.read", {})


def test_a_bridge_on_matrix_appservice_bridge(organisations: Sides) -> None:
    here, there = organisations
    people = People(here, there)
    plan = {
        "registration": {
            **bridge_registration(here.ports),
            "de.sorunome.msc2409.push_ephemeral": True,  # as the library calls receive_ephemeral
        },
        "port": here.ports.bridge,
        "url": here.url,
        "server_name": here.server_name,
    }
    command = ["node", str(APPSERVICE_BRIDGE / "bridge.mjs"), str(appservice_bridge_folder()), json.dumps(plan)]
    run(command, people.grant)
