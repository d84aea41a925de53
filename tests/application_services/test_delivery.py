"""Bridges that lag, fail or refuse, and what they are sent then. Spec: application-service-api/#pushing-events"""

from __future__ import annotations

from pathlib import Path

import pytest
import trio

from homeserver.database import Transaction
from homeserver.database.parked import ParkedItem, list_parked, set_parked_due
from homeserver.feature import Ephemeral, Feature
from homeserver.features import FEATURES
from homeserver.features.application_services.storage import find_progress
from homeserver.federation.build import Draft
from homeserver.federation.identifiers import UserID
from homeserver.rooms.append import append_local
from tests.support.application_services import Bridge, register, registration
from tests.support.federation import Federation
from tests.support.homeservers import Client, Server
from tests.support.people import act, create, path_of, public_room, redact, say, set_state

GHOST = "@irc_ghost:a.example"


@pytest.fixture
def server(federated: Server) -> Server:
    return federated


async def away(federation: Federation) -> None:
    """The bridge has everything up to now, and is away from now on."""
    await trio.sleep(1)
    federation.network.leave("bridge.example")


async def back(federation: Federation, bridge: Bridge) -> None:
    federation.network.join("bridge.example", bridge)
    await trio.sleep(120)


async def test_a_bridge_that_lags_is_told_nothing_from_before_its_users_came(
    federation: Federation, bridge: Bridge, alice: Client, bot: Client
) -> None:
    room_id = await create(alice, preset="private_chat")
    elsewhere = await public_room(alice)
    await bot.ok("POST", f"join/{elsewhere}?user_id={GHOST}", json={})
    await away(federation)
    await say(alice, elsewhere, "the bridge is away")
    await trio.sleep(1)
    await say(alice, room_id, "a secret")
    await act(alice, room_id, "invite", GHOST)
    await bot.ok("POST", f"join/{room_id}?user_id={GHOST}", json={})
    await say(alice, room_id, "for all")
    await back(federation, bridge)
    assert bridge.said == ["the bridge is away", "for all"]


async def test_a_bridge_that_lags_is_told_what_was_said_before_its_users_left(
    federation: Federation, bridge: Bridge, alice: Client, bot: Client
) -> None:
    room_id = await public_room(alice)
    await bot.ok("POST", f"join/{room_id}?user_id={GHOST}", json={})
    await away(federation)
    await say(alice, room_id, "goodbye")
    await bot.ok("POST", path_of(room_id, "leave") + f"?user_id={GHOST}", json={})
    await say(alice, room_id, "now it is gone")
    await bot.ok("POST", f"join/{room_id}?user_id={GHOST}", json={})
    await say(alice, room_id, "here again")
    await bot.ok("POST", path_of(room_id, "leave") + f"?user_id={GHOST}", json={})
    await back(federation, bridge)
    assert bridge.said == ["goodbye", "here again"]


async def test_redactions_without_effect_are_not_told(
    bridge: Bridge, server: Server, alice: Client, bot: Client
) -> None:
    """Nobody knows yet whether this one is allowed: its event is unknown. A bridge would delete that at once."""
    room_id = await public_room(alice)
    await bot.ok("POST", f"join/{room_id}?user_id={GHOST}", json={})
    (deleted,) = await say(alice, room_id, "deleted")
    unknown = "$" + "a" * 43
    await server.write(append_local, Draft(room_id, UserID(alice.user_id), "m.room.redaction", {"redacts": unknown}))
    await redact(alice, room_id, deleted)
    await trio.sleep(1)
    redactions = [event for event in bridge.events if event["type"] == "m.room.redaction"]
    assert [event["redacts"] for event in redactions] == [deleted]


async def test_member_events_say_what_they_replace(bridge: Bridge, server: Server, alice: Client, bot: Client) -> None:
    """Bridges tell a new name from a join by that."""
    room_id = await public_room(alice)
    await bot.ok("POST", f"join/{room_id}?user_id={GHOST}", json={})
    await set_state(alice, room_id, "m.room.member", {"membership": "join", "displayname": "Ally"}, alice.user_id)
    await trio.sleep(1)
    event = bridge.events[-1]
    assert event["unsigned"]["prev_content"] == {"membership": "join", "displayname": "alice"}


async def test_a_message_that_was_redacted_while_the_bridge_was_away_says_so(
    federation: Federation, bridge: Bridge, alice: Client, bot: Client
) -> None:
    room_id = await public_room(alice)
    await bot.ok("POST", f"join/{room_id}?user_id={GHOST}", json={})
    await away(federation)
    await say(alice, room_id, "under way")
    await trio.sleep(1)
    (event_id,) = await say(alice, room_id, "a slip")
    redaction = await redact(alice, room_id, event_id)
    await back(federation, bridge)
    (event,) = [event for event in bridge.events if event["event_id"] == event_id]
    assert event["content"] == {}
    assert event["unsigned"]["redacted_because"]["event_id"] == redaction


class Fault:
    """A feature whose ephemeral data cannot be read while it `is_on`."""

    is_on = False

    def source(self, tx: Transaction, since: int, upto: int) -> list[Ephemeral]:
        if self.is_on:
            raise RuntimeError("a fault of this server")
        return []

    @property
    def feature(self) -> Feature:
        return Feature(name="fault", spec="none", ephemeral=self.source)


async def test_an_unexpected_failure_of_one_delivery_does_not_touch_the_others(
    federation: Federation, tmp_path: Path
) -> None:
    """It is parked like an event that cannot be read. Meanwhile the transaction of the other bridge goes on."""
    fault, slow, faulty = Fault(), Bridge(), Bridge()
    federation.network.join("slow.example", slow)
    federation.network.join("faulty.example", faulty)
    services = register(
        tmp_path,
        registration(id="slow", url="http://slow.example", as_token="1", sender_localpart="one"),
        registration(
            id="faulty", url="http://faulty.example", as_token="2", sender_localpart="two", receive_ephemeral=True
        ),
    )
    server = await federation.start("c.example", application_services=services, features=(*FEATURES, fault.feature))
    carol = await server.register("carol")
    room_id = await public_room(carol)
    for token in ("1", "2"):
        await server.with_token(token).ok("POST", f"join/{room_id}", json={})
    await trio.sleep(1)
    asked = len(slow.requests)
    slow.pause_s = 30
    fault.is_on = True
    await carol.ok("PUT", path_of(room_id, "typing", carol.user_id), json={"typing": True, "timeout": 30_000})
    await say(carol, room_id, "hello")
    await trio.sleep(10)
    fault.is_on = False
    await say(carol, room_id, "again")
    await trio.sleep(120)
    assert slow.said == ["hello", "again"]
    assert len(slow.requests) == asked + 2, "no transaction was sent twice"
    assert faulty.said == ["hello", "again"]
    parked = await server.read(list_parked)
    assert {each.lane for each in parked} == {"bridge faulty"}
    assert "a fault of this server" in parked[0].reason


async def test_a_pause_survives_a_restart(
    federation: Federation, bridge: Bridge, server: Server, alice: Client, bot: Client, tmp_path: Path
) -> None:
    room_id = await public_room(alice)
    await bot.ok("POST", f"join/{room_id}?user_id={GHOST}", json={})
    await trio.sleep(1)
    bridge.statuses = [500] * 100
    await say(alice, room_id, "hello")
    await trio.sleep(300)
    progress = await server.read(find_progress, "irc")
    assert progress is not None
    assert progress.failures > 5
    assert progress.reason == "HTTP 500, M_UNKNOWN"
    await federation.kill("a.example")
    asked = len(bridge.requests)
    services = register(tmp_path, registration(receive_ephemeral=True))
    restarted = await federation.start("a.example", application_services=services)
    await trio.sleep(70)
    assert len(bridge.requests) - asked <= 2, "it is not pestered after a restart"
    bridge.statuses = []
    await trio.sleep(70)
    assert bridge.said == ["hello"]
    healed = await restarted.read(find_progress, "irc")
    assert healed is not None
    assert (healed.failures, healed.since_ms, healed.reason) == (0, 0, "")


async def test_a_bridge_that_is_back_and_pings_waits_no_longer(
    federation: Federation, bridge: Bridge, server: Server, alice: Client, bot: Client
) -> None:
    room_id = await public_room(alice)
    await bot.ok("POST", f"join/{room_id}?user_id={GHOST}", json={})
    await away(federation)
    await say(alice, room_id, "hello")
    await trio.sleep(3600)
    federation.network.join("bridge.example", bridge)
    assert bridge.said == []
    await bot.ok("POST", "/_matrix/client/v1/appservice/irc/ping", json={})
    await trio.sleep(0.1)
    assert bridge.said == ["hello"]
    position = server.hs.stream.position
    await bot.ok("POST", "/_matrix/client/v1/appservice/irc/ping", json={})
    assert server.hs.stream.position == position  # nothing is written if nothing waits


async def test_refused_events_are_parked_and_sent_again_on_demand(
    bridge: Bridge, server: Server, alice: Client, bot: Client
) -> None:
    room_id = await public_room(alice)
    await bot.ok("POST", f"join/{room_id}?user_id={GHOST}", json={})
    await trio.sleep(1)
    bridge.refuses = "poison"
    (poison,) = await say(alice, room_id, "poison")
    await say(alice, room_id, "after")
    await trio.sleep(10)
    assert bridge.said == ["after"]

    async def parked() -> ParkedItem:
        (item,) = await server.read(list_parked)
        return item

    item = await parked()
    assert (item.lane, item.reason, item.is_due) == ("bridge irc", f"the bridge refuses {poison}", False)
    await server.write(set_parked_due, "bridge irc")
    await trio.sleep(10)
    assert (await parked()).reason == f"the bridge refuses {poison} again"
    bridge.refuses = None
    await server.write(set_parked_due, "bridge irc")
    await trio.sleep(10)
    assert bridge.said == ["after", "poison"]
    assert await server.read(list_parked) == []


async def test_one_bad_event_among_many_is_found_with_few_requests(
    federation: Federation, bridge: Bridge, alice: Client, bot: Client
) -> None:
    room_id = await public_room(alice)
    await bot.ok("POST", f"join/{room_id}?user_id={GHOST}", json={})
    await away(federation)
    texts = [f"{number}" for number in range(80)]
    await say(alice, room_id, *texts[:50], "poison", *texts[50:])
    asked = len(bridge.requests)
    bridge.refuses = "poison"
    await back(federation, bridge)
    assert bridge.said == texts
    assert len(bridge.requests) - asked < 30


async def test_transactions_after_a_restart_have_ids_that_no_lost_history_can_have_used(
    federation: Federation, bridge: Bridge, alice: Client, bot: Client, tmp_path: Path
) -> None:
    """A database that was restored from a backup counts the same numbers again. Bridges ignore what they know."""
    room_id = await public_room(alice)
    await bot.ok("POST", f"join/{room_id}?user_id={GHOST}", json={})
    await say(alice, room_id, "before")
    await trio.sleep(1)
    number, _, generation = bridge.transactions[-1][0].partition("_")
    await federation.kill("a.example")
    services = register(tmp_path, registration(receive_ephemeral=True))
    restarted = await federation.start("a.example", application_services=services)
    await say(await restarted.log_in("alice"), room_id, "after")
    await trio.sleep(1)
    later, _, other = bridge.transactions[-1][0].partition("_")
    assert int(later) > int(number)
    assert other != generation


@pytest.mark.parametrize("answer", [b"[" * 100_000, b"x" * 2_000_000, b"", b"null", b'{"errcode": 7}'])
async def test_only_the_status_of_an_answer_counts(bridge: Bridge, alice: Client, bot: Client, answer: bytes) -> None:
    room_id = await public_room(alice)
    await bot.ok("POST", f"join/{room_id}?user_id={GHOST}", json={})
    await trio.sleep(1)
    bridge.answer = answer
    await say(alice, room_id, "hello")
    await trio.sleep(1)
    bridge.answer = None
    await say(alice, room_id, "later")
    await trio.sleep(200)
    assert bridge.said[-1] == "later"
