"""Spec: client-server-api/#server-side-search"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import trio

from homeserver import limits
from homeserver.api.filters import RoomEventFilter
from homeserver.authenticate import Requester
from homeserver.config import AtRest, SearchSection
from homeserver.database import Transaction
from homeserver.features.search.feeding import catch_up, fill, merge
from homeserver.features.search.matches import Narrowed, Searched, check_proposals
from homeserver.features.search.texts import BODY, read_span
from homeserver.federation.build import Draft
from homeserver.federation.identifiers import RoomID, UserID
from homeserver.process.workers import Service
from homeserver.rooms.append import append_local
from homeserver.rooms.storage import find_position
from homeserver.search.documents import Hit
from homeserver.search.query import parse_query
from homeserver.search.words import Stemmers
from tests.support.homeservers import Client, Homeservers, Server
from tests.support.people import Json, create, invite, join, leave, public_room, redact, say, send, set_state
from tests.support.rows import row


@pytest.fixture(params=["whoosh", "fts5"])
async def server(homeservers: Homeservers, request: pytest.FixtureRequest) -> Server:
    """A homeserver with either engine: both are held to the same tests."""
    return await homeservers.start(search=SearchSection(engine=request.param))


async def search(client: Client, term: str, *, next_batch: str | None = None, **asked: Any) -> Json:
    """The `room_events` of the answer. The most recent results come first unless `order_by` says otherwise."""
    body = {"search_categories": {"room_events": {"search_term": term, "order_by": "recent", **asked}}}
    params = {} if next_batch is None else {"next_batch": next_batch}
    answer = await client.ok("POST", "search", json=body, params=params)
    return dict(answer["search_categories"]["room_events"])


def ids(found: Json) -> list[str]:
    return [result["result"]["event_id"] for result in found["results"]]


async def find(client: Client, term: str, **asked: Any) -> list[str]:
    """The IDs of the events that a search finds."""
    return ids(await search(client, term, **asked))


async def test_messages_are_found_by_their_words_as_soon_as_they_are_sent(server: Server) -> None:
    alice = await server.register("alice")
    room_id = await create(alice)
    kettle, _, kettles = await say(alice, room_id, "The kettle is on.", "Tea, anyone?", "Two blue KETTLES")
    assert await find(alice, "kettle") == [kettles, kettle], "also in another form, the most recent first"
    assert await find(alice, "blue kettle") == await find(alice, "kettle blue") == [kettles]
    assert await find(alice, "coffee") == await find(alice, "kettle coffee") == await find(alice, "!?") == []
    (later,) = await say(alice, room_id, "kettle!")
    assert await find(alice, "kettle") == [later, kettles, kettle]


async def test_results_come_with_their_number_and_the_words_to_highlight(server: Server) -> None:
    alice = await server.register("alice")
    room_id = await create(alice)
    (sent,) = await say(alice, room_id, "Running the Kettle")
    found = await search(alice, "run kettles")
    assert (found["count"], found["highlights"]) == (1, ["Kettle", "Running"])
    (result,) = found["results"]
    assert result["result"]["content"]["body"] == "Running the Kettle"
    assert (result["result"]["room_id"], result["result"]["event_id"]) == (room_id, sent)
    assert "context" not in result and "next_batch" not in found and "state" not in found and "groups" not in found


async def test_results_by_rank_are_the_closest_first(server: Server) -> None:
    alice = await server.register("alice")
    room_id = await create(alice)
    close, far = await say(
        alice, room_id, "kettle kettle", "a kettle among a great many other words of tea and of cake"
    )
    found = await search(alice, "kettle", order_by="rank")
    assert ids(found) == [close, far]
    ranks = [result["rank"] for result in found["results"]]
    assert ranks == sorted(ranks, reverse=True) and ranks[0] > ranks[1] > 0


async def test_names_and_topics_are_found_by_their_keys(server: Server) -> None:
    alice = await server.register("alice")
    room_id = await create(alice)
    name = await set_state(alice, room_id, "m.room.name", {"name": "Kettle club"})
    content = {"topic": "On kettles", "m.topic": {"m.text": [{"body": "Also on samovars"}]}}
    topic = await set_state(alice, room_id, "m.room.topic", content)
    (body,) = await say(alice, room_id, "kettle")
    assert await find(alice, "kettle") == [body, topic, name]
    assert await find(alice, "samovar") == [topic]
    for key, event_id in (("content.body", body), ("content.name", name), ("content.topic", topic)):
        assert await find(alice, "kettle", keys=[key]) == [event_id]
    assert await find(alice, "kettle", keys=["content.name", "content.topic"]) == [topic, name]


async def test_filters_hold(server: Server) -> None:
    alice, bob = await server.register("alice"), await server.register("bob")
    tea, cake = await public_room(alice, bob), await public_room(alice, bob)
    of_alice = await send(alice, tea, "kettle")
    of_bob = await send(bob, tea, {"msgtype": "m.image", "body": "kettle.jpg", "url": "mxc://test.example/x"})
    in_cake = await send(bob, cake, "kettle")
    name = await set_state(alice, cake, "m.room.name", {"name": "kettle"})

    async def filtered(**conditions: Any) -> list[str]:
        return await find(alice, "kettle", filter=conditions)

    assert await filtered() == [name, in_cake, of_bob, of_alice]
    assert await filtered(rooms=[tea]) == await filtered(not_rooms=[cake]) == [of_bob, of_alice]
    assert await filtered(senders=[bob.user_id]) == await filtered(not_senders=[alice.user_id]) == [in_cake, of_bob]
    assert await filtered(types=["m.room.message"], rooms=[cake]) == [in_cake]
    assert await filtered(types=["m.room.n*"]) == await filtered(not_types=["m.room.message"]) == [name]
    assert await filtered(contains_url=True) == [of_bob]
    assert await filtered(contains_url=False) == [name, in_cake, of_alice]
    assert await filtered(rooms=[]) == await filtered(senders=[]) == await filtered(types=[]) == []
    assert await filtered(rooms=["!elsewhere:test.example"]) == await filtered(senders=["@carol:test.example"]) == []
    assert await filtered(limit=2) == [name, in_cake]


@pytest.mark.parametrize("order_by", ["recent", "rank"])
async def test_pages_follow_on_one_another(server: Server, order_by: str) -> None:
    alice = await server.register("alice")
    room_id = await create(alice)
    sent = await say(alice, room_id, *(f"kettle {'and ' * number}tea" for number in range(7)))
    found: list[str] = []
    token: str | None = None
    while True:
        page = await search(alice, "kettle", order_by=order_by, filter={"limit": 3}, next_batch=token)
        found += ids(page)
        assert page["count"] == 7
        token = page.get("next_batch")
        if token is None:
            break
    assert found == (sent[::-1] if order_by == "recent" else sent)


async def test_groups_list_their_results_and_have_pages_of_their_own(server: Server) -> None:
    alice, bob = await server.register("alice"), await server.register("bob")
    tea, cake = await public_room(alice, bob), await public_room(alice, bob)
    first, second = await say(alice, tea, "kettle 1", "kettle 2")
    (third,) = await say(bob, cake, "kettle 3")
    asked: Json = {"groupings": {"group_by": [{"key": "room_id"}, {"key": "sender"}]}, "filter": {"limit": 2}}
    page = await search(alice, "kettle", **asked)
    rooms, senders = page["groups"]["room_id"], page["groups"]["sender"]
    assert {name: (group["order"], group["results"]) for name, group in rooms.items()} == {
        cake: (1, [third]),
        tea: (2, [second]),
    }
    assert set(senders) == {alice.user_id, bob.user_id}
    of_tea = await search(alice, "kettle", next_batch=rooms[tea]["next_batch"], **asked)
    assert ids(of_tea) == [first] and set(of_tea["groups"]["room_id"]) == {tea}
    of_bob = await search(alice, "kettle", next_batch=senders[bob.user_id]["next_batch"], **asked)
    assert ids(of_bob) == [] and "next_batch" not in of_bob


async def test_results_have_their_context_with_the_profiles_of_that_time(server: Server) -> None:
    alice, bob = await server.register("alice"), await server.register("bob")
    await bob.ok("PUT", f"profile/{bob.user_id}/displayname", json={"displayname": "Bob"})
    room_id = await public_room(alice, bob)
    before = await say(alice, room_id, "one", "two")
    (found,) = await say(bob, room_id, "kettle")
    after = await say(alice, room_id, "three", "four")
    await bob.ok("PUT", f"profile/{bob.user_id}/displayname", json={"displayname": "Robert"})
    context = {"before_limit": 1, "after_limit": 2, "include_profile": True}
    ((result),) = (await search(alice, "kettle", event_context=context))["results"]
    assert result["result"]["event_id"] == found
    shown = result["context"]
    assert [event["event_id"] for event in shown["events_before"]] == before[1:]
    assert [event["event_id"] for event in shown["events_after"]] == after
    assert shown["profile_info"][bob.user_id] == {"displayname": "Bob"}
    assert set(shown["profile_info"]) == {alice.user_id, bob.user_id}
    page = await alice.ok("GET", f"rooms/{room_id}/messages", params={"dir": "b", "from": shown["start"], "limit": 1})
    assert [event["event_id"] for event in page["chunk"]] == before[:1]


async def test_the_state_of_the_rooms_of_the_results_is_included_on_request(server: Server) -> None:
    alice, bob = await server.register("alice"), await server.register("bob")
    room_id, _ = await public_room(alice, bob), await create(alice)
    await say(alice, room_id, "kettle")
    state = (await search(alice, "kettle", include_state=True))["state"]
    assert set(state) == {room_id}
    assert {event["state_key"] for event in state[room_id] if event["type"] == "m.room.member"} == {
        alice.user_id,
        bob.user_id,
    }
    lazily = (await search(alice, "kettle", include_state=True, filter={"lazy_load_members": True}))["state"]
    assert {event["state_key"] for event in lazily[room_id] if event["type"] == "m.room.member"} == {alice.user_id}


# --- what changes ---


async def test_edited_messages_are_found_by_what_they_say_now(server: Server) -> None:
    alice = await server.register("alice")
    room_id = await create(alice)
    sent = await send(alice, room_id, "the kettle")
    edit = {
        "msgtype": "m.text", "body": "* the teapot", "m.new_content": {"msgtype": "m.text", "body": "the teapot"},
        "m.relates_to": {"rel_type": "m.replace", "event_id": sent},
    }  # fmt: skip
    edited = await send(alice, room_id, edit)
    assert await find(alice, "kettle") == []
    (result,) = (await search(alice, "teapot"))["results"]
    assert result["result"]["event_id"] == sent
    assert result["result"]["unsigned"]["m.relations"]["m.replace"]["event_id"] == edited
    await redact(alice, room_id, edited)
    assert await find(alice, "kettle") == [sent] and await find(alice, "teapot") == []


async def test_redacted_messages_are_found_no_more(server: Server) -> None:
    alice = await server.register("alice")
    room_id = await create(alice)
    (sent,) = await say(alice, room_id, "kettle")
    assert await find(alice, "kettle") == [sent]
    await redact(alice, room_id, sent)
    assert (await search(alice, "kettle"))["count"] == 0


async def test_messages_of_ignored_users_are_not_found(server: Server) -> None:
    alice, bob = await server.register("alice"), await server.register("bob")
    await say(bob, await public_room(alice, bob), "kettle")
    ignored = {"ignored_users": {bob.user_id: {}}}
    await alice.ok("PUT", f"user/{alice.user_id}/account_data/m.ignored_user_list", json=ignored)
    assert await find(alice, "kettle") == []


async def test_encrypted_messages_are_not_indexed(server: Server) -> None:
    alice = await server.register("alice")
    room_id = await create(alice)
    await send(alice, room_id, {"algorithm": "m.megolm.v1.aes-sha2", "body": "kettle"}, kind="m.room.encrypted")
    assert await find(alice, "kettle") == []


# --- who sees what ---


async def test_only_members_find_messages(server: Server) -> None:
    alice, bob = await server.register("alice"), await server.register("bob")
    room_id = await public_room(alice)
    await say(alice, room_id, "kettle")
    found = await search(bob, "kettle")
    assert (found["results"], found["count"], found["highlights"]) == ([], 0, [])


async def test_former_members_find_what_was_said_before_they_left(server: Server) -> None:
    alice, bob = await server.register("alice"), await server.register("bob")
    room_id = await public_room(alice, bob)
    (before,) = await say(alice, room_id, "kettle")
    await leave(bob, room_id)
    await say(alice, room_id, "kettle again")
    found = await search(bob, "kettle")
    assert ids(found) == [before] and found["count"] == 1
    await bob.ok("POST", f"rooms/{room_id}/forget", json={})
    assert await find(bob, "kettle") == []


async def test_history_that_is_hidden_from_new_members_is_not_found_or_counted(server: Server) -> None:
    alice, bob = await server.register("alice"), await server.register("bob")
    room_id = await create(alice, preset="private_chat")
    await set_state(alice, room_id, "m.room.history_visibility", {"history_visibility": "joined"})
    await say(alice, room_id, *["secret kettle"] * 3)
    await invite(alice, room_id, bob)
    await join(bob, room_id)
    (shown,) = await say(alice, room_id, "kettle")
    found = await search(bob, "kettle", order_by="rank")
    assert ids(found) == [shown] and found["count"] == 1 and "next_batch" not in found
    assert len(await find(alice, "kettle")) == 4


async def test_an_edit_that_is_hidden_from_a_former_member_does_not_change_what_they_find(server: Server) -> None:
    alice, bob = await server.register("alice"), await server.register("bob")
    room_id = await public_room(alice, bob)
    sent = await send(alice, room_id, "the kettle")
    await leave(bob, room_id)
    edit = {
        "msgtype": "m.text", "body": "* the teapot", "m.new_content": {"msgtype": "m.text", "body": "the teapot"},
        "m.relates_to": {"rel_type": "m.replace", "event_id": sent},
    }  # fmt: skip
    await send(alice, room_id, edit)
    assert await find(bob, "kettle") == await find(alice, "teapot") == [sent]
    assert await find(bob, "teapot") == await find(alice, "kettle") == []


# --- what is refused ---


async def test_malformed_searches_are_refused(server: Server) -> None:
    alice = await server.register("alice")
    for asked in [
        {"search_term": "a" * 513},
        {"search_term": " ".join(f"word{number}" for number in range(25))},
        {"search_term": 7},
        {"search_term": "kettle", "order_by": "size"},
        {"search_term": "kettle", "keys": ["content.formatted_body"]},
        {"search_term": "kettle", "groupings": {"group_by": [{"key": "type"}]}},
        {"search_term": "kettle", "filter": {"rooms": "!a:b"}},
        {"search_term": "kettle", "event_context": {"before_limit": -1}},
        {},
    ]:
        with row(asked):
            response = await alice.request("POST", "search", json={"search_categories": {"room_events": asked}})
            assert response.status_code == 400


async def test_tokens_of_elsewhere_are_refused(server: Server) -> None:
    alice = await server.register("alice")
    body = {"search_categories": {"room_events": {"search_term": "kettle"}}}
    for token in ["", "x", "AAAA", "a" * 2000, "ü", "lqZyZWNlbnQBAgME", "!!!!"]:
        with row(token):
            response = await alice.request("POST", "search", json=body, params={"next_batch": token})
            assert (response.status_code, response.json()["errcode"]) == (400, "M_INVALID_PARAM")


async def test_a_search_in_no_category_finds_nothing(server: Server) -> None:
    alice = await server.register("alice")
    assert await alice.ok("POST", "search", json={"search_categories": {}}) == {"search_categories": {}}


async def test_the_time_for_long_texts_is_bounded(server: Server) -> None:
    alice = await server.register("alice")
    room_id = await create(alice)
    sent = await say(alice, room_id, *["kettle blue"] * 3, "blue kettle")
    assert await find(alice, '"blue kettle"') == sent[3:]
    stemmers = Stemmers()
    query = parse_query('"blue kettle"', stemmers)
    searched = Searched(requester_of(alice), query, stemmers, frozenset({BODY}), RoomEventFilter(), Narrowed())
    positions = [await server.read(find_position, event_id) for event_id in sent[::-1]]
    hits = [Hit(0.0, 0, position) for position in positions]
    checked = await server.read(check_proposals, searched, hits, 25)
    assert [match.event.event_id for match in checked.matches] == sent[3:]
    assert checked.last == hits[1], "the third text is too much"
    assert (await server.read(check_proposals, searched, hits, 1)).last == hits[0], "the first one is always read"
    assert (await server.read(check_proposals, searched, hits, 44)).last is None


def requester_of(client: Client) -> Requester:
    return Requester(client.user_id, client.device_id, is_guest=False)


async def test_long_texts_are_indexed_in_parts(server: Server) -> None:
    alice = await server.register("alice")
    room_id = await create(alice)
    length = limits.search.INDEX_TEXT_CHARACTERS_MAX
    sent = await say(alice, room_id, *[f"kettle {'x' * length} teapot"] * 3)
    first, last = [await server.read(find_position, event_id) for event_id in (sent[0], sent[-1])]
    assert (await server.read(read_span, first - 1, last)).upto == last
    assert await find(alice, "kettle") == sent[::-1]
    assert await find(alice, "teapot") == [], "only the beginning is searched"


async def test_many_changes_are_indexed_before_anyone_searches(server: Server) -> None:
    alice = await server.register("alice")
    room_id = await create(alice)
    await say(alice, room_id, "kettle")
    index = server.hs.search
    assert index is not None
    await trio.sleep(limits.search.INDEX_DELAY_SECONDS + 1)
    assert (await index.call("status"))["documents"] == 1, "after a while"
    many = limits.search.INDEX_WAITING_MAX + 1
    await say(alice, room_id, *["kettle"] * many)
    await trio.sleep(1)
    assert (await index.call("status"))["documents"] == many + 1, "or if there are many"


async def test_redacted_messages_leave_the_files_by_themselves(server: Server) -> None:
    alice = await server.register("alice")
    room_id = await create(alice)
    (sent,) = await say(alice, room_id, "kettle redactedword")
    assert await find(alice, "kettle") == [sent]
    assert server.hs.search is not None
    await server.hs.search.call("store")
    await redact(alice, room_id, sent)
    await trio.sleep(2 * limits.search.INDEX_PURGE_SECONDS)
    assert read_index(server) == set()


# --- the simple form ---


async def find_simply(client: Client, q: str, **query: Any) -> list[str]:
    answer = await client.ok("GET", "/_homeserver/client/v1/search", params={"q": q, **query})
    return ids(answer)


async def test_the_simple_form_finds_the_same(server: Server) -> None:
    alice, bob = await server.register("alice"), await server.register("bob")
    tea, cake = await public_room(alice, bob), await public_room(alice, bob)
    first = await send(alice, tea, "kettle https://kettle.example/")
    second = await send(bob, cake, {"msgtype": "m.image", "body": "kettle.jpg", "url": "mxc://test.example/x"})
    assert await find_simply(alice, "kettle") == [second, first]
    assert await find_simply(alice, "kettle", room_id=tea) == await find_simply(alice, "kettle", has="link") == [first]
    assert await find_simply(alice, "kettle", sender=bob.user_id) == [second]
    assert await find_simply(alice, "kettle", has="image,file") == [second]
    assert await find_simply(alice, "kettle", has="file") == []
    page = await alice.ok("GET", "/_homeserver/client/v1/search", params={"q": "kettle", "limit": 1})
    assert ids(page) == [second]
    assert await find_simply(alice, "kettle", **{"limit": 1, "from": page["next_batch"]}) == [first]
    moment = page["results"][0]["result"]["origin_server_ts"]
    assert await find_simply(alice, "kettle", before=moment + 1) == [second, first]
    assert await find_simply(alice, "kettle", after=moment + 1) == []
    refused = await alice.refused("GET", "/_homeserver/client/v1/search", params={"q": "kettle", "has": "smell"})
    assert refused == (400, "M_INVALID_PARAM")


async def test_a_server_without_search_does_not_know_the_operation(homeservers: Homeservers) -> None:
    server = await homeservers.start(search=SearchSection(enabled=False))
    alice = await server.register("alice")
    body = {"search_categories": {"room_events": {"search_term": "kettle"}}}
    assert await alice.refused("POST", "search", json=body) == (404, "M_UNRECOGNIZED")


# --- what is not in the index any more ---


@pytest.mark.parametrize("engine", ["whoosh", "fts5"])
async def test_redacted_messages_and_those_of_erased_users_leave_the_files(
    homeservers: Homeservers, engine: str
) -> None:
    server = await homeservers.start(search=SearchSection(engine=engine), at_rest=AtRest(events=False))
    alice, bob, carol = [await server.register(name) for name in ("alice", "bob", "carol")]
    room_id = await public_room(alice, bob, carol)
    (redacted,) = await say(alice, room_id, "kettle redactedword")
    await say(bob, room_id, "kettle erasedword")
    (kept,) = await say(carol, room_id, "kettle keptword")
    assert len(await find(alice, "kettle")) == 3
    index = server.hs.search
    assert index is not None
    await index.call("store")
    assert read_index(server) >= {b"redactedword", b"erasedword", b"keptword"}
    await redact(alice, room_id, redacted)
    await bob.ok("POST", "account/deactivate", json={"erase": True, "auth": bob.password_auth()})
    assert await find(alice, "kettle") == await find(carol, "kettle") == [kept]
    await merge(index, deletions=True)
    assert read_index(server) & {b"redactedword", b"erasedword", b"keptword"} == {b"keptword"}


def read_index(server: Server) -> set[bytes]:
    """Returns the words in the files of the index."""
    files = [path for path in server.hs.config.data_path("search").rglob("*") if path.is_file()]
    return {word for path in files for word in re.findall(rb"[a-z]+word", path.read_bytes())}


# --- a first index ---


@pytest.mark.parametrize("engine", ["whoosh", "fts5"])
async def test_a_first_index_begins_with_the_newest_messages(homeserver: Server, tmp_path: Path, engine: str) -> None:
    alice = await homeserver.register("alice")
    room_id = await homeserver.make_room(alice)
    texts = [f"kettle number{number}" for number in range(1200)]
    positions = await homeserver.write(_say_all, alice.user_id, room_id, texts)
    database = homeserver.hs.database
    index = Service("homeserver.search.service:Service", str(tmp_path / "index"), engine, inline=True)

    async def find(query: str) -> list[int]:
        hits, _ = await index.call("search", query, {"limit": 2000}, 60.0)
        return [hit[2] for hit in hits]

    await catch_up(database, index, positions[-1])
    newest = await find("kettle")
    assert newest == positions[::-1][: len(newest)] and 300 < len(newest) < 1200, "the newest ones, without a gap"
    (later,) = await homeserver.write(_say_all, alice.user_id, room_id, ["kettle later"])
    await catch_up(database, index, later)
    assert (await find("kettle"))[0] == later
    while await fill(database, index):
        some = await find("kettle")
        assert some == [later, *positions[::-1]][: len(some)]
    assert await find("kettle") == [later, *positions[::-1]]
    assert await find("number0") == positions[:1]
    assert not await fill(database, index)
    await index.aclose()


def _say_all(tx: Transaction, user_id: UserID, room_id: RoomID, texts: list[str]) -> list[int]:
    positions = []
    for text in texts:
        draft = Draft(room_id, user_id, "m.room.message", {"msgtype": "m.text", "body": text})
        position = find_position(tx, append_local(tx, draft).event_id)
        assert position is not None
        positions.append(position)
    return positions
