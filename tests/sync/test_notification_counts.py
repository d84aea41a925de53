"""Property: the counts are what an evaluation of every rule for every event says, whatever happened before.

Three people talk in a room: mentions, keywords, threads, edits, redactions, receipts, changed rules, ignored users. The
tail, which stores what events mean, runs at random moments, so counts also rest on events that it has not reached.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import trio
from hypothesis import given, seed, settings
from hypothesis import strategies as st

from homeserver import users
from homeserver.database import Transaction
from homeserver.database.tail import find_position, store_position
from homeserver.federation.identifiers import EventID, RoomID, UserID
from homeserver.rooms.storage import TimelineEvent, find_stored_by_id
from homeserver.rooms.storage import find_position as find_event_position
from homeserver.users.account_data import store_account_data
from homeserver.users.push.conditions import Subject
from homeserver.users.push.counts import RoomCounts
from homeserver.users.push.evaluation import EventFacts, evaluate
from homeserver.users.push.notifications import TAIL, count_unread, store_notifications
from homeserver.users.push.rules import compile_ruleset
from homeserver.users.push_rules import Kind, delete_rule, get_ruleset, set_rule_fields, store_rule
from homeserver.users.receipts import is_ahead, store_receipt
from tests.support.examples import share_of_examples
from tests.support.rooms import OUR_ALICE, OUR_BOB, OUR_CAROL, Rooms, opened_rooms

PEOPLE = (OUR_ALICE, OUR_BOB, OUR_CAROL)
HIGHLIGHT = ["notify", {"set_tweak": "highlight"}]

numbers = st.integers(0, 11)
steps = st.lists(
    st.tuples(
        st.sampled_from(
            ["say"] * 8 + ["thread"] * 4 + ["read"] * 4 + ["tail"] * 3 + ["redact", "rule", "rule", "ignore"]
        ),
        numbers, numbers, numbers,
    ),
    min_size=20,
    max_size=40,
)  # fmt: skip


@dataclass
class Sent:
    """An event, and the levels that each user's rules gave it when it was sent."""

    event: TimelineEvent
    thread: int
    levels: dict[UserID, int]
    is_redacted: bool = False


@dataclass
class World:
    """What has happened. read: user and thread (None for all) → ordering."""

    rooms: Rooms
    room_id: RoomID
    sent: list[Sent] = field(default_factory=list)
    roots: list[EventID] = field(default_factory=list)
    read: dict[tuple[UserID, int | None], int] = field(default_factory=dict)
    ignored: dict[UserID, set[UserID]] = field(default_factory=dict)

    async def say(self, who: UserID, what: int, root: EventID | None = None) -> None:
        content: dict[str, Any] = {"msgtype": "m.text", "body": "tea and CAKE!" if what % 3 == 0 else "pancakes"}
        kind = "m.room.message"
        if what in (1, 2):
            content["m.mentions"] = {"user_ids": [PEOPLE[what], "@nobody:ours.test"]}
        elif what == 4:
            content["m.mentions"] = {"room": True}
        elif what == 5:
            content["msgtype"] = "m.notice"
        elif what == 6:
            kind = "m.room.encrypted"
        elif what == 7:
            kind = "m.reaction"
        if root is not None:
            content["m.relates_to"] = {"rel_type": "m.thread", "event_id": root}
        elif what == 8 and self.sent:
            content["m.relates_to"] = {"rel_type": "m.replace", "event_id": self.sent[-1].event.event_id}
        event = await self.rooms.append(self.room_id, who, kind, content)
        sent = await self._note(event.event_id, root)
        self.read[who, sent.thread] = sent.event.ordering
        if root is None and "m.relates_to" not in content:
            self.roots.append(event.event_id)

    async def _note(self, event_id: EventID, root: EventID | None) -> Sent:
        def look(tx: Transaction) -> Sent:
            event = find_stored_by_id(tx, event_id)
            assert isinstance(event, TimelineEvent)
            facts = EventFacts(tx, event)
            rules = {user: compile_ruleset(user, get_ruleset(tx, user)) for user in PEOPLE}
            levels = {user: rules[user].evaluate(Subject(facts, user)).level for user in PEOPLE}
            return Sent(event, 0 if root is None else find_event_position(tx, root) or 0, levels)

        sent: Sent = await self.rooms.read(look)
        if sent.event.content.get("m.relates_to", {}).get("rel_type") == "m.replace":
            sent.thread = self.sent[-1].thread
        self.sent.append(sent)
        return sent

    async def tail(self) -> None:
        def find(tx: Transaction) -> tuple[int, int]:
            return find_position(tx, TAIL) or 0, tx.position

        since, upto = await self.rooms.read(find)
        found = await self.rooms.read(evaluate, since, upto)
        await self.rooms.write(store_notifications, found, since, upto)

    async def mark_read(self, who: UserID, which: int, how: int) -> None:
        if not self.sent:
            return
        sent = self.sent[-1 - which % len(self.sent)]
        thread = sent.thread if how % 2 else None
        kind = "m.read" if how % 3 else "m.read.private"
        name = {None: "", 0: "main"}.get(thread) or ("" if thread is None else self._root_of(thread))

        def store(tx: Transaction) -> None:
            ordering = sent.event.ordering
            if is_ahead(tx, self.room_id, who, kind, name, ordering):
                store_receipt(
                    tx, self.room_id, who, kind, name, sent.event.event_id, ordering, tx.now_ms, is_local=True
                )

        await self.rooms.write(store)
        self.read[who, thread] = max(self.read.get((who, thread), -1), sent.event.ordering)

    def _root_of(self, thread: int) -> str:
        return next(each.event.event_id for each in self.sent if each.event.position == thread)

    async def redact(self, which: int) -> None:
        if not self.sent:
            return
        await self.tail()  # the thread of an event cannot be seen any more once it is redacted
        sent = self.sent[-1 - which % len(self.sent)]
        redaction = await self.rooms.append(
            self.room_id, OUR_ALICE, "m.room.redaction", {"redacts": sent.event.event_id}
        )
        sent.is_redacted = True
        await self._note(redaction.event_id, None)  # a rule may be about redactions

    async def change_rule(self, who: UserID, which: int, how: int) -> None:
        await self.tail()  # an event is judged by the rules of the moment, and the model judges at once
        kind, rule_id, content = _RULES[which % len(_RULES)]
        await self.rooms.write(_change, who, kind, rule_id.replace("ROOM", self.room_id), content, how)

    async def ignore(self, who: UserID, whom: UserID) -> None:
        self.ignored[who] = self.ignored.get(who, set()) ^ ({whom} - {who})
        content = {"ignored_users": {user_id: {} for user_id in self.ignored[who]}}
        await self.rooms.write(store_account_data, who, None, "m.ignored_user_list", content)

    def expected(self, who: UserID) -> tuple[Counter[int], Counter[int]]:
        """Notifications and highlights by thread."""
        notifications, highlights = Counter[int](), Counter[int]()
        for sent in self.sent:
            point = max(self.read.get((who, None), -1), self.read.get((who, sent.thread), -1))
            if (
                sent.event.sender in {who, *self.ignored.get(who, ())}
                or sent.is_redacted
                or sent.event.ordering <= point
            ):
                continue
            notifications[sent.thread] += sent.levels[who] >= 1
            highlights[sent.thread] += sent.levels[who] >= 2
        return +notifications, +highlights

    async def check(self) -> None:
        for who in PEOPLE:
            counts: RoomCounts = (await self.rooms.read(count_unread, who, [self.room_id]))[self.room_id]
            threads = {0: counts.main, **counts.threads}
            got = (
                +Counter({thread: each.notifications for thread, each in threads.items()}),
                +Counter({thread: each.highlights for thread, each in threads.items()}),
            )
            assert got == self.expected(who), who


_RULES: list[tuple[Kind, str, dict[str, Any]]] = [
    ("content", "cake", {"pattern": "cake", "actions": HIGHLIGHT}),
    ("room", "ROOM", {"actions": []}),
    ("room", "!elsewhere:ours.test", {"actions": []}),
    ("sender", OUR_BOB, {"actions": []}),
    ("override", "notices", {"conditions": [{"kind": "room_member_count", "is": ">2"}], "actions": HIGHLIGHT}),
    ("underride", ".m.rule.message", {"enabled": False}),
    ("override", ".m.rule.master", {"enabled": True}),
    ("override", ".m.rule.is_user_mention", {"enabled": False}),
]


def _change(tx: Transaction, who: UserID, kind: Kind, rule_id: str, content: dict[str, Any], how: int) -> None:
    if rule_id.startswith("."):
        set_rule_fields(tx, who, kind, rule_id, {"enabled": how % 2 == 0 and rule_id != ".m.rule.master"})
    elif how % 3 and any(rule["rule_id"] == rule_id for rule in get_ruleset(tx, who)[kind]):
        delete_rule(tx, who, kind, rule_id)
    else:
        store_rule(tx, who, kind, rule_id, content)


async def run(script: list[tuple[str, int, int, int]]) -> None:
    async with opened_rooms(*users.SCHEMAS) as rooms:
        world = World(rooms, await rooms.create(OUR_ALICE, OUR_BOB, OUR_CAROL))
        await rooms.write(store_position, TAIL, await rooms.read(lambda tx: tx.position))
        for what, first, second, third in script:
            who = PEOPLE[first % 3]
            if what == "say":
                await world.say(who, second)
            elif what == "thread" and world.roots:
                await world.say(who, second, world.roots[third % len(world.roots)])
            elif what == "read":
                await world.mark_read(who, second, third)
            elif what == "tail":
                await world.tail()
            elif what == "redact":
                await world.redact(second)
            elif what == "rule":
                await world.change_rule(who, second, third)
            elif what == "ignore":
                await world.ignore(who, PEOPLE[second % 3])
            await world.check()


@seed(21)
@settings(max_examples=share_of_examples(0.2))
@given(steps)
def test_counts_are_what_all_rules_say_of_all_events(script: list[tuple[str, int, int, int]]) -> None:
    trio.run(run, script)
