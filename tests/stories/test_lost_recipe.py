"""The lost recipe: a mushroom society on two servers looks for what was said a year ago. Read it from top to bottom.

Alice lives at a.example and keeps the society's papers, Bob lives at b.example. Carol, at b.example too, came later.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import trio

from tests.support.archive import archive_all
from tests.support.federation import Federation, create_room, invite, join, send_text, wait_text
from tests.support.homeservers import Client, now_ms

OURS = "/_homeserver/client/v1"
DAY_MS = 24 * 3600 * 1000


@dataclass
class Calendar:
    """The time of day on both servers."""

    ahead_ms: int = 0

    def now_ms(self) -> int:
        return now_ms() + self.ahead_ms


async def find(client: Client, q: str, **query: Any) -> list[str]:
    """Returns the texts that the simple form of a search finds, the newest first."""
    answer = await client.ok("GET", f"{OURS}/search", params={"q": q, **query})
    assert answer["count"] == len(answer["results"])
    return [_shown(each["result"]) for each in answer["results"]]


def _shown(event: dict[str, Any]) -> str:
    """Returns what a client shows of a message: what the latest edit says, which comes with it."""
    edited = event["unsigned"].get("m.relations", {}).get("m.replace")
    return str(event["content"]["body"] if edited is None else edited["content"]["m.new_content"]["body"])


async def edit(client: Client, room_id: str, event_id: str, text: str) -> None:
    relation = {"rel_type": "m.replace", "event_id": event_id}
    new = {"msgtype": "m.text", "body": text}
    body = {**new, "body": f"* {text}", "m.new_content": new, "m.relates_to": relation}
    await client.ok("PUT", f"rooms/{room_id}/send/m.room.message/edit-{event_id[1:9]}", json=body)


async def test_a_lost_recipe_is_found_a_year_later(federation: Federation) -> None:
    federation.network.latency_s = 0.03
    calendar = Calendar()
    a = await federation.start("a.example", clock=calendar.now_ms)
    b = await federation.start("b.example", clock=calendar.now_ms)
    alice, bob, carol = await a.register("alice"), await b.register("bob"), await b.register("carol")

    # Spring. The society has a room for recipes, with people of both servers, and the board has one of its own.
    history = {"type": "m.room.history_visibility", "content": {"history_visibility": "joined"}}
    recipes = await create_room(alice, preset="private_chat", name="Recipes", initial_state=[history])
    board = await create_room(alice, preset="private_chat", name="Board")
    await invite(alice, recipes, bob.user_id)
    await join(bob, recipes, a.name)
    await send_text(bob, recipes, "My grandmother's soup: chanterelles, cream, and two kilos of Pilze")
    await send_text(
        bob, recipes, "The proportions are in grandmother_soup-v2.txt, see https://soup.example/chanterelle"
    )
    await send_text(alice, recipes, "Lovely! 松茸ご飯 would be my answer to that")
    await send_text(alice, recipes, "I had qwen3.6 translate it: a café classic")
    await wait_text(bob, recipes, "I had qwen3.6 translate it: a café classic")
    wrong = await send_text(bob, recipes, "Never boil the morels")
    secret = await send_text(bob, recipes, "The chanterelles grow behind the old mill")
    await wait_text(alice, recipes, "The chanterelles grow behind the old mill")
    await send_text(alice, board, "Bob's chanterelle soup wins the prize, do not tell him")

    # A year goes by, with other talk. Whatever is old has moved into the archive, on both servers.
    calendar.ahead_ms += 365 * DAY_MS
    for number in range(30):
        await send_text(alice, recipes, f"Walk number {number}: nothing but chanterelles")
    last = "Walk number 29: nothing but chanterelles"
    await wait_text(bob, recipes, last)
    for server in (a, b):
        await archive_all(server.hs)

    # "What was that soup?" Bob types what he remembers. A part of a word's forms is enough, in both languages.
    assert await find(bob, "soup chanterelle") == [
        "The proportions are in grandmother_soup-v2.txt, see https://soup.example/chanterelle",
        "My grandmother's soup: chanterelles, cream, and two kilos of Pilze",
    ]
    assert await find(bob, "Pilz") == ["My grandmother's soup: chanterelles, cream, and two kilos of Pilze"]

    # So is a part of a file name, of a version, of an address, of a word in another script, or one without its accent.
    for words in ("grandmother_soup", "soup.example", "v2"):
        assert len(await find(bob, words)) == 1, words
    for words in ("qwen", "qwen3.6", "cafe", '"a cafe classic"', "trans*"):
        assert await find(alice, words) == ["I had qwen3.6 translate it: a café classic"], words
    assert await find(alice, "松茸") == ["Lovely! 松茸ご飯 would be my answer to that"]

    # The newest come first, and a page says where the next one begins. By sender, link and time there is less to read.
    page = await alice.ok("GET", f"{OURS}/search", params={"q": "chanterelle", "room_id": recipes, "limit": 20})
    assert page["results"][0]["result"]["content"]["body"] == last
    following = {"q": "chanterelle", "room_id": recipes, "limit": 20, "from": page["next_batch"]}
    page = await alice.ok("GET", f"{OURS}/search", params=following)
    assert page["results"][-1]["result"]["content"]["body"].startswith("My grandmother's soup")
    assert len(await find(alice, "chanterelle", sender=bob.user_id)) == 3
    assert len(await find(alice, "chanterelle", has="link")) == 1
    spring = calendar.now_ms() - 200 * DAY_MS
    assert len(await find(alice, "chanterelle", before=spring, room_id=recipes)) == 3

    # A client that shows a result opens what was said around it, though all of it lies in the archive.
    category = {"search_term": "morels", "order_by": "recent", "event_context": {"before_limit": 1, "after_limit": 1}}
    answer = await bob.ok("POST", "search", json={"search_categories": {"room_events": category}})
    (result,) = answer["search_categories"]["room_events"]["results"]
    assert result["result"]["event_id"] == wrong
    assert [each["content"]["body"] for each in result["context"]["events_before"]] == [
        "I had qwen3.6 translate it: a café classic"
    ]
    assert [each["content"]["body"] for each in result["context"]["events_after"]] == [
        "The chanterelles grow behind the old mill"
    ]

    # Bob corrects himself, and deletes what he should not have told. Both take effect at once, on both servers.
    await edit(bob, recipes, wrong, "Always boil the morels, for five minutes")
    await bob.ok("PUT", f"rooms/{recipes}/redact/{secret}/r1", json={})
    await trio.sleep(10)
    for person in (alice, bob):
        assert await find(person, "never morels") == await find(person, "old mill") == []
        assert await find(person, "boil minutes") == ["Always boil the morels, for five minutes"]

    # What the board said is for the board. Neither a result nor a number tells Bob that there is something.
    assert await find(bob, "prize") == []
    assert len(await find(alice, "prize")) == 1

    # Carol comes. The room's past is for those who were there, so she finds what is said from now on.
    await invite(alice, recipes, carol.user_id)
    await trio.sleep(10)
    await join(carol, recipes, a.name)
    await send_text(bob, recipes, "Welcome! There is soup at six")
    await wait_text(carol, recipes, "Welcome! There is soup at six")
    assert await find(carol, "soup") == ["Welcome! There is soup at six"]
    assert await find(carol, "boil") == []

    # At night a disk loses the index of b.example. In the morning it is there again: it is made of the messages.
    await federation.kill("b.example")
    for path in b.hs.config.data_path("search").rglob("*"):
        if path.is_file():
            path.write_bytes(b"nothing but spores")
    b = await federation.start("b.example", clock=calendar.now_ms)
    assert len(await find(b.with_token(bob.token), "Pilze")) == 1
    assert await find(b.with_token(carol.token), "soup") == ["Welcome! There is soup at six"]
