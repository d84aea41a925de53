"""Each one-time key is issued once, whatever happens at the same time and in between: a property of the storage."""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Sequence
from itertools import cycle

import trio
from hypothesis import given
from hypothesis import strategies as st

from homeserver import users
from homeserver.authenticate import SCHEMA as AUTHENTICATE
from homeserver.database import Database, Schema
from homeserver.federation.identifiers import UserID
from homeserver.federation.signed_keys import OneTimeKey, parse_one_time_key
from homeserver.rooms import SCHEMAS as ROOMS
from homeserver.users.encryption.one_time_keys import (
    Claim,
    count_keys,
    issue_keys,
    store_fallback_keys,
    store_one_time_keys,
)
from tests.support.database import opened
from tests.support.keys import SIGNED, Device

ALICE = UserID("@alice:test.example")
DEVICES = ("PHONE", "LAPTOP")
FALLBACK = "FALLBACK"

Step = tuple[str, int, int]

# Uploads of keys by their numbers, which repeat, as if answers had been lost; claims of so many keys; restarts.
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("upload"), st.integers(0, 30), st.integers(1, 8)),
        st.tuples(st.just("claim"), st.integers(0, 1), st.integers(1, 6)),
        st.tuples(st.just("restart"), st.just(0), st.just(0)),
    ),
    min_size=1,
    max_size=30,
)


def schemas() -> Sequence[Schema]:
    return (AUTHENTICATE, *ROOMS, *users.SCHEMAS)


def one_time_key(device_id: str, number: int) -> OneTimeKey:
    return parse_one_time_key(f"{SIGNED}:{number:04}", Device(ALICE, device_id).one_time_key(str(number)))


async def upload(database: Database, first: int, count: int) -> None:
    device_id = DEVICES[first % 2]
    keys = [one_time_key(device_id, number) for number in range(first, first + count)]
    await database.write(store_one_time_keys, ALICE, device_id, keys)


async def claim(database: Database, device: int, count: int, issued: Counter[tuple[str, str]]) -> None:
    """Notes the keys that one claim gets, of both devices in turn."""
    claims = [Claim(ALICE, DEVICES[(device + number) % 2], SIGNED) for number in range(count)]
    for each in await database.write(issue_keys, claims):
        issued[each.claim.device_id, each.name] += 1


async def run(database: Database, steps: Sequence[Step], issued: Counter[tuple[str, str]]) -> None:
    """All the steps at the same time."""
    async with trio.open_nursery() as nursery:
        for kind, first, count in steps:
            if kind == "upload":
                nursery.start_soon(upload, database, first, count)
            else:
                nursery.start_soon(claim, database, first, count, issued)


def split(steps: Sequence[Step]) -> list[list[Step]]:
    """The steps between restarts."""
    parts: list[list[Step]] = [[]]
    for step in steps:
        if step[0] == "restart":
            parts.append([])
        else:
            parts[-1].append(step)
    return parts


@given(STEPS)
def test_no_key_is_issued_twice(steps: list[Step]) -> None:
    """Regardless of how uploads, claims and restarts of the server are interleaved."""

    async def play() -> None:
        issued: Counter[tuple[str, str]] = Counter()
        with tempfile.TemporaryDirectory() as folder:
            for part in split(steps):
                async with opened(f"sqlite:{folder}/test.db", *schemas()) as database:
                    await run(database, part, issued)
            async with opened(f"sqlite:{folder}/test.db", *schemas()) as database:
                left = [await database.read(count_keys, ALICE, device_id) for device_id in DEVICES]
        uploaded = {
            (DEVICES[first % 2], number)
            for kind, first, count in steps
            if kind == "upload"
            for number in range(first, first + count)
        }
        assert set(issued.values()) <= {1}
        assert sum(counts.one_time[SIGNED] for counts in left) == len(uploaded) - len(issued)

    trio.run(play)


async def test_two_nodes_issue_no_key_twice(postgres_url: str) -> None:
    async with opened(postgres_url, *schemas()) as one, opened(postgres_url, *schemas()) as two:
        fallback = parse_one_time_key(f"{SIGNED}:{FALLBACK}", Device(ALICE, "PHONE").one_time_key("F", fallback=True))
        await one.write(store_fallback_keys, ALICE, "PHONE", [fallback])
        issued: Counter[tuple[str, str]] = Counter()
        nodes = cycle((one, two))
        for first in (0, 20):
            async with trio.open_nursery() as nursery:
                for number in range(20):
                    nursery.start_soon(upload, next(nodes), first + 2 * (number // 4), 4)
                for number in range(40):
                    nursery.start_soon(claim, next(nodes), number, 2, issued)
        async with trio.open_nursery() as nursery:
            for number in range(40):
                nursery.start_soon(claim, next(nodes), number, 2, issued)
        assert issued.pop(("PHONE", f"{SIGNED}:{FALLBACK}")) > 1
        assert set(issued.values()) == {1}
        assert {name for _, name in issued} == {f"{SIGNED}:{number:04}" for number in (*range(12), *range(20, 32))}
