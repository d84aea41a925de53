"""Three nodes are one homeserver, whatever happens to one of them: a checker of histories, in the manner of Jepsen.

People use whatever node answers while nodes are killed, stand still, are cut off or slow, and PostgreSQL restarts. What
they were answered is compared afterwards. HISTORY_SECONDS says for how long, HISTORY_SEED repeats the draws of a run.
"""

from __future__ import annotations

import os
import random
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from tests.end_to_end.programs import Homeserver
from tests.nodes.cluster import Nodes, running_nodes
from tests.nodes.faults import Faults
from tests.nodes.people import (
    Device,
    Impatient,
    Kicker,
    Listener,
    Logout,
    Prober,
    Racers,
    Reader,
    Sender,
    is_text,
)
from tests.support.postgres import missing_reason

SECONDS = float(os.environ.get("HISTORY_SECONDS", "10"))
SEED = int(os.environ.get("HISTORY_SEED", random.SystemRandom().randrange(10**6)))

pytestmark = [
    pytest.mark.sockets,
    pytest.mark.postgres,
    pytest.mark.skipif(missing_reason() is not None, reason=str(missing_reason())),
    pytest.mark.slow,
    pytest.mark.timeout(SECONDS + 400),
]


@dataclass(slots=True)
class Crew:
    """Everybody, and where they meet. A failure in one of their threads is a failure of the test."""

    nodes: Nodes
    over: threading.Event
    rooms: list[str]
    senders: list[Sender | Impatient | Prober]
    listeners: list[Listener]
    victim: Listener
    guest: Listener
    """They are at the other homeserver."""
    reader: Reader
    kicker: Kicker
    racers: Racers
    logout: Logout
    errors: list[Exception] = field(default_factory=list)
    _threads: list[threading.Thread] = field(default_factory=list)

    def begin(self, *others: Callable[[], None]) -> None:
        people = (*self.senders, self.reader, self.kicker, self.racers, self.logout, *self._everybody_who_listens())
        for run in (*others, *(person.run for person in people)):
            thread = threading.Thread(target=self._run, args=(run,), daemon=True)
            self._threads.append(thread)
            thread.start()

    def end(self) -> None:
        """Returns once all that was begun is answered, and everybody has heard what there is to hear."""
        self.over.set()
        listeners = self._everybody_who_listens()
        self._join(self._threads[: -len(listeners)])
        deadline = time.monotonic() + 90
        while not self._have_heard() and time.monotonic() < deadline:
            time.sleep(0.2)
        for listener in listeners:
            listener.hushed.set()
        self._join(self._threads)
        if self.errors:
            raise ExceptionGroup("somebody has failed", self.errors)

    def _everybody_who_listens(self) -> list[Listener]:
        return [*self.listeners, self.victim, self.guest]

    def _have_heard(self) -> bool:
        """Returns whether the listeners have all that was acknowledged in the room of everybody."""
        sent = {event_id for each in self.senders if each.room_id == self.rooms[0] for event_id in each.sent.values()}
        return all(sent <= set(listener.heard.get(self.rooms[0], ())) for listener in (*self.listeners, self.guest))

    def _run(self, run: Callable[[], None]) -> None:
        try:
            run()
        except Exception as error:
            self.errors.append(error)
            self.over.set()

    def _join(self, threads: list[threading.Thread]) -> None:
        for thread in threads:
            thread.join(150)
            assert not thread.is_alive(), "somebody has not come to an end"


@pytest.fixture
def nodes(folder_on_disk: Path) -> Iterator[Nodes]:
    with running_nodes(Path(tempfile.mkdtemp(dir=folder_on_disk))) as nodes:
        yield nodes


@pytest.fixture
def crew(nodes: Nodes) -> Crew:
    """Two rooms: everybody's, with a guest of the other homeserver, and one from which somebody is kicked."""
    over, chance = threading.Event(), random.Random(SEED)

    def register(localpart: str, *servers: Homeserver) -> Device:
        device = Device(list(servers) or nodes.servers, random.Random(chance.random()), over)
        body = {"username": localpart, "password": "a password", "auth": {"type": "m.login.dummy"}}
        device.enter(device.ask("POST", "register", json=body))
        return device

    owner, member, victim, racer = (register(name) for name in ("owner", "member", "victim", "racer"))
    guest = register("guest", nodes.peer)
    everyone = create_room(owner, member, racer, guest)
    private = create_room(owner, member, victim)
    senders: list[Sender | Impatient | Prober] = [
        Sender(owner.another("owner"), everyone, "owner"),
        Sender(member.another("member"), everyone, "member"),
        Sender(member.another("member"), private, "private"),
        Sender(guest, everyone, "guest"),
        Impatient(racer.another("racer"), everyone, "impatient"),
        Prober(owner.another("owner"), everyone, "prober"),
    ]
    return Crew(
        nodes,
        over,
        [everyone, private],
        senders,
        listeners=[Listener(device.another(device.localpart)) for device in (owner, member)],
        victim=Listener(victim.another("victim"), is_kicked=True),
        guest=Listener(guest.another("guest")),
        reader=Reader(member.another("member"), everyone),
        kicker=Kicker(owner, victim, private),
        racers=Racers(racer, [create_room(racer) for _ in nodes.servers]),
        logout=Logout(racer.another("racer"), "racer"),
    )


def create_room(owner: Device, *others: Device) -> str:
    """A room in which all of them are. New members do not see what was said before."""
    history = {"type": "m.room.history_visibility", "content": {"history_visibility": "joined"}}
    body = {"invite": [other.user_id for other in others], "initial_state": [history]}
    room_id: str = owner.ask("POST", "createRoom", json=body)["room_id"]
    for other in others:
        other.ask("POST", f"join/{quote(room_id)}", json={})
    return room_id


def read_history(device: Device, room_id: str, server: Homeserver) -> dict[str, str]:
    """All messages of a room as one node has them: event ID → text, the oldest first."""
    found: list[tuple[str, str]] = []
    query: dict[str, Any] = {"dir": "b", "limit": 1000}
    while True:
        page = device.attempt("GET", f"rooms/{quote(room_id)}/messages", server, params=query)
        found += [(event["event_id"], event["content"]["body"]) for event in page["chunk"] if is_text(event)]
        if "end" not in page:
            assert len(dict(found)) == len(found)
            return dict(reversed(found))
        query["from"] = page["end"]


def test_people_never_notice_what_happens_to_a_node(crew: Crew) -> None:
    print(f"HISTORY_SEED={SEED}")
    faults = Faults(crew.nodes, random.Random(SEED), crew.over)
    crew.begin(faults.run)
    crew.over.wait(SECONDS)
    crew.end()
    print(*faults.done, sep="\n")
    assert len(faults.done) > SECONDS / 15
    check(crew, SECONDS)


def test_people_lose_nothing_when_a_standby_takes_over_from_the_database(crew: Crew) -> None:
    standby = crew.nodes.postgres.make_standby()
    try:
        crew.begin()
        crew.over.wait(5)
        crew.nodes.postgres.throw_away()
        crew.over.wait(1)
        standby.promote()
        for node in crew.nodes.nodes:
            node.wire.lead_to(standby.socket_file)
        crew.over.wait(10)
        crew.end()
        check(crew, 15)
    finally:
        standby.throw_away()


def check(crew: Crew, seconds: float) -> None:
    """Compares what everybody was answered in so many seconds."""
    check_rooms(crew, seconds)
    check_receipts(crew, seconds)
    check_racers(crew, seconds)
    assert crew.senders[-1].missed == [], "what one node has acknowledged, another does not show"
    assert crew.logout.count and crew.logout.late == []
    assert "Traceback" not in crew.nodes.said()


def check_rooms(crew: Crew, seconds: float) -> None:
    """Each room has the same history at all nodes, with everything that was acknowledged, once and for everybody."""
    device = crew.kicker.owner
    for room_id in crew.rooms:
        history, *others = [read_history(device, room_id, server) for server in crew.nodes.servers]
        for other in others:
            assert list(other.items()) == list(history.items())
        sent = {
            text: event_id for each in crew.senders if each.room_id == room_id for text, event_id in each.sent.items()
        }
        sent |= dict(crew.kicker.secrets) if room_id == crew.kicker.room_id else {}
        assert len(sent) > seconds / 3, "too little was said to prove anything"
        unknown = {text for each in crew.senders if isinstance(each, Impatient) for text in each.unknown}
        counts = Counter(history.values())
        assert {text for text in sent if counts[text] != 1} == set(), "acknowledged, and not there once"
        assert {text for text in counts.keys() - sent.keys() if counts[text] > 1 or text not in unknown} == set()
        assert sent.items() <= {text: event_id for event_id, text in history.items()}.items()
        for listener in crew.listeners:
            assert listener.heard[room_id] == list(history), listener.device.user_id
    everyone, private = crew.rooms
    assert Counter(crew.guest.heard[everyone]) == Counter(crew.listeners[0].heard[everyone])
    assert set(crew.victim.heard[private]).isdisjoint(crew.kicker.secrets.values()), "said after the kick"


def check_receipts(crew: Crew, seconds: float) -> None:
    """Whoever listens hears that somebody has read on, never back."""
    order = {event_id: number for number, event_id in enumerate(crew.listeners[0].heard[crew.reader.room_id])}
    assert len(crew.reader.read) > seconds / 10
    for listener in crew.listeners:
        numbers = [order[event_id] for user_id, event_id in listener.receipts if user_id == crew.reader.device.user_id]
        assert numbers and numbers == sorted(numbers)


def check_racers(crew: Crew, seconds: float) -> None:
    """One name, alias or one-time key has one winner."""
    assert len(crew.racers.wins) > seconds / 10
    for what, wins in crew.racers.wins.items():
        assert len(wins) == 1 or (not wins and what in crew.racers.undecided), (what, wins)
