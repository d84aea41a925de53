"""Keys of users of other servers, for encryption: asking for them, and claiming one-time keys.

The servers of a request are asked in parallel, and those that have not answered by its deadline are reported as
failures. A server that is silent for REMOTE_KEYS_PATIENCE_S no longer counts among those that are asked at the same
time, so however many are silent, the others get their turn. Nothing that a server says is believed about anybody but
the users that it was asked for, and a key is passed on only if it has the right IDs and is signed by its owner.

Spec: server-server-api/#end-to-end-encryption
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from typing import Any, Generic, TypeVar

import msgspec
import trio

from homeserver import limits
from homeserver.errors import MatrixError
from homeserver.federation.identifiers import ServerName, UserID, server_name_of
from homeserver.federation.signed_keys import (
    InvalidKey,
    check_signed_by,
    parse_cross_signing_key,
    parse_device_keys,
    parse_one_time_key,
    signatures_by,
    with_signatures,
)
from homeserver.process.turns import Turns
from homeserver.remote.requests import ask, path_to
from homeserver.resources import Resources
from homeserver.users.encryption.one_time_keys import Claim
from homeserver.users.encryption.shown_keys import ShownKeys, Wanted

Q = TypeVar("Q")
A = TypeVar("A")


class Asked(msgspec.Struct, Generic[A]):
    """The answers of several servers, and why some gave none."""

    answers: list[A] = msgspec.field(default_factory=list)
    failures: dict[ServerName, MatrixError] = msgspec.field(default_factory=dict)


async def query_keys(hs: Resources, wanted: Wanted, timeout_s: float) -> Asked[ShownKeys]:
    """Returns the keys of users of other servers. Users that their server does not know are left out."""
    by_server: dict[ServerName, dict[UserID, Sequence[str]]] = {}
    for user_id, device_ids in wanted.items():
        by_server.setdefault(server_name_of(user_id), {})[user_id] = list(device_ids)
    questions = [(server, part) for server, users in by_server.items() for part in _parts(users)]
    return await _ask_all(questions, _query_server, hs, timeout_s)


async def claim_keys(hs: Resources, claims: Sequence[Claim], timeout_s: float) -> Asked[dict[UserID, Any]]:
    """Claims one-time keys of users of other servers. Returns them by user and device. Devices without are left out."""
    by_server: dict[ServerName, list[Claim]] = {}
    for claim in claims:
        by_server.setdefault(server_name_of(claim.user_id), []).append(claim)
    return await _ask_all(list(by_server.items()), _claim_from_server, hs, timeout_s)


async def _ask_all(
    questions: Sequence[tuple[ServerName, Q]],
    ask_server: Callable[[Resources, ServerName, Q], Awaitable[A]],
    hs: Resources,
    timeout_s: float,
) -> Asked[A]:
    asked: Asked[A] = Asked()
    turns = Turns(limits.encryption.REMOTE_KEYS_SERVERS_AT_ONCE, limits.encryption.REMOTE_KEYS_PATIENCE_S)
    unanswered = Counter(server for server, _ in questions)

    async def run(server: ServerName, question: Q) -> None:
        try:
            asked.answers.append(await ask_server(hs, server, question))
            unanswered[server] -= 1
        except MatrixError as error:
            asked.failures[server] = error

    async def take_turn(server: ServerName, question: Q) -> None:
        async with turns.take():
            await run(server, question)

    with trio.move_on_after(timeout_s):
        async with trio.open_nursery() as nursery:
            for server, question in questions:
                nursery.start_soon(take_turn, server, question)
    for server in +unanswered:
        asked.failures.setdefault(server, MatrixError(504, "M_UNKNOWN", f"{server} did not answer in time."))
    return asked


def _parts(users: Mapping[UserID, Sequence[str]]) -> Iterator[dict[UserID, Sequence[str]]]:
    listed = list(users.items())
    for start in range(0, len(listed), limits.encryption.REMOTE_KEYS_USERS_MAX):
        yield dict(listed[start : start + limits.encryption.REMOTE_KEYS_USERS_MAX])


async def _query_server(hs: Resources, server: ServerName, wanted: Mapping[UserID, Sequence[str]]) -> ShownKeys:
    """Returns the keys of users of one server. Raises MatrixError if it does not answer."""
    answer = await ask(
        hs, server, "POST", path_to("v1", "user", "keys", "query"), {"device_keys": wanted},
        timeout_s=limits.encryption.REMOTE_KEYS_SILENCE_S,
        max_bytes=limits.encryption.REMOTE_KEYS_ANSWER_BYTES_MAX,
    )  # fmt: skip
    devices = _object(answer.get("device_keys"))
    signatures = 2 * len(wanted) + sum(len(_object(devices.get(user_id))) for user_id in wanted)
    if signatures > limits.encryption.SIGNATURES_INLINE_MAX:
        return await hs.workers.run(check_keys, answer, wanted)
    return check_keys(answer, wanted)


def check_keys(answer: Mapping[str, Any], wanted: Mapping[UserID, Sequence[str]]) -> ShownKeys:
    """Returns what is good of a server's answer to a query: keys of the wanted users and devices, signed by them."""
    shown = ShownKeys()
    device_keys = _object(answer.get("device_keys"))
    master_keys = _object(answer.get("master_keys"))
    self_signing_keys = _object(answer.get("self_signing_keys"))
    for user_id, device_ids in wanted.items():
        if isinstance(device_keys.get(user_id), dict):
            shown.device_keys[user_id] = _check_devices(device_keys[user_id], user_id, set(device_ids))
        check_signing_keys(shown, user_id, master_keys.get(user_id), self_signing_keys.get(user_id))
    return shown


def check_signing_keys(shown: ShownKeys, user_id: UserID, master_key: object, self_signing_key: object) -> None:
    """Adds what is good of a user's cross-signing keys, as another server tells them."""
    try:
        master = parse_cross_signing_key(master_key, user_id, "master")
        shown.master_keys[user_id] = _with_own_signatures(master.content, user_id)
        self_signing = parse_cross_signing_key(self_signing_key, user_id, "self_signing")
        check_signed_by(self_signing, user_id, master)
        shown.self_signing_keys[user_id] = _with_own_signatures(self_signing.content, user_id)
    except InvalidKey:
        return  # the user has no such key, or one that nobody could use


def check_device(keys: object, user_id: str, device_id: str, name: object) -> dict[str, Any]:
    """Returns the keys of a device as they are shown, with its name. Raises InvalidKey if they are not good."""
    content = _with_own_signatures(parse_device_keys(keys, user_id, device_id).content, user_id)
    if isinstance(name, str):
        content["unsigned"] = {"device_display_name": name[: limits.DEVICE_NAME_CHARACTERS_MAX]}
    return content


def _check_devices(devices: Mapping[str, Any], user_id: UserID, wanted: set[str]) -> dict[str, Any]:
    checked: dict[str, Any] = {}
    for device_id, keys in devices.items():
        if wanted and device_id not in wanted:
            continue
        if len(checked) >= limits.DEVICES_PER_USER_MAX:
            break
        name = _object(_object(keys).get("unsigned")).get("device_display_name")
        try:
            checked[device_id] = check_device(keys, user_id, device_id, name)
        except InvalidKey:
            continue
    return checked


def _with_own_signatures(content: Mapping[str, Any], user_id: str) -> dict[str, Any]:
    """Returns a key with the signatures of its owner's keys. Those of others tell who has verified whom."""
    return with_signatures(content, {user_id: signatures_by(content, user_id)})


async def _claim_from_server(hs: Resources, server: ServerName, claims: Sequence[Claim]) -> dict[UserID, Any]:
    wanted: dict[UserID, dict[str, str]] = {}
    for claim in claims:
        wanted.setdefault(claim.user_id, {})[claim.device_id] = claim.algorithm
    answer = await ask(
        hs, server, "POST", path_to("v1", "user", "keys", "claim"), {"one_time_keys": wanted},
        timeout_s=limits.encryption.REMOTE_KEYS_SILENCE_S,
        max_bytes=limits.encryption.REMOTE_KEYS_ANSWER_BYTES_MAX,
    )  # fmt: skip
    given = _object(answer.get("one_time_keys"))
    claimed: dict[UserID, Any] = {}
    for claim in claims:
        keys = _object(_object(given.get(claim.user_id)).get(claim.device_id))
        for name, key in keys.items():
            try:
                is_wanted = parse_one_time_key(name, key).algorithm == claim.algorithm
            except InvalidKey:
                continue
            if is_wanted:
                claimed.setdefault(claim.user_id, {})[claim.device_id] = {name: key}
                break
    return claimed


def _object(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}
