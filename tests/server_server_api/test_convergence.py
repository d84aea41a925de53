"""Whatever happens between servers, once they can speak again they agree.

Random schedules: people write and change the room on all sides while the network falls apart and heals.
Spec: server-server-api/#room-state-resolution
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st
from trio.testing import MockClock

from homeserver.config import DatabaseSection
from homeserver.database import Transaction
from homeserver.federation.identifiers import RoomID
from homeserver.rooms import state_tree
from homeserver.rooms.heads import get_head
from homeserver.rooms.membership import is_server_joined
from homeserver.rooms.storage import Status, list_stored
from homeserver.rooms.timeline import END, list_backwards
from homeserver.testing import FakeNetwork
from tests.support.engine import memory_url
from tests.support.examples import share_of_examples
from tests.support.federation import create_room, join, running_homeserver, until
from tests.support.homeservers import Client, Server, config_for_tests

NO_ROOM = RoomID("")
NAMES = ("a.example", "b.example", "c.example")

people = st.integers(0, 5)
words = st.sampled_from(["tea", "cake", "milk"])
pairs = st.sampled_from([("a.example", "b.example"), ("b.example", "c.example"), ("a.example", "c.example")])

talk = st.one_of(
    st.tuples(st.just("text"), people, words),
    st.tuples(st.just("topic"), people, words),
    st.tuples(st.just("name"), people, words),
)
network = st.one_of(
    st.tuples(st.just("cut"), pairs),
    st.tuples(st.just("heal")),
    st.tuples(st.just("sleep"), st.sampled_from([0.1, 5.0, 600.0])),
)
quarrel = st.one_of(
    st.tuples(st.just("kick"), people, people),
    st.tuples(st.just("ban"), people, people),
    st.tuples(st.just("unban"), people, people),
    st.tuples(st.just("leave"), people),
    st.tuples(st.just("join"), people),
    st.tuples(st.just("level"), people, people, st.sampled_from([0, 50, 100])),
    st.tuples(st.just("rule"), people, st.sampled_from(["public", "invite"])),
)


@dataclass
class Story:
    """Two people on each of three servers, all in one room, all but the creator with level 50."""

    network: FakeNetwork
    servers: list[Server] = field(default_factory=list)
    people: list[Client] = field(default_factory=list)
    room_id: RoomID = NO_ROOM

    async def begin(self, stack: AsyncExitStack, folder: str, version: str) -> None:
        for name in NAMES:
            config = config_for_tests(name, Path(folder), database=DatabaseSection(url=memory_url()))
            server = await stack.enter_async_context(running_homeserver(config, self.network))
            self.servers.append(server)
            self.people += [await server.register(each) for each in ("first", "second")]
        first = self.people[0]
        users = {person.user_id: 50 for person in self.people[1:]}
        if version != "12":
            users[first.user_id] = 100
        self.room_id = await create_room(
            first, preset="public_chat", room_version=version, power_level_content_override={"users": users}
        )
        for person in self.people[1:]:
            await join(person, self.room_id, "a.example")
            # Nobody would send a server that joins at this moment what others are sending, until they go on.
            await until(self.agree)

    async def act(self, what: str, *details: Any) -> None:
        """One step; what is not allowed just does not happen."""
        if what == "cut":
            self.network.cut(*details[0])
        elif what == "heal":
            self.network.heal()
        elif what == "sleep":
            await trio.sleep(details[0])
        else:
            person = self.people[details[0]]
            with trio.move_on_after(3600):
                method, path, body = self._request(person, what, *details[1:])
                await person.request(method, path, json=body)

    def _request(self, person: Client, what: str, *details: Any) -> tuple[str, str, Any]:
        room = f"rooms/{quote(self.room_id)}"
        if what == "text":
            content = {"msgtype": "m.text", "body": details[0]}
            return "PUT", f"{room}/send/m.room.message/{trio.current_time()}", content
        if what in ("topic", "name"):
            return "PUT", f"{room}/state/m.room.{what}/", {what: details[0]}
        if what in ("kick", "ban", "unban"):
            return "POST", f"{room}/{what}", {"user_id": self.people[details[0]].user_id}
        if what == "leave":
            return "POST", f"{room}/leave", {}
        if what == "join":
            return "POST", f"join/{quote(self.room_id)}?via=a.example&via=b.example&via=c.example", {}
        if what == "rule":
            return "PUT", f"{room}/state/m.room.join_rules/", {"join_rule": details[0]}
        assert what == "level"
        users = {each.user_id: 50 for each in self.people[1:]}
        users[self.people[details[0]].user_id] = details[1]
        if self.room_id.count(":"):
            users[self.people[0].user_id] = 100
        else:
            users.pop(self.people[0].user_id, None)
        return "PUT", f"{room}/state/m.room.power_levels/", {"users": users}

    async def end(self) -> None:
        """The network is whole again, and somebody on each server who still may says so."""
        self.network.heal()
        await trio.sleep(2 * 3600)
        for first, second in zip(self.people[::2], self.people[1::2], strict=True):
            body = {"msgtype": "m.text", "body": "is everyone there?"}
            for person in (first, second):
                answer = await person.put(f"rooms/{quote(self.room_id)}/send/m.room.message/end", json=body)
                if answer.status_code == 200:
                    break
            await trio.sleep(60)

    async def residents(self) -> list[Server]:
        found = []
        for server in self.servers:
            if await server.read(_is_joined, self.room_id, server.name):
                found.append(server)
        return found

    async def agree(self) -> bool:
        states = [await server.read(_state, self.room_id) for server in await self.residents()]
        return all(state == states[0] for state in states)

    async def check_same_timelines(self) -> None:
        timelines = [await server.read(_timeline, self.room_id) for server in self.servers]
        assert timelines[0] == timelines[1] == timelines[2]


def _is_joined(tx: Transaction, room_id: str, server: str) -> bool:
    return is_server_joined(tx, room_id, server)


def _state(tx: Transaction, room_id: str) -> dict[tuple[str, str], str]:
    positions = state_tree.items(tx, get_head(tx, room_id).state_root).values()
    return {(event.type, event.state_key or ""): event.event_id for event in list_stored(tx, list(positions)).values()}


def _timeline(tx: Transaction, room_id: str) -> set[str]:
    return {
        event.event_id
        for event in list_backwards(tx, RoomID(room_id), END, 1000)
        if event.type in ("m.room.message", "m.room.topic", "m.room.name") and event.status == Status.TIMELINE
    }


def run(version: str, steps: Sequence[Any], *, with_timelines: bool) -> None:
    """Plays the steps. Raises AssertionError unless the servers agree afterwards."""

    async def play() -> None:
        with tempfile.TemporaryDirectory() as folder:
            async with AsyncExitStack() as stack:
                story = Story(FakeNetwork(latency_s=0.01))
                await story.begin(stack, folder, version)
                for step in steps:
                    await story.act(*step)
                await story.end()
                await until(story.agree, "the servers agree on the state", seconds=4 * 3600)
                if with_timelines:
                    await story.check_same_timelines()

    trio.run(play, clock=MockClock(autojump_threshold=0))


@pytest.mark.slow
@pytest.mark.parametrize("version", ["10", "12"])
@settings(max_examples=share_of_examples(0.2))
@given(steps=st.lists(st.one_of(talk, network), min_size=5, max_size=25), random=st.random_module())
def test_servers_agree_on_state_and_timelines_after_any_partition(version: str, steps: list[Any], random: Any) -> None:
    run(version, steps, with_timelines=True)


@pytest.mark.slow
@pytest.mark.parametrize("version", ["10", "12"])
@settings(max_examples=share_of_examples(0.25))
@given(steps=st.lists(st.one_of(talk, quarrel, quarrel, network), min_size=5, max_size=30), random=st.random_module())
def test_servers_agree_on_the_state_after_any_conflict(version: str, steps: list[Any], random: Any) -> None:
    run(version, steps, with_timelines=False)


def test_a_user_whose_server_comes_back_before_others_hear_that_they_left_has_left_everywhere() -> None:
    """The resident that lets the server in gives a state in which the user is still there."""
    run("10", [("leave", 0), ("leave", 1), ("join", 0), ("leave", 0)], with_timelines=False)


def test_both_sides_of_a_partition_agree_on_one_topic() -> None:
    steps = [
        ("cut", ("a.example", "b.example")),
        ("cut", ("b.example", "c.example")),
        ("topic", 0, "tea"),
        ("topic", 2, "cake"),
        ("text", 2, "cake"),
        ("topic", 4, "milk"),
        ("sleep", 600.0),
    ]
    run("12", steps, with_timelines=True)


def test_a_ban_wins_over_changes_by_the_banned_user_across_a_partition() -> None:
    steps = [
        ("cut", ("a.example", "b.example")),
        ("cut", ("b.example", "c.example")),
        ("ban", 0, 2),
        ("topic", 2, "cake"),
        ("level", 2, 3, 0),
        ("text", 2, "cake"),
        ("text", 3, "tea"),
    ]
    run("12", steps, with_timelines=False)


def test_servers_converge_on_messages_sent_before_a_kick_arrived() -> None:
    """Only their server takes it in. Once somebody there speaks again the others resolve it too."""
    steps = [("name", 4, "tea"), ("sleep", 0.1), ("kick", 0, 4), ("name", 4, "milk")]
    run("12", steps, with_timelines=False)


def test_closing_a_gap_brings_no_history_from_before_the_join() -> None:
    """Events from before a server's own join once arrived as news, and moved its head into the past."""
    steps = [
        ("rule", 3, "invite"),
        ("cut", ("b.example", "c.example")),
        ("sleep", 5.0),
        ("rule", 4, "invite"),
        ("level", 0, 4, 0),
    ]
    run("10", steps, with_timelines=False)
