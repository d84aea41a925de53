"""People who use all nodes of a homeserver at once, and note what they were answered.

Each of them is a thread. A request that is not answered in time, or answered with 502 to 504, is repeated at another
node; `Impatient` people give up instead, and never know.
"""

from __future__ import annotations

import json
import random
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any
from urllib.parse import quote

import httpx

from homeserver.federation.signing import encode_base64
from tests.end_to_end.programs import Homeserver

FILTER = json.dumps({"room": {"timeline": {"limit": 1000}}})
ANSWER_S = 3.0
"""How long a device waits for an answer before it asks another node."""


FAULT_S_MAX = 12.0
"""The longest that a node is harmed."""


class Unanswered(Exception):
    """No node has answered, so the outcome is unknown."""


@dataclass(slots=True)
class Refused:
    """An answer that is an error of the client."""

    status: int
    errcode: str


@dataclass(slots=True)
class Device:
    """One access token, used at whatever node. `over`: nothing new is begun, but what is begun comes to its end."""

    nodes: list[Homeserver]
    chance: random.Random
    over: threading.Event
    token: str = ""
    user_id: str = ""
    device_id: str = ""
    _http: httpx.Client = field(default_factory=lambda: httpx.Client(timeout=ANSWER_S, verify=False))

    def attempt(self, method: str, path: str, node: Homeserver | None = None, **options: Any) -> Any:
        """The JSON of a 200, or Refused. Raises Unanswered."""
        node = node or self.chance.choice(self.nodes)
        headers = {"authorization": f"Bearer {self.token}"} if self.token else {}
        try:
            answer = self._http.request(method, f"{node.url}/_matrix/client/v3/{path}", headers=headers, **options)
        except httpx.TransportError as error:
            raise Unanswered(repr(error)) from None
        if answer.status_code in (502, 503, 504):
            assert answer.status_code != 503 or "retry-after" in answer.headers, answer.text
            raise Unanswered(answer.text)
        if answer.status_code == 200:
            return answer.json()
        assert answer.status_code < 500, f"{method} {path} at {node.folder.name}: {answer.text}"
        return Refused(answer.status_code, answer.json()["errcode"])

    def insist(self, method: str, path: str, **options: Any) -> Any:
        """The same, repeated until there is an answer."""
        deadline = time.monotonic() + 120
        while True:
            try:
                return self.attempt(method, path, **options)
            except Unanswered as error:
                assert time.monotonic() < deadline, f"{method} {path} finds no answer for two minutes: {error}"
                time.sleep(0.05)

    def ask(self, method: str, path: str, **options: Any) -> Any:
        """The JSON of a 200, however long it takes."""
        answer = self.insist(method, path, **options)
        assert not isinstance(answer, Refused), f"{method} {path}: {answer}"
        return answer

    def another(self, localpart: str) -> Device:
        """The same person, logged in at a device of their own, with a stream of chances of its own."""
        device = Device(self.nodes, random.Random(self.chance.random()), self.over)
        identifier = {"type": "m.id.user", "user": localpart}
        body = {"type": "m.login.password", "identifier": identifier, "password": "a password"}
        device.enter(device.ask("POST", "login", json=body))
        return device

    def enter(self, answer: dict[str, str]) -> None:
        """Takes over what a log-in or registration was answered."""
        self.token, self.user_id, self.device_id = answer["access_token"], answer["user_id"], answer["device_id"]

    @property
    def localpart(self) -> str:
        return self.user_id[1:].partition(":")[0]

    def rest(self, seconds: float = 0.2) -> None:
        time.sleep(self.chance.uniform(0, seconds))


@dataclass(slots=True)
class Sender:
    """Sends one message after another, each until it is acknowledged. Texts are also the transaction IDs.

    sent: text → event ID, in the order of the answers.
    """

    device: Device
    room_id: str
    name: str
    sent: dict[str, str] = field(default_factory=dict)

    def run(self) -> None:
        while not self.device.over.is_set():
            text = f"{self.name}-{len(self.sent)}"
            self.sent[text] = self.device.ask("PUT", message_path(self.room_id, text), json=message(text))["event_id"]
            self.device.rest()


@dataclass(slots=True)
class Impatient:
    """Sends messages and repeats none. sent: text → event ID, of those that were acknowledged; unknown: the others."""

    device: Device
    room_id: str
    name: str
    sent: dict[str, str] = field(default_factory=dict)
    unknown: set[str] = field(default_factory=set)

    def run(self) -> None:
        while not self.device.over.is_set():
            text = f"{self.name}-{len(self.sent) + len(self.unknown)}"
            try:
                answer = self.device.attempt("PUT", message_path(self.room_id, text), json=message(text))
                self.sent[text] = answer["event_id"]
            except Unanswered:
                self.unknown.add(text)
            self.device.rest()


@dataclass(slots=True)
class Listener:
    """Syncs at one node after the other, each from where the last answer ended.

    heard: room → its messages, in the order of the answers. receipts: (reader, event), likewise.
    is_kicked: whether they miss something because they are kicked and come again.
    """

    device: Device
    is_kicked: bool = False
    heard: dict[str, list[str]] = field(default_factory=dict)
    receipts: list[tuple[str, str]] = field(default_factory=list)
    since: str = ""
    hushed: threading.Event = field(default_factory=threading.Event)

    def run(self) -> None:
        while not self.hushed.is_set():
            self.sync(self.device.chance.choice((0, 200, 1000)))
            self.device.rest(0.05)

    def sync(self, timeout_ms: int) -> None:
        query = {"timeout": str(timeout_ms), "filter": FILTER} | ({"since": self.since} if self.since else {})
        answer = self.device.ask("GET", "sync", params=query)
        rooms = answer.get("rooms", {})
        for room_id, room in (*rooms.get("join", {}).items(), *rooms.get("leave", {}).items()):
            timeline = room.get("timeline", {"events": [], "limited": False})
            assert not timeline["limited"] or self.is_kicked or room_id not in self.heard, "there is no gap"
            events = [event["event_id"] for event in timeline["events"] if is_text(event)]
            self.heard.setdefault(room_id, []).extend(events)
            for event in room.get("ephemeral", {}).get("events", []):
                if event["type"] == "m.receipt":
                    self._note_receipts(event["content"])
        assert position_of(answer["next_batch"]) >= position_of(self.since), f"{self.since}, {answer['next_batch']}"
        self.since = answer["next_batch"]

    def _note_receipts(self, content: dict[str, Any]) -> None:
        for event_id, kinds in content.items():
            self.receipts += [(user_id, event_id) for user_id in kinds.get("m.read", {})]


@dataclass(slots=True)
class Prober:
    """Sends a message at one node, and syncs and searches at others at once, without waiting: it has to be there."""

    device: Device
    room_id: str
    name: str
    sent: dict[str, str] = field(default_factory=dict)
    missed: list[str] = field(default_factory=list)

    def run(self) -> None:
        listener = Listener(self.device)
        listener.sync(0)
        while not self.device.over.is_set():
            text = f"{self.name}-{len(self.sent)}"
            event_id = self.device.ask("PUT", message_path(self.room_id, text), json=message(text))["event_id"]
            self.sent[text] = event_id
            listener.sync(0)
            if event_id not in listener.heard[self.room_id] or event_id not in self._search(text):
                self.missed.append(text)
            self.device.rest()

    def _search(self, text: str) -> list[str]:
        term = {"search_term": f'"{text}"', "order_by": "recent"}
        found = self.device.ask("POST", "search", json={"search_categories": {"room_events": term}})
        return [each["result"]["event_id"] for each in found["search_categories"]["room_events"]["results"]]


@dataclass(slots=True)
class Reader:
    """Reads on and says how far, each time until it is acknowledged. read: the events, in the order of the answers."""

    device: Device
    room_id: str
    read: list[str] = field(default_factory=list)

    def run(self) -> None:
        listener = Listener(self.device)
        listener.sync(0)
        while not self.device.over.is_set():
            listener.sync(200)
            heard = listener.heard.get(self.room_id, [])
            if heard and heard[-1] not in self.read[-1:]:
                self.device.ask("POST", f"rooms/{quote(self.room_id)}/receipt/m.read/{quote(heard[-1])}", json={})
                self.read.append(heard[-1])
            self.device.rest(0.5)


@dataclass(slots=True)
class Logout:
    """Logs in and out again. late: how many seconds after the log-out some node still took the token."""

    device: Device
    localpart: str
    count: int = 0
    late: list[float] = field(default_factory=list)

    def run(self) -> None:
        while not self.device.over.is_set():
            guest = self.device.another(self.localpart)
            for node in guest.nodes:  # it is cached everywhere
                self._is_valid(guest, node)
            answer = guest.insist("POST", "logout", json={})
            end = time.monotonic()
            assert not isinstance(answer, Refused) or answer.errcode == "M_UNKNOWN_TOKEN", answer
            time.sleep(2)
            for node in guest.nodes:
                begin = time.monotonic()
                if self._is_valid(guest, node):
                    self.late.append(begin - end)
            self.count += 1

    def _is_valid(self, guest: Device, node: Homeserver) -> bool:
        try:
            return not isinstance(guest.attempt("GET", "account/whoami", node), Refused)
        except Unanswered:
            return False


@dataclass(slots=True)
class Kicker:
    """Kicks somebody, says what is not for them, invites them again. secrets: text → event ID of these messages."""

    owner: Device
    victim: Device
    room_id: str
    secrets: dict[str, str] = field(default_factory=dict)

    def run(self) -> None:
        target = {"user_id": self.victim.user_id}
        room = quote(self.room_id)
        while not self.owner.over.is_set():
            answer = self.owner.insist("POST", f"rooms/{room}/kick", json=target)
            # A kick that was repeated may find that they are gone already.
            assert not isinstance(answer, Refused) or answer.status == 403, answer
            for _ in range(3):
                text = f"secret-{len(self.secrets)}"
                path = message_path(self.room_id, text)
                self.secrets[text] = self.owner.ask("PUT", path, json=message(text))["event_id"]
                refused = self.victim.insist("PUT", message_path(self.room_id, f"no-{text}"), json=message("no"))
                assert isinstance(refused, Refused) and refused.status == 403, refused
            begin = time.monotonic()
            answer = self.owner.insist("POST", f"rooms/{room}/invite", json=target)
            assert not isinstance(answer, Refused) or answer.status == 403, answer
            self.victim.ask("POST", f"join/{room}", json={})
            self.owner.rest(1)
            if time.monotonic() - begin > ANSWER_S:
                # A node that stands still may do what another has done already, once it goes on.
                self.owner.over.wait(FAULT_S_MAX + 2)


@dataclass(slots=True)
class Racers:
    """Do the same at all nodes at the same moment: only one may win. wins: what → the answers of the winners."""

    device: Device
    rooms: list[str]
    wins: dict[str, list[str]] = field(default_factory=dict)
    undecided: set[str] = field(default_factory=set)

    def run(self) -> None:
        number = 0
        while not self.device.over.is_set():
            number += 1
            self._race(f"name-{number}", partial(self._register, number))
            self._race(f"alias-{number}", partial(self._name_room, number))
            key = encode_base64(number.to_bytes(32))
            self.device.ask("POST", "keys/upload", json={"one_time_keys": {f"curve25519:K{number}": key}})
            self._race(f"key-{number}", self._claim)
            self.device.rest(0.5)

    def _race(self, what: str, act: Callable[[Homeserver], list[str]]) -> None:
        """Lets one act at every node. A race in which one of them was not answered may have been won by that one."""
        start = threading.Barrier(len(self.device.nodes))
        wins: list[str] = []

        def run(node: Homeserver) -> None:
            start.wait()
            try:
                wins.extend(act(node))
            except Unanswered:
                self.undecided.add(what)

        threads = [threading.Thread(target=run, args=(node,)) for node in self.device.nodes]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        self.wins[what] = wins

    def _register(self, number: int, node: Homeserver) -> list[str]:
        auth = {"type": "m.login.dummy"}
        body = {"username": f"racer{number}", "password": "a password", "auth": auth}
        anyone = Device(self.device.nodes, self.device.chance, self.device.over)
        answer = anyone.attempt("POST", "register", node, json=body)
        return [] if isinstance(answer, Refused) else [answer["access_token"]]

    def _name_room(self, number: int, node: Homeserver) -> list[str]:
        room_id = self.rooms[self.device.nodes.index(node) % len(self.rooms)]
        alias = quote(f"#race{number}:{self.device.user_id.split(':', 1)[1]}")
        answer = self.device.attempt("PUT", f"directory/room/{alias}", node, json={"room_id": room_id})
        return [] if isinstance(answer, Refused) else [f"{room_id} {node.url}"]

    def _claim(self, node: Homeserver) -> list[str]:
        user_id, device_id = self.device.user_id, self.device.device_id
        body = {"one_time_keys": {user_id: {device_id: "curve25519"}}}
        answer = self.device.attempt("POST", "keys/claim", node, json=body)
        return list(answer["one_time_keys"].get(user_id, {}).get(device_id, {}))


def message(text: str) -> dict[str, str]:
    return {"msgtype": "m.text", "body": text}


def message_path(room_id: str, transaction_id: str) -> str:
    return f"rooms/{quote(room_id)}/send/m.room.message/{transaction_id}"


def is_text(event: dict[str, Any]) -> bool:
    return bool(event["type"] == "m.room.message")


def position_of(token: str) -> int:
    """The position that a sync token names: tokens are opaque to clients, not to these tests."""
    return int(token.removeprefix("s").split("_")[0]) if token else 0
