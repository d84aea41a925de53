"""Claiming one-time keys of devices of any server. Spec: client-server-api/#post_matrixclientv3keysclaim"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
import orjson

from homeserver import limits
from homeserver.api.routes import Routes
from homeserver.authenticate import Requester, limit_requester
from homeserver.errors import invalid_param
from homeserver.feature import JsonObject
from homeserver.features.encryption_keys.queries import (
    check_local,
    failures_body,
    limit_origin,
    parse_owner,
    read_timeout_s,
)
from homeserver.federation.identifiers import ServerName, UserID
from homeserver.remote.device_keys import claim_keys as claim_remote_keys
from homeserver.resources import Resources
from homeserver.users.accounts import is_local
from homeserver.users.encryption.one_time_keys import Claim, issue_keys

routes = Routes()


class ClaimBody(msgspec.Struct, frozen=True):
    """`one_time_keys`: user ID → device ID → algorithm. `timeout`: how long to wait for other servers, in ms."""

    one_time_keys: dict[str, dict[str, str]]
    timeout: int | None = None


class FederationClaimBody(msgspec.Struct, frozen=True):
    """`one_time_keys`: user ID → device ID → algorithm. All users belong to this server."""

    one_time_keys: dict[str, dict[str, str]]


@routes.post("/_matrix/client/v3/keys/claim", allow_guest=True, allow_suspended=True)
async def claim_keys(hs: Resources, requester: Requester, body: ClaimBody) -> JsonObject:
    claims = _parse_claims(body.one_time_keys)
    limit_requester(hs, requester, "encryption_keys", len(claims))
    local = [claim for claim in claims if is_local(hs, claim.user_id)]
    remote = [claim for claim in claims if not is_local(hs, claim.user_id)]
    keys = await _issue(hs, local)
    failures: JsonObject = {}
    if remote:
        asked = await claim_remote_keys(hs, remote, read_timeout_s(body.timeout))
        failures = failures_body(asked.failures)
        for answer in asked.answers:
            keys |= answer
    return {"one_time_keys": keys, "failures": failures}


@routes.post("/_matrix/federation/v1/user/keys/claim", rate_limit="federation")
async def claim_user_encryption_keys(hs: Resources, origin: ServerName, body: FederationClaimBody) -> JsonObject:
    claims = _parse_claims(body.one_time_keys)
    check_local(hs, {claim.user_id for claim in claims})
    limit_origin(hs, origin, len(claims))
    return {"one_time_keys": await _issue(hs, claims)}


def _parse_claims(given: Mapping[str, Mapping[str, str]]) -> list[Claim]:
    if sum(map(len, given.values())) > limits.encryption.KEY_CLAIM_DEVICES_MAX:
        raise invalid_param(f"At most {limits.encryption.KEY_CLAIM_DEVICES_MAX} devices in one claim of keys.")
    return [
        Claim(owner, device_id, algorithm)
        for user_id, devices in given.items()
        for owner in [parse_owner(user_id)]
        for device_id, algorithm in devices.items()
    ]


async def _issue(hs: Resources, claims: Sequence[Claim]) -> dict[UserID, Any]:
    """Returns the keys of users of this server by user and device, as they are sent."""
    keys: dict[UserID, Any] = {}
    for start in range(0, len(claims), limits.encryption.KEY_CLAIMS_PER_WRITE):
        part = claims[start : start + limits.encryption.KEY_CLAIMS_PER_WRITE]
        for issued in await hs.database.write(issue_keys, part):
            of_user = keys.setdefault(issued.claim.user_id, {})
            of_user[issued.claim.device_id] = {issued.name: orjson.Fragment(issued.key)}
    return keys
