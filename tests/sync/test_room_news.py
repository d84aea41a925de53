"""What is read once for all members of a room is what each of them would get by themselves, whatever has happened."""

from __future__ import annotations

from typing import Any

import orjson
import trio
from hypothesis import given, seed, settings
from hypothesis import strategies as st

from homeserver.api.filters import parse_filter
from homeserver.authenticate import Requester
from homeserver.database import Transaction
from homeserver.encoding import to_json
from homeserver.errors import MatrixError
from homeserver.federation.identifiers import UserID
from homeserver.rooms.erasure import note_erased
from homeserver.rooms.timeline import after_position
from homeserver.sync.answer import SyncAnswer, compute
from homeserver.sync.lazy_members import ToldMembers
from homeserver.sync.request import SyncRequest
from homeserver.sync.room_news import NEWS_BYTES_MAX
from homeserver.sync.sections import Sections
from homeserver.users.account_data import SCHEMA as ACCOUNT_DATA
from homeserver.users.account_data import store_account_data
from tests.rooms.test_history_of_peers import Past, ids, take_in
from tests.support.examples import share_of_examples
from tests.support.rooms import OUR_ALICE, OUR_BOB, opened_rooms
from tests.sync.test_incremental import OURS, World, make_world, numbers

ACTIONS = (
    ["say", "own", "relate"] * 2 + ["state"] * 3 + ["member"] * 4 + ["redact"] * 2 + ["erase", "ignore", "branch"]
    + ["build"] * 6 + ["deliver"] * 4
)  # fmt: skip
RELATIONS = ("m.replace", "m.reference", "m.thread")


async def act(world: World, what: str, a: int, b: int, c: int) -> None:
    rooms, room_id, user_id = world.rooms, world.room_ids[a % 2], OURS[b % 3]
    if what == "erase":
        await rooms.write(note_erased, user_id)
    elif what == "ignore":
        content = {"ignored_users": {each: {} for each in OURS[: c % 3]}}
        await rooms.write(store_account_data, user_id, None, "m.ignored_user_list", content)
    elif what in ("own", "relate"):
        content: dict[str, Any] = {"body": f"{a} {b} {c}"}
        if what == "relate":
            parents = world.sent.get(room_id) or [f"${'a' * 43}"]
            content["m.relates_to"] = {"event_id": parents[c % len(parents)], "rel_type": RELATIONS[c % 3]}
            content["m.new_content"] = {"body": "new"}
        try:
            position = await rooms.read(lambda tx: tx.position)
            event = await rooms.append(room_id, user_id, content=content, device_id="D", txn_id=f"t{position}")
        except MatrixError:
            return  # not in the room, or no such relation is allowed
        world.sent.setdefault(room_id, []).append(event.event_id)
    else:
        await world.do(what, a, b, c)


def _ask(tx: Transaction, user_id: UserID, since: int | None, options: dict[str, Any], types: Any) -> SyncAnswer:
    selection = {} if types is None else {"types": types}
    room = {
        "timeline": {"limit": options["limit"], **selection},
        "state": {"lazy_load_members": options["lazy"], **selection},
    }
    request = SyncRequest(
        Requester(user_id, "D"), since, parse_filter({"room": room}), use_state_after=options["use_state_after"]
    )
    return compute(tx, Sections(), request, "", ToldMembers())


def _check(tx: Transaction, user_id: UserID, since: int | None, options: dict[str, Any]) -> None:
    """A filter that selects events is applied to each reader by itself, even if it selects all of them."""
    shared, alone = (_ask(tx, user_id, since, options, types) for types in (None, ["*"]))
    assert orjson.loads(to_json(shared.body)) == orjson.loads(to_json(alone.body))
    assert shared.members.told == alone.members.told


async def run(script: list[tuple[str, int, int, int]]) -> None:
    async with opened_rooms(ACCOUNT_DATA) as rooms:
        world = await make_world(rooms)
        positions: list[int | None] = [None]
        for what, a, b, c in script:
            await act(world, what, a, b, c)
            positions.append(await rooms.read(lambda tx: tx.position))
            for user_id in OURS:
                for since in (None, positions[-1 - (b + c) % min(5, len(positions))]):
                    options = {"limit": (1, 3, 30)[a % 3], "lazy": c % 2 == 0, "use_state_after": b % 2 == 0}
                    await rooms.read(_check, user_id, since, options)


@seed(22)
@settings(max_examples=share_of_examples(0.2))
@given(st.lists(st.tuples(st.sampled_from(ACTIONS), numbers, numbers, numbers), min_size=30, max_size=40))
def test_shared_news_are_what_each_reader_gets_alone(script: list[tuple[str, int, int, int]]) -> None:
    trio.run(run, script)


async def test_news_of_a_room_are_read_once_for_its_members() -> None:
    async with opened_rooms(ACCOUNT_DATA) as rooms:
        room_id = await rooms.create(OUR_ALICE, OUR_BOB)
        await rooms.append(room_id, OUR_ALICE)
        since = await rooms.read(lambda tx: tx.position)
        await rooms.append(room_id, OUR_ALICE, content={"body": "for all"})
        room_nid = await rooms.read(lambda tx: tx.find(room_id))
        options = {"limit": 10, "lazy": True, "use_state_after": False}

        def sync(tx: Transaction, user_id: UserID) -> object:
            answer = _ask(tx, user_id, since, options, None)
            assert b"for all" in to_json(answer.body)
            _, news = tx.sized_cache("room_news", NEWS_BYTES_MAX).get((room_nid, after_position(since), 10, False))
            return news

        assert await rooms.read(sync, OUR_ALICE) is await rooms.read(sync, OUR_BOB) is not None


async def test_a_gap_that_is_filled_ends_what_was_read() -> None:
    async with opened_rooms(ACCOUNT_DATA) as rooms:
        past = Past()
        await rooms.adopt(past.room)
        first, gap, last = past.say(2), past.say(3), past.say(1)
        since = await rooms.read(lambda tx: tx.position)
        await rooms.receive_all(first)
        await rooms.receive(last[0], state=past.before[last[0].event_id])
        options = {"limit": 30, "lazy": False, "use_state_after": False}
        await rooms.read(_check, OUR_ALICE, since, options)
        await take_in(rooms, past, gap)
        await rooms.read(_check, OUR_ALICE, since, options)
        answer = await rooms.read(_ask, OUR_ALICE, since, options, None)
        (room,) = orjson.loads(to_json(answer.body))["rooms"]["join"].values()
        assert [each["event_id"] for each in room["timeline"]["events"]] == ids([*first, *gap, *last])
