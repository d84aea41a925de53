"""Requests to application services. Spec: application-service-api/#homeserver---application-service-api"""

from __future__ import annotations

from typing import Any

import orjson

from homeserver import limits
from homeserver.config import ApplicationService
from homeserver.feature import JsonObject
from homeserver.federation.wire import WireError, WireResponse
from homeserver.resources import Resources

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
