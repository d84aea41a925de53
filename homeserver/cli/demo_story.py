"""What the people of the demo do: each step is a real request, and is printed with the time that it took."""

from __future__ import annotations

import argparse
from collections.abc import Awaitable, Callable, Sequence
from datetime import datetime
from typing import Any

import trio

from homeserver.cli.demo_people import Person, picture
from homeserver.cli.output import tell

DIALOGUE = (
    ("romeo", "But soft, what light through yonder window breaks?"),
    ("juliet", "Three words, dear Romeo, and good night indeed."),
    ("romeo", "O, wilt thou leave me so unsatisfied?"),
    ("mercutio", "A plague o’ both your houses! (Though both servers are up.)"),
    ("juliet", "Parting is such sweet sorrow, that I shall say good night till it be morrow."),
)
LETTER = "Lady, by yonder blessed moon I vow."
LINES = 60  # of the conversation that is archived

Archive = Callable[[str], Awaitable[tuple[int, int]]]
"""Moves the events of a room into the archive. Returns how many events are in it, and the bytes of their blocks."""


class Stage:
    """Prints what happens as it happens."""

    def __init__(self, args: argparse.Namespace) -> None:
        self._args = args

    def scene(self, title: str) -> None:
        """Prints the title of a scene."""
        tell(self._args, f"\n{title}", scene=title)

    def step(self, text: str, took_ms: float) -> None:
        """Prints a step and how long it took."""
        tell(self._args, f"  {text:<86} {took_ms:7.1f} ms", step=text.strip(), took_ms=round(took_ms, 1))


async def play(stage: Stage, clients: Sequence[str], password: str, archive: Archive) -> list[Person]:
    """Plays the story. Returns its people when every client has received everything.

    clients: the addresses for clients of the two servers. archive: archives a room on the first of them.
    """
    romeo = Person("romeo", clients[0])
    mercutio = Person("mercutio", clients[0])
    juliet = Person("juliet", clients[1])
    people = [romeo, mercutio, juliet]
    await log_in(stage, people, password)
    async with trio.open_nursery() as nursery:
        for person in people:
            nursery.start_soon(person.listen)
        await become_friends(stage, romeo, juliet)
        await watch_ticks(stage, romeo, juliet)
        room_id = await meet(stage, people)
        await talk(stage, people, room_id)
        await show_picture(stage, room_id, juliet, romeo)
        await search(stage, juliet)
        await read_archive(stage, romeo, archive)
        nursery.cancel_scope.cancel()
    stage.scene("Everything has arrived on both servers.")
    return people


async def log_in(stage: Stage, people: Sequence[Person], password: str) -> None:
    """Everybody gets an account."""
    stage.scene("They register and log in")
    for person in people:
        await person.register(password)
        stage.step(f"{person.name} registers", person.took_ms)
        await person.log_in(password)
        stage.step(f"{person.user_id} is logged in", person.took_ms)
        await person.set_display_name(person.name.title())


async def become_friends(stage: Stage, asker: Person, asked: Person) -> None:
    """One asks, the other accepts, and is listed with their status."""
    stage.scene(f"{asker.name.title()} asks {asked.name.title()}, on the other server, to be friends")
    started = trio.current_time()
    await asker.ask_friend(asked.user_id)
    stage.step(f"{asked.name} is asked", await asked.wait_friend(asker.user_id, "incoming", started))
    started = trio.current_time()
    await asked.ask_friend(asker.user_id)
    stage.step(f"{asked.name} accepts", await asker.wait_friend(asked.user_id, "friend", started))
    await asker.wait_online(asked.user_id, started)
    (friend,) = await asker.list_friends()
    stage.step(f"{asker.name}’s list of friends: {asked.name}: {friend['status']['text']}", asker.took_ms)


async def watch_ticks(stage: Stage, sender: Person, recipient: Person) -> None:
    """A message is sent, delivered and read."""
    stage.scene("Ticks: one message, and what its sender gets to know of it")
    (friend,) = await sender.list_friends()
    room_id = friend["room_id"]
    event_id, started = await sender.send_text(room_id, LETTER)
    stage.step(f"✓  sent: {LETTER}", sender.took_ms)
    await recipient.wait_event(event_id, started)
    waited_ms = await sender.wait_receipt(recipient.user_id, event_id, started, "org.homeserver.delivered")
    times = (await sender.message_status(room_id, event_id))["recipients"][recipient.user_id]
    stage.step(f"✓✓ delivered to {recipient.name} at {clock_time(times['delivered_ts'])}", waited_ms)
    started = trio.current_time()
    await recipient.read(room_id, event_id)
    waited_ms = await sender.wait_receipt(recipient.user_id, event_id, started)
    times = (await sender.message_status(room_id, event_id))["recipients"][recipient.user_id]
    stage.step(f"✓✓ read by {recipient.name} at {clock_time(times['read_ts'])} (blue)", waited_ms)


async def meet(stage: Stage, people: Sequence[Person]) -> str:
    """The first one creates a room and invites the others. Returns the room's ID."""
    host, *guests = people
    stage.scene(f"{host.name.title()} creates a group of both organisations (time until they see the invite)")
    room_id = await host.create_room("The balcony")
    stage.step(f"room {room_id}", host.took_ms)
    for person in guests:
        started = trio.current_time()
        await host.invite(room_id, person.user_id)
        stage.step(f"{person.name} is invited", await person.wait_invited(room_id, started))
        await person.join(room_id)
        stage.step(f"{person.name} joins", person.took_ms)
    for person in people:
        await person.wait_members(room_id, len(people))
    return room_id


async def talk(stage: Stage, people: Sequence[Person], room_id: str) -> None:
    """They say their lines."""
    stage.scene("They talk (time until everyone else has received the message)")
    for name, text in DIALOGUE:
        speaker = next(person for person in people if person.name == name)
        event_id, sent_at = await speaker.send_text(room_id, text)
        waited_ms = max([await person.wait_event(event_id, sent_at) for person in people if person is not speaker])
        stage.step(f"{name:>8}: {text}", waited_ms)


async def show_picture(stage: Stage, room_id: str, sender: Person, viewer: Person) -> None:
    """A picture goes to the other server, where its thumbnail is made."""
    stage.scene(f"{sender.name.title()} sends a picture")
    event_id, sent_at, mxc = await sender.send_picture(room_id, picture(640, 480))
    await viewer.wait_event(event_id, sent_at)
    size = await viewer.thumbnail(mxc, 320, 240)
    stage.step(f"{viewer.name} has its thumbnail: {size} bytes", viewer.took_ms)
    size = await viewer.download(mxc)
    stage.step(f"{viewer.name} has the picture: {size} bytes of {mxc}", viewer.took_ms)
    started = trio.current_time()
    await viewer.read(room_id, event_id)
    waited_ms = await sender.wait_receipt(viewer.user_id, event_id, started)
    stage.step(f"{sender.name} sees that {viewer.name} has read it", waited_ms)


async def search(stage: Stage, person: Person) -> None:
    """A message is found by a word of it."""
    stage.scene(f"{person.name.title()} searches")
    for term in ("windows", "sweet sorrow"):
        found = await person.search(term)
        stage.step(f"“{term}” finds: {found[0] if found else 'nothing'}", person.took_ms)


async def read_archive(stage: Stage, person: Person, archive: Archive) -> None:
    """Old messages are moved into compressed, sealed blocks, and are read back like all others."""
    stage.scene("An old conversation moves into the archive, and is read back")
    (friend,) = await person.list_friends()
    room_id = friend["room_id"]
    for number in range(1, LINES + 1):
        await person.send_text(room_id, f"Love’s light wings, feather {number} of {LINES}")
    started = trio.current_time()
    events, size = await archive(room_id)
    stage.step(f"{events} events are in the archive, in {size} bytes", (trio.current_time() - started) * 1000)
    texts = await person.read_history(room_id)
    stage.step(f"{person.name} reads {len(texts)} messages; the first: {texts[0]}", person.took_ms)


def clock_time(ts: Any) -> str:
    """Returns a time of day. ts: milliseconds since 1970."""
    return datetime.fromtimestamp(ts / 1000).strftime("%H:%M:%S")
