"""Not in the spec: docs/friends.md. People learn nothing of who blocks them.

Alice knows two people of whom neither ever answers her: Bob, who blocks her, and Ben, who does not. Both have the same
apps open, and do the same. Whatever Alice tries, by every operation, over HTTP, over a WebSocket, or as her whole
server asking and watching theirs: what she gets does not change if the two are exchanged.
"""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Awaitable, Callable, Iterator, Mapping, MutableMapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote, unquote

import pytest
import trio

from homeserver.api.routes import Operation
from homeserver.federation.identifiers import RoomID, ServerName
from homeserver.remote.requests import send_signed
from tests.friends.people import OURS, ask, block
from tests.hostile.values import sample
from tests.hostile.world import CLIENT_OPERATIONS, FEDERATION_OPERATIONS, World, identify
from tests.support.federation import Federation, join, send_text, sync, until
from tests.support.homeservers import Client, Server
from tests.support.keys import Device
from tests.support.sockets import open_socket

ENDS_THE_SESSION = frozenset({
    "logout", "logout_all", "deactivate_account", "change_password", "delete_device", "delete_devices",
})  # fmt: skip
CHANGES_THE_ROOM = ("redact_event", "set_room_state", "set_room_state_with_key", "kick", "ban", "unban", "invite_user",
                    "upgrade_room", "leave_room", "forget_room", "delete_friend")  # fmt: skip
"""These come last, in this order: after some of them there is not much left to see."""
OWN = ("/room_keys/", "/pushrules/", "/dehydrated_device", "/devices/")
"""Alice's own things, which she makes and deletes: asking about them twice gives two answers."""
ABOUT_NOBODY = frozenset({"register", "login", "get_url_preview", "get_url_preview_authed"})

NOISE = (
    (re.compile(r"\$[\w-]{43}|\$[\w-]+:[\w.]+"), "$event"),
    (re.compile(r"![\w-]{10,}(:[\w.]+)?"), "!room"),
    (re.compile(r"mxc://[\w./-]+"), "mxc"),
    (re.compile(r"\b[a-z]?\d+_[\w-]+"), "random"),
    (re.compile(r"\bt\d+\b"), "random"),
    (re.compile(r"[A-Za-z0-9+/_-]{16,}=*"), "random"),
    (re.compile(r"\d{4,}"), "1"),
    (re.compile(r'"(stream_id|bump_stamp)": \d+'), r'"\1": 0'),
)


@dataclass
class Scene:
    """Alice, whom Bob blocks and Ben does not, and the rooms that she has with each of them."""

    home: Server
    alice: Client
    theirs: Server
    people: tuple[Client, Client]
    worlds: list[World] = field(default_factory=list)
    names: dict[str, tuple[str, str]] = field(default_factory=dict)
    tokens: dict[str, str] = field(default_factory=dict)

    def views(self, answer: object) -> list[str]:
        """Returns an answer as seen with an eye on Bob, and with an eye on Ben, without what differs by chance."""
        return [self._view(answer, of) for of in (0, 1)]

    def _view(self, answer: object, of: int) -> str:
        text = json.dumps(answer, sort_keys=True)
        for name, (mine, other) in self.names.items():
            text = text.replace(mine, f"{name}-{'seen' if of == 0 else 'other'}")
            text = text.replace(other, f"{name}-{'other' if of == 0 else 'seen'}")
        for pattern, word in NOISE:
            text = pattern.sub(word, text)
        return json.dumps(_in_order(json.loads(text, object_pairs_hook=_members)))

    async def wait(self) -> None:
        """Lets the apps of both do what apps do: they fetch what is new, which acknowledges it, and answer nothing."""
        await trio.sleep(2)
        for person in self.people:
            answer = await sync(person, self.tokens.get(person.user_id))
            self.tokens[person.user_id] = answer["next_batch"]
            await person.ok("POST", f"{OURS}/heartbeat", json={})
        await trio.sleep(2)


def _members(pairs: list[tuple[str, Any]]) -> list[dict[str, Any]]:
    """An object as a list of its members, because two keys that differ by chance are one key in a view."""
    return [{key: value} for key, value in pairs]


def _in_order(value: Any) -> Any:
    """A JSON value whose lists are sorted, as their order may depend on random IDs."""
    if isinstance(value, dict):
        return {key: _in_order(each) for key, each in value.items()}
    if isinstance(value, list):
        return sorted((_in_order(each) for each in value), key=json.dumps)
    return value


async def _set_up(home: Server, theirs: Server) -> Scene:
    alice = await home.register("alice")
    people = (await theirs.register("bob"), await theirs.register("ben"))
    scene = Scene(home, alice, theirs, people)
    for person in people:
        await person.ok("PUT", f"profile/{person.user_id}/displayname", json={"displayname": "Somebody"})
        device = Device(person.user_id, person.device_id)
        keys = {"device_keys": device.keys(), "one_time_keys": device.one_time_keys(200)}
        await person.ok("POST", "keys/upload", json=keys)
    upload = await alice.post("/_matrix/media/v3/upload", content=b"a file", headers={"content-type": "text/plain"})
    for person in people:
        name = person.user_id[1:4]
        room_id = RoomID((await ask(alice, person, encrypted=False))["room_id"])

        async def has_asked(person: Client = person) -> bool:
            friends = (await person.ok("GET", f"{OURS}/friends"))["friends"]
            return [each["state"] for each in friends] == ["incoming"]

        await until(has_asked)
        await ask(person, alice)
        group = RoomID(
            (await alice.ok("POST", "createRoom", json={"preset": "public_chat", "name": "Group"}))["room_id"]
        )
        await join(person, group, home.name)
        for each in (room_id, group):
            await send_text(person, each, "Hello.")
        alias = f"#{name}:{home.name}"
        await alice.ok("PUT", f"directory/room/{quote(alias)}", json={"room_id": group})
        event_id = await send_text(alice, room_id, "How are you?")
        stored = await alice.ok("POST", f"user/{quote(alice.user_id)}/filter", json={})
        backup = {
            "algorithm": "m.megolm_backup.v1.curve25519-aes-sha2",
            "auth_data": {"public_key": "x", "signatures": {}},
        }
        version = (await alice.ok("POST", "room_keys/version", json=backup))["version"]
        scene.worlds.append(
            World(home, alice, person, room_id, event_id, alias, upload.json()["content_uri"].rpartition("/")[2],
                  stored["filter_id"], version, "none", numbers=itertools.count(10_000 * len(scene.worlds) + 10_000))
        )  # fmt: skip
        scene.names.setdefault("group", ("", ""))
        scene.names["group"] = (scene.names["group"][1], group)
    scene.names["friends"] = (scene.worlds[0].room_id, scene.worlds[1].room_id)
    scene.names["device"] = (people[0].device_id, people[1].device_id)
    scene.names["event"] = (scene.worlds[0].event_id, scene.worlds[1].event_id)
    scene.names["person"] = ("bob", "ben")
    await scene.wait()
    await block(people[0], alice)
    await people[1].ok("PUT", f"{OURS}/friends/{quote(f'@nobody:{home.name}')}/block")
    await scene.wait()
    return scene


Ask = Callable[[World, Operation, str], Awaitable[object]]


def _in_sensible_order(operations: Sequence[Operation]) -> list[Operation]:
    left_out = ENDS_THE_SESSION | ABOUT_NOBODY
    operations = [each for each in operations if not any(part in each.path for part in OWN)]
    late = {name: number for number, name in enumerate(CHANGES_THE_ROOM, 1)}
    return sorted((each for each in operations if each.name not in left_out), key=lambda each: late.get(each.name, 0))


async def _walk(scene: Scene, ask_one: Ask, operations: Sequence[Operation]) -> None:
    """Asks everything about Bob and about Ben, and compares. What either causes in Alice's sync is compared as well."""
    since = (await sync(scene.alice))["next_batch"]
    for operation in _in_sensible_order(operations):
        paths = [{}, {"user_id": True}] if "{user_id}" in operation.path else [{}]
        for other in paths:
            answers = []
            for world in scene.worlds:
                of = {"user_id": quote(world.bob.user_id, safe="")} if other else {}
                answers.append(await ask_one(world, operation, world.path(operation, **of)))
            bob, ben = scene.views(answers[0])[0], scene.views(answers[1])[1]
            assert bob == ben, identify(operation)
            if operation.method != "GET":
                await scene.wait()
                since = await _compare_news(scene, since, identify(operation))


async def _compare_news(scene: Scene, since: str, what: str) -> str:
    answer = await sync(scene.alice, since)
    bob, ben = scene.views(answer)
    assert bob == ben, f"what /sync says after {what}"
    return str(answer["next_batch"])


async def _ask_by_http(world: World, operation: Operation, path: str) -> object:
    answer = await world.ask(operation, path=path)
    text = answer.body.decode("utf-8", "replace")
    headers = {name: value for name, value in answer.headers.items() if name not in ("date", "content-length", "etag")}
    try:
        return [answer.status, headers, json.loads(text)]
    except ValueError:
        return [answer.status, headers, text]


async def _compare_lists(scene: Scene) -> None:
    """Compares what has no direction: whole syncs, the list of friends, the rooms."""
    for path in ("sync", "joined_rooms", f"{OURS}/friends", "initialSync", "notifications"):
        bob, ben = scene.views(await scene.alice.ok("GET", path))
        assert bob == ben, path
    lists = {"all": {"ranges": [[0, 20]], "timeline_limit": 20, "required_state": [["*", "*"]]}}
    extensions = {name: {"enabled": True} for name in ("receipts", "typing", "account_data", "to_device", "e2ee")}
    body = {"lists": lists, "extensions": extensions}
    answer = await scene.alice.ok("POST", "/_matrix/client/unstable/org.matrix.simplified_msc3575/sync", json=body)
    bob, ben = scene.views(answer)
    assert bob == ben, "sliding sync"


@pytest.fixture
async def neighbours(homeserver: Server) -> Scene:
    """All three are users of one server."""
    return await _set_up(homeserver, homeserver)


@pytest.fixture
async def strangers(federation: Federation) -> Scene:
    """Bob and Ben are users of another server than Alice."""
    home, theirs = await federation.start("a.example"), await federation.start("b.example")
    return await _set_up(home, theirs)


async def test_a_user_of_the_same_server_sees_nothing_by_any_operation(neighbours: Scene) -> None:
    await _walk(neighbours, _ask_by_http, CLIENT_OPERATIONS)
    await _compare_lists(neighbours)


async def test_a_user_of_another_server_sees_nothing_by_any_operation(strangers: Scene) -> None:
    await _walk(strangers, _ask_by_http, CLIENT_OPERATIONS)
    await _compare_lists(strangers)


async def test_nothing_is_seen_over_a_socket(neighbours: Scene) -> None:
    scene = neighbours
    async with open_socket(scene.home, scene.alice) as socket:
        await socket.send({"id": "s", "op": "sync"})
        await socket.next_push()

        async def ask_over_it(world: World, operation: Operation, path: str) -> object:
            names = re.findall(r"\{(\w+)\}", operation.path)
            pattern = re.sub(r"\\\{\w+\\\}", "([^/]*)", re.escape(operation.path))
            values = re.fullmatch(pattern, path)
            assert values is not None
            fields: dict[str, Any] = {"path": [unquote(each) for each in values.groups()]} if names else {}
            if operation.plan.body is not None:
                fields["body"] = world.body(operation)
            answer = await socket.call(operation.name, *fields.pop("path", ()), **fields)
            return [answer["status"], answer.get("body")]

        operations = [each for each in CLIENT_OPERATIONS if "{user_id}" in each.path or "{room_id}" in each.path]
        await _walk(scene, ask_over_it, operations)
        pushed = [event for answer in socket.pushed for event in _events_in(answer)]
    assert pushed
    bob, ben = scene.views(pushed)
    assert bob == ben


async def test_another_server_sees_nothing_in_answers_and_transactions(federation: Federation) -> None:
    home, theirs = await federation.start("a.example"), await federation.start("b.example")
    edus: list[Any] = []
    federation.network.join("a.example", _recording(home.app, edus))
    scene = await _set_up(home, theirs)
    edus.clear()
    for world in scene.worlds:
        path = f"rooms/{quote(world.room_id)}/typing/{quote(scene.alice.user_id)}"
        await scene.alice.ok("PUT", path, json={"typing": True, "timeout": 20_000})
        await send_text(scene.alice, world.room_id, "Are you there?")
        messages = {world.bob.user_id: {"*": {"hello": 1}}}
        await scene.alice.ok(
            "PUT", f"sendToDevice/org.example.hello/{world.bob.user_id[1:4]}", json={"messages": messages}
        )
    await scene.alice.ok("PUT", f"presence/{quote(scene.alice.user_id)}/status", json={"presence": "unavailable"})
    await scene.wait()
    for operation in FEDERATION_OPERATIONS:
        answers = []
        for world in scene.worlds:
            of = {"user_id": quote(world.bob.user_id, safe="")}
            content = None if operation.plan.body is None else sample(operation.plan.body.kind, world.known)
            uri = world.path(operation, **of)
            answer = await send_signed(home.hs, ServerName("b.example"), operation.method, uri, content)
            answers.append([answer.status, answer.content])
        bob, ben = scene.views(answers[0])[0], scene.views(answers[1])[1]
        assert bob == ben, identify(operation)
        await scene.wait()
    assert {each["edu_type"] for each in edus} >= {"m.receipt", "m.presence"}
    bob, ben = scene.views(edus)
    assert bob == ben


def _events_in(answer: Mapping[str, Any]) -> Iterator[tuple[str, object]]:
    """Yields what a sync answer says of rooms and people, each with where it says so."""
    for place in ("presence", "to_device"):
        yield from ((place, event) for event in answer.get(place, {}).get("events", []))
    for kind, rooms in answer.get("rooms", {}).items():
        for room_id, room in rooms.items():
            for section, content in room.items():
                for event in content.get("events", []):
                    yield f"{kind} {room_id} {section}", event


def _recording(app: Any, edus: list[Any]) -> Any:
    """The app of a server, which notes the EDUs of the transactions that it gets."""

    async def record(scope: MutableMapping[str, Any], receive: Any, send: Any) -> None:
        body = bytearray()

        async def listen() -> Any:
            message = await receive()
            body.extend(message.get("body", b""))
            return message

        await app(scope, listen, send)
        if scope.get("path", "").startswith("/_matrix/federation/v1/send/"):
            edus.extend(json.loads(bytes(body)).get("edus", []))

    return record
