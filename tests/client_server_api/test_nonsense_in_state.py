"""Any value in the fields of a state event is refused, or the room keeps working."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import zip_longest
from typing import Any

import pytest

from tests.support.homeservers import Client, Server
from tests.support.people import act, all_messages, create, join, leave, path_of, say, sync
from tests.support.rows import row

USER, ROOM, ALIAS, MXC = "@bob:test.example", "!room:test.example", "#pub:test.example", "mxc://test.example/a"
ALLOW = {"type": "m.room_membership", "room_id": ROOM}

# Contents as they should be; each of their fields is then replaced by nonsense, one by one.
CONTENTS: dict[str, dict[str, Any]] = {
    "m.room.name": {"name": "Room"},
    "m.room.topic": {"topic": "T", "m.topic": {"m.text": [{"body": "T", "mimetype": "text/plain"}]}},
    "m.room.avatar": {"url": MXC, "info": {"h": 1, "w": 1, "size": 1, "mimetype": "image/png"}},
    "m.room.canonical_alias": {"alias": ALIAS, "alt_aliases": [ALIAS]},
    "m.room.join_rules": {"join_rule": "restricted", "allow": [ALLOW]},
    "m.room.history_visibility": {"history_visibility": "shared"},
    "m.room.guest_access": {"guest_access": "can_join"},
    "m.room.encryption": {"algorithm": "m.megolm.v1.aes-sha2", "rotation_period_ms": 1, "rotation_period_msgs": 1},
    "m.room.pinned_events": {"pinned": ["$event"]},
    "m.room.server_acl": {"allow": ["*"], "deny": ["evil.example"], "allow_ip_literals": False},
    "m.room.tombstone": {"body": "moved", "replacement_room": ROOM},
    "m.room.third_party_invite": {
        "display_name": "B",
        "key_validity_url": "https://id.example",
        "public_key": "abc",
        "public_keys": [{"public_key": "abc", "key_validity_url": "https://id.example"}],
    },
    "m.room.power_levels": {
        "users": {USER: 10},
        "events": {"m.room.name": 50},
        "notifications": {"room": 50},
        **dict.fromkeys(["users_default", "events_default", "invite", "historical"], 0),
        **dict.fromkeys(["state_default", "ban", "kick", "redact"], 50),
    },
    "m.room.member": {
        "membership": "join",
        "displayname": "Alice",
        "avatar_url": MXC,
        "reason": "r",
        "is_direct": True,
        "join_authorised_via_users_server": USER,
        "third_party_invite": {"display_name": "A", "signed": {"mxid": USER, "token": "t", "signatures": {}}},
    },
    "m.space.child": {"via": ["test.example"], "order": "a", "suggested": True},
    "m.space.parent": {"via": ["test.example"], "canonical": True},
}
# They decide nothing about one another, so nonsense in all of them is read at once: that is most of the work.
TOGETHER = [
    "m.room.name", "m.room.topic", "m.room.avatar", "m.room.encryption", "m.room.pinned_events", "m.room.tombstone",
    "m.room.third_party_invite", "m.space.child", "m.space.parent",
]  # fmt: skip
NONSENSE: tuple[Any, ...] = (None, True, -1, 2**53 - 1, "", "nonsense", "\0", "9" * 30, [], [[], {}], {}, {"": {}})


def replaced(content: Any) -> Iterator[Any]:
    """The content with one field or entry, however deep, replaced by each nonsense."""
    keys = list(content) if isinstance(content, dict) else range(len(content))
    for key in keys:
        for nonsense in NONSENSE:
            copy = content.copy()
            copy[key] = nonsense
            yield copy
        if isinstance(content[key], (dict, list)):
            for deeper in replaced(content[key]):
                copy = content.copy()
                copy[key] = deeper
                yield copy


async def assert_alive(alice: Client, room_id: str, since: str) -> str:
    """Checks that everything that reads a room's state still works. Returns the client's new sync token."""
    for path in (
        path_of(room_id, "state"),
        path_of(room_id, "members"),
        path_of(room_id, "joined_members"),
        path_of(room_id, "aliases"),
        "publicRooms",
    ):
        await alice.ok("GET", path)
    return str((await sync(alice, since, set_presence="offline"))["next_batch"])


async def room_with(alice: Client, bob: Client, version: str) -> str:
    room_id = await create(alice, room_version=version, preset="public_chat", visibility="public", name="Room")
    await join(bob, room_id)
    return room_id


async def try_contents(alice: Client, bob: Client, room_id: str, kinds: Sequence[str], version: str) -> str:
    """Sets every nonsensical content of those event types, one of each at a time, and reads the room after each time.

    Returns a room in which alice has power. If a content makes the room useless to alice, as power levels may, it is
    undone, or another room is used from then on.
    """
    since = (await sync(alice, set_presence="offline"))["next_batch"]
    for contents in zip_longest(*(replaced(right_content(alice, kind, version)) for kind in kinds)):
        tried = {kind: content for kind, content in zip(kinds, contents, strict=True) if content is not None}
        with row(tried):
            accepted = [kind for kind, content in tried.items() if await is_set(alice, room_id, kind, content)]
            if accepted:
                since = await assert_alive(alice, room_id, since)
            for kind in {"m.room.power_levels", "m.room.member"}.intersection(accepted):
                right = {"membership": "join"} if kind == "m.room.member" else right_content(alice, kind, version)
                response = await alice.put(path_of(room_id, "state", kind, state_key_of(alice, kind)), right)
                if response.status_code != 200:
                    room_id = await room_with(alice, bob, version)
    return room_id


def state_key_of(alice: Client, kind: str) -> str:
    if kind == "m.room.third_party_invite":
        return "token"
    return alice.user_id if kind == "m.room.member" else ROOM if kind.startswith("m.space") else ""


def right_content(alice: Client, kind: str, version: str) -> dict[str, Any]:
    if kind == "m.room.power_levels" and version != "12":
        return {**CONTENTS[kind], "users": {USER: 10, alice.user_id: 100}}
    return CONTENTS[kind]


async def is_set(alice: Client, room_id: str, kind: str, content: dict[str, Any]) -> bool:
    """Returns whether the content is accepted: then it is the room's state."""
    path = path_of(room_id, "state", kind, state_key_of(alice, kind))
    response = await alice.put(path, content)
    assert response.status_code in (200, 400, 403), f"{content}: {response.text}"
    if response.status_code != 200:
        return False
    content.pop("join_authorised_via_users_server", None)  # the server's to say
    assert await alice.ok("GET", path) == content
    return True


@pytest.mark.parametrize(
    ("kinds", "version"),
    [
        (TOGETHER, "12"),
        *(([kind], "12") for kind in CONTENTS if kind not in TOGETHER),
        (["m.room.power_levels"], "5"),
        (["m.room.power_levels"], "9"),
    ],
    ids=lambda value: value if isinstance(value, str) else value[0],
)
async def test_a_room_with_nonsense_in_its_state_keeps_working(
    server: Server, kinds: Sequence[str], version: str
) -> None:
    alice, bob = await server.register("alice"), await server.register("bob")
    room_id = await room_with(alice, bob, version)
    await alice.ok("PUT", "directory/room/%23pub%3Atest.example", json={"room_id": room_id})
    room_id = await try_contents(alice, bob, room_id, kinds, version)
    await say(alice, room_id, "still here")
    await all_messages(alice, room_id, limit=100)
    for action in ("kick", "invite"):
        await act(alice, room_id, action, bob)
    assert room_id in (await sync(bob))["rooms"]["invite"]
    await leave(bob, room_id)
    for path in (path_of(room_id, "join"), f"knock/{room_id}"):
        response = await bob.post(path, {})
        assert response.status_code in (200, 400, 403), response.text
