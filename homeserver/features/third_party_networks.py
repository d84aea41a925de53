"""Third-party networks that application services bridge to, and look-ups of their users and places.

Spec: client-server-api/#third-party-networks, application-service-api/#third-party-networks
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, TypeVar
from urllib.parse import quote

import msgspec
import trio

from homeserver.api.routes import Request, Routes
from homeserver.authenticate import Requester
from homeserver.config import ApplicationService
from homeserver.errors import not_found
from homeserver.feature import Feature, JsonObject
from homeserver.remote.application_services import ask_all
from homeserver.resources import Resources
from homeserver.rooms.aliases import Network

T = TypeVar("T")

routes = Routes()


class Protocol(msgspec.Struct, frozen=True):
    """What an application service says of a protocol. Spec: client-server-api/#definition-protocol"""

    icon: str
    field_types: dict[str, dict[str, Any]]
    user_fields: list[str]
    location_fields: list[str]
    instances: list[dict[str, Any]]


class Found(msgspec.Struct, frozen=True, omit_defaults=True):
    """A user or a place of a third-party network: one of the two IDs is set."""

    protocol: str
    fields: dict[str, Any]
    alias: str = ""
    userid: str = ""


@routes.get("/_matrix/client/v3/thirdparty/protocols")
async def get_protocols(hs: Resources, requester: Requester) -> JsonObject:
    found: dict[str, Protocol] = {}

    async def find(name: str) -> None:
        protocol = await _find_protocol(hs, name)
        if protocol is not None:
            found[name] = protocol

    async with trio.open_nursery() as nursery:
        for name in {name for service in hs.application_services for name in service.protocols}:
            nursery.start_soon(find, name)
    return dict(sorted(found.items()))


@routes.get("/_matrix/client/v3/thirdparty/protocol/{protocol}")
async def get_protocol_metadata(hs: Resources, requester: Requester, protocol: str) -> Protocol:
    found = await _find_protocol(hs, protocol)
    if found is None:
        raise not_found(f"This server has no bridge to {protocol!r}.")
    return found


async def _find_protocol(hs: Resources, name: str) -> Protocol | None:
    """Returns what the bridges to a network say of it, with all their instances; None if none of them answers.

    An instance gets an `instance_id`, by which clients ask for its room directory.
    """
    answers = await ask_all(hs, _bridges_to(hs, name), f"/thirdparty/protocol/{quote(name, safe='')}")
    found = [(service, protocol) for service, answer in answers for protocol in _valid([answer], Protocol)]
    instances = [
        {**instance, "instance_id": Network(service.id, instance["network_id"]).instance_id}
        for service, protocol in found
        for instance in protocol.instances
        if isinstance(instance.get("network_id"), str)
    ]
    return msgspec.structs.replace(found[0][1], instances=instances) if found else None


@routes.get("/_matrix/client/v3/thirdparty/location/{protocol}")
async def query_location_by_protocol(
    hs: Resources, requester: Requester, protocol: str, request: Request
) -> Sequence[Found]:
    return await _look_up(hs, _bridges_to(hs, protocol), f"/thirdparty/location/{quote(protocol, safe='')}", request)


@routes.get("/_matrix/client/v3/thirdparty/user/{protocol}")
async def query_user_by_protocol(
    hs: Resources, requester: Requester, protocol: str, request: Request
) -> Sequence[Found]:
    return await _look_up(hs, _bridges_to(hs, protocol), f"/thirdparty/user/{quote(protocol, safe='')}", request)


@routes.get("/_matrix/client/v3/thirdparty/location")
async def query_location_by_alias(hs: Resources, requester: Requester, request: Request) -> Sequence[Found]:
    return await _look_up(hs, hs.application_services, "/thirdparty/location", request)


@routes.get("/_matrix/client/v3/thirdparty/user")
async def query_user_by_id(hs: Resources, requester: Requester, request: Request) -> Sequence[Found]:
    return await _look_up(hs, hs.application_services, "/thirdparty/user", request)


def _bridges_to(hs: Resources, protocol: str) -> list[ApplicationService]:
    return [service for service in hs.application_services if protocol in service.protocols]


async def _look_up(
    hs: Resources, services: Iterable[ApplicationService], path: str, request: Request
) -> Sequence[Found]:
    """Returns what the bridges find; the parameters of the query are theirs. Raises M_NOT_FOUND if that is nothing."""
    given = [(name, value) for name, values in request.query.items() for value in values if name != "access_token"]
    query = "&".join(f"{quote(name, safe='')}={quote(value, safe='')}" for name, value in given)
    answers = await ask_all(hs, services, f"{path}?{query}" if query else path)
    listed = [each for _, answer in answers if isinstance(answer, list) for each in answer]
    found = list(_valid(listed, Found))
    if not found:
        raise not_found("No bridge of this server knows that.")
    return found


def _valid(answers: Iterable[Any], kind: type[T]) -> Iterable[T]:
    """Yields the answers that are as the spec says."""
    for answer in answers:
        try:
            yield msgspec.convert(answer, kind)
        except msgspec.ValidationError:
            continue


FEATURE = Feature(name="third_party_networks", spec="client-server-api/#third-party-networks", routes=routes)
