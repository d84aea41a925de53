"""The declaration of an EDU type is enforced for everything that peers send. Spec: server-server-api/#edus

The types are made up: `org.example.shout` is one part, of one user in one room; `org.example.moods` has many parts.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec
import trio
from hypothesis import given
from hypothesis import strategies as st

from homeserver.database import Transaction
from homeserver.feature import Edu, Feature, OutgoingEdu
from homeserver.features import FEATURES
from homeserver.federation.edus import InvalidEdu
from homeserver.federation.identifiers import RoomID, ServerName, UserID
from homeserver.limits.peers import EDU_PARTS_MAX
from homeserver.resources import Resources
from tests.support.federation import Federation, create_room, send_state, until
from tests.support.homeservers import Client, Server
from tests.support.stranger import Joined, Stranger

MALLORY = ServerName("mallory.example")
SHOUT = "org.example.shout"
MOODS = "org.example.moods"
LASTING = "org.example.lasting"


class Shout(msgspec.Struct, frozen=True):
    room_id: RoomID
    user_id: UserID
    text: str


class Mood(msgspec.Struct, frozen=True):
    room_id: RoomID
    user_id: UserID
    mood: str


def parse_moods(content: dict[str, Any]) -> Iterator[Mood]:
    for mood in msgspec.convert(content.get("moods"), list[Any]):
        try:
            yield msgspec.convert(mood, Mood)
        except msgspec.ValidationError:
            continue


@dataclass
class Expressions:
    """A feature that remembers what it hears, and sends what `say` has noted at positions of the stream."""

    heard: list[Any] = field(default_factory=list)
    said: dict[int, dict[str, Any]] = field(default_factory=dict)

    async def hear(self, hs: Resources, origin: ServerName, parts: Sequence[Any]) -> None:
        self.heard.append(list(parts))

    def say(self, tx: Transaction, content: dict[str, Any]) -> None:
        self.said[tx.next_position("expressions")] = content

    def source(self, tx: Transaction, since: int, upto: int) -> Iterable[OutgoingEdu]:
        for position, content in self.said.items():
            if since < position <= upto:
                yield OutgoingEdu(content, destinations=(MALLORY,))

    def feature(self) -> Feature:
        def user(part: Shout | Mood) -> UserID:
            return part.user_id

        def room(part: Shout | Mood) -> RoomID:
            return part.room_id

        return Feature(
            name="expressions",
            spec="server-server-api/#edus",
            edus={
                SHOUT: Edu(Shout, self.hear, user=user, room=room, source=self.source, short_lived=True),
                MOODS: Edu(parse_moods, self.hear, user=user, room=room),
                LASTING: Edu(
                    Shout, self.hear, user=user, room=room, source=self.source, coalesce_by=lambda shout: shout.user_id
                ),
            },
        )


async def _with_mallory(federation: Federation, *features: Feature) -> tuple[Server, Client, Stranger, Joined]:
    a = await federation.start("a.example", features=(*FEATURES, *features))
    alice = await a.register("alice")
    mallory = Stranger(federation.network, MALLORY)
    room = await mallory.join("a.example", await create_room(alice, preset="public_chat"), "mallory")
    return a, alice, mallory, room


def _shout(room_id: str, user_id: str, text: object = "hello") -> dict[str, Any]:
    return {"edu_type": SHOUT, "content": {"room_id": room_id, "user_id": user_id, "text": text}}


def _moods(*moods: object) -> dict[str, Any]:
    return {"edu_type": MOODS, "content": {"moods": moods}}


def _mood(room_id: str, user_id: str) -> dict[str, Any]:
    return {"room_id": room_id, "user_id": user_id, "mood": "cheerful"}


async def test_the_handler_receives_permitted_edus(federation: Federation) -> None:
    expressions = Expressions()
    _, _, mallory, room = await _with_mallory(federation, expressions.feature())
    await mallory.send("a.example", "1", edus=[_shout(room.room_id, room.user_id)])
    assert expressions.heard == [[Shout(room.room_id, room.user_id, "hello")]]


async def test_the_handler_never_receives_forbidden_edus(federation: Federation) -> None:
    expressions = Expressions()
    _, alice, mallory, room = await _with_mallory(federation, expressions.feature())
    not_mallorys = await create_room(alice, preset="public_chat")
    barred = await mallory.join("a.example", await create_room(alice, preset="public_chat"), "mallory")
    await send_state(alice, barred.room_id, "m.room.server_acl", {"allow": ["*"], "deny": [MALLORY]})
    refused = [
        _shout(room.room_id, alice.user_id),
        _shout(room.room_id, "@x:third.example"),
        _shout(room.room_id, "@mallory:mallory.example.third.example"),
        _shout(room.room_id, "mallory:mallory.example"),
        _shout(room.room_id, "@a\0b:mallory.example"),
        _shout(room.room_id, "@" + "a" * 255 + ":mallory.example"),
        _shout(room.room_id, ""),
        _shout(room.room_id, room.user_id, 5),
        _shout(not_mallorys, room.user_id),
        _shout(barred.room_id, room.user_id),
        _shout("!nowhere:a.example", room.user_id),
        _shout("!nul\0:a.example", room.user_id),
        _shout("not a room", room.user_id),
        {"edu_type": SHOUT, "content": {}},
        {"edu_type": "org.example.undeclared", "content": _shout(room.room_id, room.user_id)["content"]},
    ]
    await mallory.send("a.example", "1", edus=[*refused, _shout(room.room_id, room.user_id)])
    assert expressions.heard == [[Shout(room.room_id, room.user_id, "hello")]]


async def test_forbidden_parts_of_an_edu_are_dropped(federation: Federation) -> None:
    expressions = Expressions()
    _, alice, mallory, room = await _with_mallory(federation, expressions.feature())
    not_mallorys = await create_room(alice, preset="public_chat")
    barred = await mallory.join("a.example", await create_room(alice, preset="public_chat"), "mallory")
    await send_state(alice, barred.room_id, "m.room.server_acl", {"allow": ["*"], "deny": [MALLORY]})
    moods = [
        _mood(room.room_id, alice.user_id),
        _mood(room.room_id, room.user_id),
        "cheerful",
        _mood(room.room_id, "@x:third.example"),
        _mood(not_mallorys, room.user_id),
        _mood(barred.room_id, room.user_id),
        _mood("!nul\0:a.example", room.user_id),
        {**_mood(room.room_id, room.user_id), "mood": None},
        _mood(room.room_id, "@second:mallory.example"),
    ]
    await mallory.send("a.example", "1", edus=[_moods(*moods)])
    ((first, second),) = expressions.heard
    assert (first.user_id, second.user_id) == (room.user_id, "@second:mallory.example")
    assert first.room_id == second.room_id == room.room_id


async def test_forbidden_parts_do_not_count_towards_the_limit(federation: Federation) -> None:
    expressions = Expressions()
    _, alice, mallory, room = await _with_mallory(federation, expressions.feature())
    foreign = [_mood(room.room_id, alice.user_id)] * EDU_PARTS_MAX
    own = [_mood(room.room_id, room.user_id)] * (EDU_PARTS_MAX + 1)
    await mallory.send("a.example", "1", edus=[_moods(*foreign, *own)])
    ((*heard,),) = expressions.heard
    assert len(heard) == EDU_PARTS_MAX


async def test_an_edu_that_crashes_its_handler_does_not_block_the_next(federation: Federation) -> None:
    async def fail(hs: Resources, origin: ServerName, parts: Sequence[Any]) -> None:
        raise RuntimeError

    edu: Edu[Any] = Edu(Shout, fail, user=None, room=None)
    failing = Feature(name="failing", spec="server-server-api/#edus", edus={"org.example.failing": edu})
    expressions = Expressions()
    _, _, mallory, room = await _with_mallory(federation, expressions.feature(), failing)
    bad = {**_shout(room.room_id, room.user_id), "edu_type": "org.example.failing"}
    await mallory.send("a.example", "1", edus=[bad, _shout(room.room_id, room.user_id)])
    assert len(expressions.heard) == 1


async def test_a_server_that_was_away_gets_no_short_lived_edus(federation: Federation) -> None:
    expressions = Expressions()
    a, _, mallory, room = await _with_mallory(federation, expressions.feature())
    got: list[tuple[str, str]] = []
    mallory.take = lambda body: got.extend((edu["edu_type"], edu["content"]["text"]) for edu in body.get("edus", ()))

    def said(text: str) -> dict[str, Any]:
        return {"room_id": room.room_id, "user_id": "@alice:a.example", "text": text}

    await a.write(expressions.say, said("present"))

    async def has_both() -> bool:
        return {(SHOUT, "present"), (LASTING, "present")} <= set(got)

    await until(has_both)
    federation.network.cut("a.example", MALLORY)
    await a.write(expressions.say, said("absent"))
    await trio.sleep(60)
    federation.network.heal()

    async def has_caught_up() -> bool:
        return (LASTING, "absent") in got

    await until(has_caught_up)
    assert (SHOUT, "absent") not in got


async def test_a_waiting_edu_is_replaced_by_a_newer_one(federation: Federation) -> None:
    expressions = Expressions()
    a, _, mallory, room = await _with_mallory(federation, expressions.feature())
    got: list[list[str]] = []

    async def take_slowly(body: Any) -> Any:
        got.append([edu["content"]["text"] for edu in body.get("edus", ()) if edu["edu_type"] == LASTING])
        await trio.sleep(10)
        return {"pdus": {}}

    mallory.take = take_slowly
    for user, text in (("alice", "1"), ("alice", "2"), ("bob", "3"), ("alice", "4"), ("alice", "5")):
        content = {"room_id": room.room_id, "user_id": f"@{user}:a.example", "text": text}
        await a.write(expressions.say, content)
        await trio.sleep(1)
    await trio.sleep(60)
    assert [texts for texts in got if texts] == [["1"], ["3", "5"]]


IDENTIFIERS = st.sampled_from(
    [
        *("@a:origin.example", "@b:origin.example", "@:origin.example", "@a:third.example", "@a:origin.example:80"),
        *("a:origin.example", "@a", "", "@a\0:origin.example", "@\ud800:origin.example"),
        "@" + "a" * 255 + ":origin.example",
    ]
)
ROOMS = st.sampled_from(["!r:a.example", "!s:third.example", "#r:a.example", "!", "", "!\0:a.example"])


@given(st.lists(st.tuples(IDENTIFIERS, ROOMS) | st.none()))
def test_the_permitted_parts_are_those_of_the_origins_users_in_order(drawn: list[tuple[str, str] | None]) -> None:
    edu = Expressions().feature().edus[MOODS]
    moods = [None if each is None else {"user_id": each[0], "room_id": each[1], "mood": str(n)}
             for n, each in enumerate(drawn)]  # fmt: skip
    kept = [int(part.mood) for part in edu.parts_from(ServerName("origin.example"), {"moods": moods})]
    users = ("@a:origin.example", "@b:origin.example", "@:origin.example")
    rooms = ("!r:a.example", "!s:third.example")
    assert kept == [n for n, each in enumerate(drawn) if each is not None and each[0] in users and each[1] in rooms]


@given(
    st.dictionaries(
        st.sampled_from(["moods", "room_id", "user_id", "text"]), st.none() | st.text() | st.lists(st.text())
    )
)
def test_parsing_any_content_raises_only_invalid_edu(content: dict[str, Any]) -> None:
    for edu in Expressions().feature().edus.values():
        try:
            edu.parts_from(MALLORY, content)
        except InvalidEdu:
            pass
