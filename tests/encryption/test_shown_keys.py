"""What is shown of users' keys is what a process without any cache would show, whatever has happened before.

Spec: client-server-api/#key-and-signature-security
"""

from __future__ import annotations

import tempfile
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import orjson
import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st

from homeserver import users
from homeserver.authenticate import SCHEMA as AUTHENTICATE
from homeserver.config import Config
from homeserver.database import Database, Transaction
from homeserver.database.server_identity import ServerIdentity
from homeserver.encoding import to_json
from homeserver.errors import MatrixError
from homeserver.federation.identifiers import UserID
from homeserver.federation.signed_keys import Usage, parse_cross_signing_key, parse_device_keys
from homeserver.rooms import SCHEMAS as ROOMS
from homeserver.users.accounts import create_user, set_deactivated
from homeserver.users.devices import (
    create_device,
    delete_devices_of_user,
    find_device,
    forget_devices,
    set_display_name,
)
from homeserver.users.encryption.cross_signing import (
    find_cross_signing_keys,
    forget_cross_signing,
    store_cross_signing_keys,
    store_signature,
    store_uploaded_keys,
)
from homeserver.users.encryption.device_keys import find_device_keys
from homeserver.users.encryption.device_lists import RECENT_CHANGES_MAX, note_device_list_changed
from homeserver.users.encryption.shown_keys import list_shown_keys
from tests.support.database import opened
from tests.support.examples import share_of_examples
from tests.support.keys import CrossSigning, Device
from tests.support.rooms import KEY, OURS
from tests.support.sealing import MASTER_KEYS

ALICE, BOB, CAROL, NOBODY = (UserID(f"@{name}:{OURS}") for name in ("alice", "bob", "carol", "nobody"))
PEOPLE = (ALICE, BOB, CAROL)
DEVICES = ("PHONE", "LAPTOP")
USAGES: tuple[Usage, ...] = ("master", "self_signing", "user_signing")

Step = tuple[str, int, int, int]

ACTIONS = ("upload", "name", "cross_sign", "sign_device", "sign_master", "sign_other", "others", "delete")
RARE_ACTIONS = ("many_others", "forget", "deactivate", "damage")
STEPS = st.lists(
    st.tuples(
        st.sampled_from([*ACTIONS[:-1] * 3, *ACTIONS, *RARE_ACTIONS]),
        st.integers(0, 2),
        st.integers(0, 1),
        st.integers(0, 2),
    ),
    min_size=1,
    max_size=40,
)


@asynccontextmanager
async def nodes(url: str) -> AsyncIterator[tuple[Database, Database]]:
    """Two nodes on one database, with an account for each of `PEOPLE`."""
    schemas = (AUTHENTICATE, *ROOMS, *users.SCHEMAS)
    async with opened(url, *schemas) as one:
        one.serve_as(ServerIdentity(OURS, KEY, Config(server_name=OURS, data_dir="nowhere"), MASTER_KEYS))
        for user_id in PEOPLE:
            await one.write(create_user, user_id)
        async with opened(url, *schemas, exclusive=False) as two:
            two.serve_as(ServerIdentity(OURS, KEY, Config(server_name=OURS, data_dir="nowhere"), MASTER_KEYS))
            yield one, two


def act(tx: Transaction, step: Step) -> None:
    """Does to a user's keys what a step says, as far as it can be done."""
    what, number, place, variant = step
    user_id, device_id, device = PEOPLE[number], DEVICES[place], Device(PEOPLE[number], DEVICES[place], str(variant))
    own = CrossSigning(user_id, str(variant))
    match what:
        case "upload":
            if find_device(tx, user_id, device_id) is None:
                create_device(tx, user_id, device_id, ("Phone", None, "Laptop")[variant])
            store_uploaded_keys(tx, user_id, device_id, parse_device_keys(device.keys(), user_id, device_id))
        case "name":
            set_display_name(tx, user_id, device_id, f"Name {variant}")
        case "delete":
            delete_devices_of_user(tx, user_id, [device_id] if variant else None)
        case "cross_sign":
            given = (
                own.body() if place or not find_cross_signing_keys(tx, user_id) else {"master_key": own.master_key()}
            )
            keys = {u: parse_cross_signing_key(given[f"{u}_key"], user_id, u) for u in USAGES if f"{u}_key" in given}
            store_cross_signing_keys(tx, user_id, keys)
        case "sign_device":
            stored = find_device_keys(tx, user_id, device_id)
            if stored is not None:
                store_signature(tx, user_id, user_id, device_id, own.by_self_signing(stored), None)
        case "sign_master":
            signed = device.sign(own.master_key())
            store_signature(tx, user_id, user_id, own.master.public, signed, None)
        case "sign_other":
            other = CrossSigning(PEOPLE[(number + 1) % 3], str(place))
            signed = own.by_user_signing(other.master_key())
            store_signature(tx, user_id, UserID(other.user_id), other.master.public, signed, None)
        case "forget":
            forget_cross_signing(tx, user_id)
        case "deactivate":
            set_deactivated(tx, user_id, erase=bool(variant))
            forget_devices(tx, user_id, bool(variant))
            forget_cross_signing(tx, user_id)
        case "others" | "many_others":
            for count in range(3 if what == "others" else RECENT_CHANGES_MAX):
                note_device_list_changed(tx, UserID(f"@{count}:peer.example"))
        case "damage":
            tx.run("UPDATE device_keys SET keys = ? WHERE user_nid = ?", b"{damaged", tx.find(user_id))
            note_device_list_changed(tx, user_id)


def decoded(tx: Transaction, viewer: UserID | None, device_ids: tuple[str, ...] = ()) -> dict[str, Any]:
    """Returns what a viewer is shown of everybody. Nothing is cached in a write."""
    shown = list_shown_keys(tx, dict.fromkeys((*PEOPLE, NOBODY), device_ids), viewer)
    kinds = ("device_keys", "master_keys", "self_signing_keys", "user_signing_keys")
    return {kind: orjson.loads(to_json(getattr(shown, kind))) for kind in kinds}


async def check(one: Database, two: Database) -> None:
    for viewer, device_ids in ((ALICE, ()), (BOB, DEVICES[:1]), (None, ())):
        expected = await one.write(decoded, viewer, device_ids)
        for database in (one, two):
            assert await database.read(decoded, viewer, device_ids) == expected


async def play(one: Database, two: Database, steps: list[Step]) -> None:
    for step in steps:
        try:
            await one.write(act, step)
        except (MatrixError, orjson.JSONDecodeError):  # the step does not fit, or what it changes is damaged
            pass
        await check(one, two)


@settings(max_examples=share_of_examples(0.5))
@given(STEPS)
def test_shown_keys_are_those_of_a_process_without_a_cache(steps: list[Step]) -> None:
    """On the node that changes keys and on another."""

    async def run() -> None:
        with tempfile.TemporaryDirectory() as folder:
            async with nodes(f"sqlite:{folder}/test.db") as (one, two):
                await play(one, two, steps)

    trio.run(run)


async def test_shown_keys_of_two_nodes_are_those_of_a_process_without_a_cache(database_url: str) -> None:
    async with nodes(database_url) as (one, two):
        for variant in range(3):
            steps = [(what, number, place, variant) for what in ACTIONS for number, place in ((0, 0), (1, 1))]
            await play(one, two, [*steps, ("many_others", 0, 0, 0), ("upload", 0, 1, variant), ("damage", 1, 0, 0)])
        await play(one, two, [("deactivate", number, 0, 0) for number in range(3)])


async def test_shown_keys_are_those_of_the_snapshot_even_if_a_later_one_is_cached(database_url: str) -> None:
    """A read that began before a change shows what was there, and leaves nothing behind that later reads would see."""
    has_begun, may_go_on = threading.Event(), threading.Event()
    answers: dict[str, Any] = {}

    def read_slowly(tx: Transaction) -> dict[str, Any]:
        assert tx.position
        has_begun.set()
        assert may_go_on.wait(20)
        return decoded(tx, ALICE)

    async def keep(name: str, fn: Callable[[Transaction], Any]) -> None:
        answers[name] = await database.read(fn)

    async with nodes(database_url) as (database, _):
        await database.write(act, ("upload", 0, 0, 0))
        before = await database.read(decoded, ALICE)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(keep, "slow", read_slowly)
            assert await trio.to_thread.run_sync(has_begun.wait, 20)
            await database.write(act, ("upload", 0, 0, 1))
            after = await database.read(decoded, ALICE)
            may_go_on.set()
        assert answers["slow"] == before != after
        assert await database.read(decoded, ALICE) == after


async def test_keys_of_a_write_that_failed_are_never_shown(database_url: str) -> None:
    def fail(tx: Transaction) -> None:
        act(tx, ("upload", 0, 0, 1))
        assert decoded(tx, ALICE) != before
        raise ValueError("the write fails")

    async with nodes(database_url) as (one, two):
        await one.write(act, ("upload", 0, 0, 0))
        before = await one.read(decoded, ALICE)
        with pytest.raises(ValueError, match="the write fails"):
            await one.write(fail)
        await two.write(act, ("upload", 0, 0, 2))  # at the positions that the failed write has taken
        assert await one.read(decoded, ALICE) == await two.read(decoded, ALICE) != before
