"""Ping: an application service asks this server to reach it. Spec: application-service-api/#pinging"""

from __future__ import annotations

import msgspec
import trio

from homeserver import limits
from homeserver.api.routes import Routes
from homeserver.authenticate import Requester
from homeserver.encoding import to_json
from homeserver.errors import MatrixError, forbidden
from homeserver.feature import JsonObject
from homeserver.features.application_services.storage import delete_pause, find_progress
from homeserver.federation.wire import WireError
from homeserver.remote.application_services import request
from homeserver.resources import Resources

routes = Routes()

_BODY_SHOWN_MAX = 2_000


class PingBody(msgspec.Struct, frozen=True, omit_defaults=True):
    transaction_id: str | None = None


@routes.post("/_matrix/client/v1/appservice/{appservice_id}/ping")
async def ping_appservice(hs: Resources, requester: Requester, appservice_id: str, body: PingBody) -> JsonObject:
    service = hs.application_services.find(requester.appservice)
    if service is None or service.id != appservice_id:
        raise forbidden("This is for the application service itself, with its own token.")
    if service.url is None:
        raise MatrixError(400, "M_URL_NOT_SET", "The registration of this application service has no url.")
    begun_s = trio.current_time()
    try:
        response = await request(
            hs, service, "POST", "/ping", body=to_json(body), timeout_s=limits.APPLICATION_SERVICE_TIMEOUT_S
        )
    except WireError as error:
        status, errcode = (504, "M_CONNECTION_TIMEOUT") if error.reason == "timeout" else (502, "M_CONNECTION_FAILED")
        raise MatrixError(status, errcode, f"The application service cannot be reached: {error}.") from error
    if not 200 <= response.status < 300:
        refusal = MatrixError(502, "M_BAD_STATUS", f"The application service answered with status {response.status}.")
        refusal.extra |= {"status": response.status, "body": response.body[:_BODY_SHOWN_MAX].decode("utf-8", "replace")}
        raise refusal
    duration_ms = int((trio.current_time() - begun_s) * 1000)
    progress = await hs.database.read(find_progress, service.id)
    if progress is not None and progress.failures:  # it was away, and is back: what waits for it need not wait on
        await hs.database.write(delete_pause, service.id)
    return {"duration_ms": duration_ms}
