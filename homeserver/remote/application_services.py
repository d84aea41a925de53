"""Requests to application services. Spec: application-service-api/#homeserver---application-service-api"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Sequence
from contextlib import suppress
from functools import partial
from typing import Any
from urllib.parse import quote

import orjson
import trio

from homeserver import limits
from homeserver.config import ApplicationService
from homeserver.errors import MatrixError
from homeserver.feature import JsonObject
from homeserver.federation.identifiers import RoomAlias, UserID, server_name_of
from homeserver.federation.wire import WireError, WireResponse
from homeserver.resources import Resources
from homeserver.rooms.aliases import find_alias
from homeserver.users.accounts import find_user

# An answer that says that the application service does not know the path, as opposed to what was asked for.
_UNKNOWN_PATH = frozenset({404, 405, 501})
# The pauses before a question is asked again that could not be asked.
_QUERY_PAUSES_S = (0.5, 1.5)


async def request(
    hs: Resources,
    service: ApplicationService,
    method: str,
    path: str,
    *,
    body: bytes | None = None,
    timeout_s: float,
    older_prefix: str = "",
) -> WireResponse:
    """Returns the response to a request to an application service, at its v1 path or else at its older one.

    path: what follows `/_matrix/app/v1`; `older_prefix` is what stands in that place in older application services.
    Raises WireError if there is no response.
    Spec: application-service-api/#authorisation, #legacy-routes
    """
    if service.url is None:
        raise WireError(f"{service.id} has no url", "refused")
    headers = {"Authorization": f"Bearer {service.hs_token}", "Content-Type": "application/json"}
    for prefix in ("/_matrix/app/v1", older_prefix):
        response = await hs.wire.request_service(
            method,
            f"{service.url}{prefix}{path}",
            headers=headers,
            body=body,
            timeout_s=timeout_s,
            max_bytes=limits.APPLICATION_SERVICE_ANSWER_BYTES_MAX,
        )
        errcode = decode(response).get("errcode", "M_UNRECOGNIZED")
        if response.status not in _UNKNOWN_PATH or errcode != "M_UNRECOGNIZED":
            break
    return response


def decode(response: WireResponse) -> JsonObject:
    """Returns the JSON object in a response; an empty one if there is something else in it."""
    try:
        answer: Any = orjson.loads(response.body)
    except orjson.JSONDecodeError:
        return {}
    return answer if isinstance(answer, dict) else {}


def describe(response: WireResponse) -> str:
    """Returns what an application service answered, for administrators: the status, and the error if it names one."""
    answer = decode(response)
    said = ": ".join(str(answer[key]) for key in ("errcode", "error") if key in answer)
    return f"HTTP {response.status}" + (f", {said}" if said else "")


# --- queries ---


async def provide_alias(hs: Resources, alias: RoomAlias, appservice: str | None = None) -> None:
    """Has an application service make a room for an alias of its namespace that leads nowhere yet.

    appservice: the application service that makes the request, which is not asked: it may be about to make the room.
    Raises MatrixError 408 M_CONNECTION_TIMEOUT if one of them cannot be asked, and the alias still leads nowhere.
    Spec: application-service-api/#querying, #get_matrixappv1roomsroomalias
    """
    if server_name_of(alias) != hs.server_name:
        return
    services = [each for each in hs.application_services if alias in each.aliases and each.id != appservice]
    if services and await hs.database.read(find_alias, alias) is None:
        is_known = await _ask_in_turn(hs, services, f"/rooms/{quote(alias, safe='')}")
        if not is_known and await hs.database.read(find_alias, alias) is None:
            raise _unanswered(alias)


async def provide_user(
    hs: Resources, user_id: UserID, appservice: str | None = None, *, inviter: UserID | None = None
) -> None:
    """Has an application service register a user of its namespace who has no account yet.

    appservice: the application service that makes the request. It is not asked, and neither is that of the `inviter`.
    Raises MatrixError 408 M_CONNECTION_TIMEOUT if one of them cannot be asked, and there is still no such user.
    Spec: application-service-api/#querying, #get_matrixappv1usersuserid
    """
    services = [
        service
        for service in hs.application_services
        if service.covers(user_id) and service.id != appservice and not (inviter and service.covers(inviter))
    ]
    if services and await hs.database.read(find_user, user_id) is None:
        is_known = await _ask_in_turn(hs, services, f"/users/{quote(user_id, safe='')}")
        if not is_known and await hs.database.read(find_user, user_id) is None:
            raise _unanswered(user_id)


def _unanswered(name: str) -> MatrixError:
    said = f"The bridge that {name} belongs to does not answer. Try again later."
    return MatrixError(408, "M_CONNECTION_TIMEOUT", said)


async def provide_invited(hs: Resources, user_id: UserID, inviter: UserID | None = None) -> None:
    """Does the same for somebody who is invited. An invitation does not fail because a bridge does not answer."""
    with suppress(MatrixError):
        await provide_user(hs, user_id, inviter=inviter)


async def provide_users(hs: Resources, user_ids: Iterable[UserID], inviter: UserID) -> None:
    """Does the same for all who are invited, at the same time."""
    if hs.application_services:
        async with trio.open_nursery() as nursery:
            for user_id in user_ids:
                nursery.start_soon(provide_invited, hs, user_id, inviter)


async def _ask_in_turn(hs: Resources, services: Sequence[ApplicationService], path: str) -> bool:
    """Asks until one of the services has what it is asked for.

    Returns False if none has it, and one that should have been asked did not answer.
    """
    are_answered = True
    for service in services:
        if service.url is None:
            continue
        try:
            response = await _ask(hs, service, path, ask=_ask_repeatedly)
        except (WireError, MatrixError):
            are_answered = False
            continue
        if response.status == 200:
            return True
        are_answered = are_answered and response.status < 500
    return are_answered


async def _ask_repeatedly(
    hs: Resources, service: ApplicationService, method: str, path: str, **options: Any
) -> WireResponse:
    """Like `request`, but tries again if there is no connection: the service may be restarting."""
    for pause_s in _QUERY_PAUSES_S:
        try:
            return await request(hs, service, method, path, **options)
        except WireError as error:
            if error.reason == "timeout":
                raise
        await trio.sleep(pause_s)
    return await request(hs, service, method, path, **options)


async def _ask(
    hs: Resources,
    service: ApplicationService,
    path: str,
    older_prefix: str = "",
    ask: Callable[..., Awaitable[WireResponse]] = request,
) -> WireResponse:
    """Asks a question. Many who ask the same at once share one request, so that nobody can flood a slow bridge.

    Raises WireError, and MatrixError 503 if too many questions wait for the service.
    """
    key = (f"questions for the application service {service.id}", path)
    seconds = limits.APPLICATION_SERVICE_QUERY_S
    begin = partial(ask, hs, service, "GET", path, timeout_s=seconds, older_prefix=older_prefix)
    return await hs.flights.join(hs.nursery, key, begin)


async def ask_all(
    hs: Resources, services: Iterable[ApplicationService], path: str
) -> list[tuple[ApplicationService, Any]]:
    """Returns what each service answers to a look-up; those that fail or do not answer in time are left out."""
    answers: list[tuple[ApplicationService, Any]] = []

    async def ask_one(service: ApplicationService) -> None:
        with suppress(WireError, MatrixError, orjson.JSONDecodeError):
            response = await _ask(hs, service, path, "/_matrix/app/unstable")
            if response.status == 200:
                answers.append((service, orjson.loads(response.body)))

    async with trio.open_nursery() as nursery:
        for service in services:
            if service.url is not None:
                nursery.start_soon(ask_one, service)
    return answers
