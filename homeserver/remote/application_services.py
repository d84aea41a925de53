"""Requests to application services. Spec: application-service-api/#homeserver---application-service-api"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import suppress
from typing import Any
from urllib.parse import quote

import orjson
import trio

from homeserver import limits
from homeserver.config import ApplicationService
from homeserver.feature import JsonObject
from homeserver.federation.identifiers import RoomAlias, UserID
from homeserver.federation.wire import WireError, WireResponse
from homeserver.resources import Resources
from homeserver.rooms.aliases import find_alias
from homeserver.users.accounts import find_user

# An answer that says that the application service does not know the path, as opposed to what was asked for.
_UNKNOWN_PATH = frozenset({404, 405, 501})


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


async def provide_alias(hs: Resources, alias: RoomAlias) -> None:
    """Has an application service make a room for an alias of its namespace that leads nowhere yet.

    Spec: application-service-api/#get_matrixappv1roomsroomalias
    """
    services = [service for service in hs.application_services if service.url and alias in service.aliases]
    if services and await hs.database.read(find_alias, alias) is None:
        await _ask_in_turn(hs, services, f"/rooms/{quote(alias, safe='')}")


async def provide_user(hs: Resources, user_id: UserID) -> None:
    """Has an application service register a user of its namespace who has no account yet.

    Spec: application-service-api/#get_matrixappv1usersuserid
    """
    services = [service for service in hs.application_services if service.url and service.covers(user_id)]
    if services and await hs.database.read(find_user, user_id) is None:
        await _ask_in_turn(hs, services, f"/users/{quote(user_id, safe='')}")


async def _ask_in_turn(hs: Resources, services: Sequence[ApplicationService], path: str) -> None:
    """Asks until one of the services has what it is asked for. One that does not answer has nothing."""
    for service in services:
        with suppress(WireError):
            response = await request(hs, service, "GET", path, timeout_s=limits.APPLICATION_SERVICE_QUERY_S)
            if response.status == 200:
                return


async def ask_all(hs: Resources, services: Iterable[ApplicationService], path: str) -> list[Any]:
    """Returns what each service answers to a look-up; those that fail or do not answer in time are left out."""
    answers: list[Any] = []

    async def ask_one(service: ApplicationService) -> None:
        with suppress(WireError, orjson.JSONDecodeError):
            response = await request(
                hs, service, "GET", path,
                timeout_s=limits.APPLICATION_SERVICE_QUERY_S, older_prefix="/_matrix/app/unstable",
            )  # fmt: skip
            if response.status == 200:
                answers.append(orjson.loads(response.body))

    async with trio.open_nursery() as nursery:
        for service in services:
            if service.url is not None:
                nursery.start_soon(ask_one, service)
    return answers
