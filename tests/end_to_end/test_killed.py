"""A server that ends at any moment has lost nothing that it acknowledged, and doubled nothing that was sent again.

Many clients write over HTTP while the server is killed with SIGKILL or asked to stop with SIGTERM, again and again, and
started on what it left. One room is shared with a second server, so this is also in the middle of federating, in both
directions.
"""

from __future__ import annotations

import json
import random
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx
import pytest

from tests.end_to_end.programs import Failed, Homeserver, Place, make_client, make_place, wait_until

pytestmark = [pytest.mark.sockets, pytest.mark.slow, pytest.mark.timeout(300)]

ROUNDS = 6
MESSAGES_A_ROUND = 12
"""Per sender. One server's messages to the shared room stay below what an outage may bring to a room."""
SEED = 1594
ALIVE_S_MAX = 0.3
"""The longest that a server lives after it is ready, before it has to end."""
FILTER = json.dumps({"room": {"timeline": {"limit": 1000}}})


@dataclass(slots=True)
class Stubborn:
    """One device that repeats each request until it is answered."""

    server: Homeserver
    token: str
    over: threading.Event
    http: httpx.Client = field(default_factory=lambda: make_client(30))

    def ask(self, method: str, path: str, **options: Any) -> Any:
        """The JSON of the answer, however often the server is killed meanwhile. Failed if it dies by itself."""
        headers = {"authorization": f"Bearer {self.token}"}
        while True:
            try:
                answer = self.http.request(method, self.server.url + path, headers=headers, **options)
            except httpx.TransportError:
                if epitaph := self.server.epitaph():
                    raise Failed(epitaph) from None
                time.sleep(0.02)
                continue
            if answer.status_code == 503:  # it is about to stop
                time.sleep(0.02)
                continue
            assert answer.status_code == 200, f"{method} {path}: {answer.status_code} {answer.text}"
            return answer.json()


@dataclass(slots=True)
class Sender:
    """Sends one message after another to a room, up to `quota`, or a fast machine would have much to check.

    acknowledged: text, which is also the transaction id → event id.
    """

    device: Stubborn
    room_id: str
    name: str
    quota: int = MESSAGES_A_ROUND
    acknowledged: dict[str, str] = field(default_factory=dict)

    def run(self) -> None:
        while not self.device.over.is_set():
            if len(self.acknowledged) >= self.quota:
                time.sleep(0.02)
                continue
            text = f"{self.name}-{len(self.acknowledged)}"
            self.acknowledged[text] = self.send(text)

    def send(self, text: str) -> str:
        path = f"/_matrix/client/v3/rooms/{quote(self.room_id)}/send/m.room.message/{text}"
        event_id: str = self.device.ask("PUT", path, json={"msgtype": "m.text", "body": text})["event_id"]
        return event_id


@dataclass(slots=True)
class Listener:
    """Syncs continuously from where the last answer ended, and paginates back if a timeline is limited.

    heard: how often each message arrived.
    """

    device: Stubborn
    heard: Counter[str] = field(default_factory=Counter)

    def run(self) -> None:
        since = ""
        while not self.device.over.is_set():
            query = {"timeout": "200", "filter": FILTER} | ({"since": since} if since else {})
            answer = self.device.ask("GET", "/_matrix/client/v3/sync", params=query)
            for room_id, room in answer.get("rooms", {}).get("join", {}).items():
                timeline = room.get("timeline", {"events": [], "limited": False})
                self._hear(timeline["events"])
                if since and timeline["limited"]:
                    self._page_back(room_id, timeline["prev_batch"], since)
            since = answer["next_batch"]

    def _page_back(self, room_id: str, point: str, to: str) -> None:
        path = f"/_matrix/client/v3/rooms/{quote(room_id)}/messages"
        at: str | None = point
        while at is not None:
            page = self.device.ask("GET", path, params={"dir": "b", "limit": "500", "from": at, "to": to})
            self._hear(page["chunk"])
            at = page.get("end")

    def _hear(self, events: list[dict[str, Any]]) -> None:
        self.heard.update(event["event_id"] for event in events if event["type"] == "m.room.message")


@dataclass(slots=True)
class Maker:
    """Makes rooms and uploads files: what is written in several steps, or to several places."""

    device: Stubborn
    rooms: list[str] = field(default_factory=list)
    files: dict[str, bytes] = field(default_factory=dict)

    def run(self) -> None:
        while not self.device.over.is_set():
            number = len(self.rooms)
            room = self.device.ask("POST", "/_matrix/client/v3/createRoom", json={"name": f"room {number}"})
            self.rooms.append(room["room_id"])
            data = random.Random(number).randbytes(20_000)
            self.files[self.device.ask("POST", "/_matrix/media/v3/upload", content=data)["content_uri"]] = data


@dataclass(slots=True)
class Scene:
    """The two servers, and everyone who is at work while one of them is killed."""

    mortal: Homeserver
    witness: Homeserver
    shared_room: str
    senders: list[Sender]
    listeners: list[Listener]
    maker: Maker
    over: threading.Event
    """Nothing more is sent."""
    threads: list[threading.Thread] = field(default_factory=list)

    def begin(self) -> None:
        for each in (*self.senders, self.maker, *self.listeners):
            thread = threading.Thread(target=each.run, daemon=True)
            self.threads.append(thread)
            thread.start()

    def end(self) -> None:
        """Returns once all that is under way is answered. The listeners listen on."""
        self.over.set()
        _join(self.threads[: -len(self.listeners)])

    def hush(self) -> None:
        """The listeners end too."""
        for listener in self.listeners:
            listener.device.over.set()
        _join(self.threads)

    def acknowledged(self, room_id: str) -> dict[str, str]:
        """Everything that was sent to a room and answered: text → event id."""
        found: dict[str, str] = {}
        for sender in self.senders:
            if sender.room_id == room_id:
                found |= sender.acknowledged
        return found


def _join(threads: list[threading.Thread]) -> None:
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive()


@pytest.fixture(scope="module")
def place(folder_on_disk: Path) -> Place:
    """The folder of the servers, on a disk as in production."""
    return make_place(folder_on_disk)


@pytest.fixture(params=["sqlite", pytest.param("postgres", marks=pytest.mark.postgres)])
def mortal(place: Place, request: pytest.FixtureRequest) -> Homeserver:
    """The server that is killed, on each engine in turn."""
    sections = {}
    if request.param == "postgres":
        sections["database"] = {"url": request.getfixturevalue("postgres_url")}
    return place.organisation(f"mortal-{request.param}", sections)


@pytest.fixture
def scene(place: Place, mortal: Homeserver) -> Iterator[Scene]:
    witness = place.organisation(f"witness-of-{mortal.folder.name}")
    over = threading.Event()
    try:
        mortal.start()
        witness.start()
        owner, guest = mortal.register("owner"), witness.register("guest")
        invite = {"invite": [witness.user_id("guest")]}
        shared = mortal.call("POST", "createRoom", owner, invite)["room_id"]
        alone = mortal.call("POST", "createRoom", owner, {})["room_id"]
        witness.call("POST", f"join/{quote(shared)}", guest, {})
        senders = [Sender(Stubborn(mortal, owner, over), shared, "shared-0")]
        senders += [
            Sender(Stubborn(mortal, _another_device(mortal, "owner"), over), room_id, f"{name}-{number}")
            for name, room_id in (("shared", shared), ("alone", alone))
            for number in range(1, 4)
        ]
        senders.append(Sender(Stubborn(witness, guest, over), shared, "guest"))
        listeners = [
            Listener(Stubborn(mortal, _another_device(mortal, "owner"), threading.Event())),
            Listener(Stubborn(witness, _another_device(witness, "guest"), threading.Event())),
        ]
        maker = Maker(Stubborn(mortal, mortal.register("maker"), over))
        yield Scene(mortal, witness, shared, senders, listeners, maker, over)
    finally:
        over.set()
        mortal.kill()
        witness.kill()


def _another_device(server: Homeserver, localpart: str) -> str:
    identifier = {"type": "m.id.user", "user": localpart}
    body = {"type": "m.login.password", "identifier": identifier, "password": "a password"}
    token: str = server.call("POST", "login", body=body)["access_token"]
    return token


def messages(server: Homeserver, token: str, room_id: str) -> dict[str, list[str]]:
    """All messages in a room's history: text → the ids of the events that say it."""
    found: dict[str, list[str]] = {}
    query: dict[str, Any] = {"dir": "b", "limit": 1000}
    while True:
        page = server.call("GET", f"rooms/{quote(room_id)}/messages", token, **query)
        for event in page["chunk"]:
            if event["type"] == "m.room.message":
                found.setdefault(event["content"]["body"], []).append(event["event_id"])
        if "end" not in page:
            return found
        query["from"] = page["end"]


def test_acknowledged_events_exist_exactly_once_however_often_the_server_is_killed(scene: Scene) -> None:
    chance = random.Random(SEED)
    mortal, witness = scene.mortal, scene.witness
    scene.begin()
    for number in range(ROUNDS):
        time.sleep(chance.uniform(0.01, ALIVE_S_MAX))
        if number % 2:
            mortal.stop()
        else:
            mortal.kill()
        mortal.start()
        for sender in scene.senders:
            sender.quota += MESSAGES_A_ROUND
            for text, event_id in list(sender.acknowledged.copy().items())[-2:]:  # its thread goes on adding
                assert sender.send(text) == event_id  # it does not matter which of its devices' requests this is
    scene.end()
    for room_id in {sender.room_id for sender in scene.senders}:
        sent = scene.acknowledged(room_id)
        assert len(sent) > 5 * ROUNDS
        for server, listener in zip((mortal, witness), scene.listeners, strict=True):
            if server is witness and room_id != scene.shared_room:
                continue
            check_room(server, listener.device.token, room_id, sent)
    check_syncs(scene)
    check_made(scene)
    assert mortal.stop() == 0
    assert "Traceback" not in mortal.said() + witness.said()


def check_room(server: Homeserver, token: str, room_id: str, sent: dict[str, str]) -> None:
    """The room's history has everything that was sent, once, and nothing else. What comes from afar takes a moment."""
    wait_until(
        f"{server.server_name} has all of {room_id}", lambda: messages(server, token, room_id).keys() >= sent.keys()
    )
    assert messages(server, token, room_id) == {text: [event_id] for text, event_id in sent.items()}


def check_syncs(scene: Scene) -> None:
    """One chain of syncs, across all deaths, has told of every message once."""
    rooms = [{sender.room_id for sender in scene.senders}, {scene.shared_room}]
    for listener, room_ids in zip(scene.listeners, rooms, strict=True):
        sent = {text: event_id for room_id in room_ids for text, event_id in scene.acknowledged(room_id).items()}
        wanted = Counter(sent.values())
        deadline = time.monotonic() + 30
        while not listener.heard.keys() >= wanted.keys() and time.monotonic() < deadline:
            time.sleep(0.05)
        assert {text for text, event_id in sent.items() if not listener.heard[event_id]} == set()
        assert listener.heard == wanted
    scene.hush()


def check_made(scene: Scene) -> None:
    """Every room that was made is whole, acknowledged or not, and every file is there."""
    maker, server = scene.maker, scene.mortal
    assert maker.rooms and maker.files
    token = maker.device.token
    joined = server.call("GET", "joined_rooms", token)["joined_rooms"]
    assert set(joined) >= set(maker.rooms)
    for room_id in joined:
        state = server.call("GET", f"rooms/{quote(room_id)}/state", token)
        types = {event["type"] for event in state}
        assert types >= {"m.room.create", "m.room.member", "m.room.power_levels", "m.room.join_rules", "m.room.name"}
    for uri, data in maker.files.items():
        path = f"/_matrix/client/v1/media/download/{uri.removeprefix('mxc://')}"
        answer = maker.device.http.get(server.url + path, headers={"authorization": f"Bearer {token}"})
        assert answer.content == data
