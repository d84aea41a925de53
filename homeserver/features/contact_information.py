"""Email addresses and phone numbers of an account. None can be added, as the capability m.3pid_changes says.

Spec: client-server-api/#adding-account-administrative-contact-information
"""

from __future__ import annotations

from homeserver.api.routes import Routes
from homeserver.authenticate import Requester
from homeserver.feature import Feature, JsonObject
from homeserver.resources import Resources

routes = Routes()


@routes.get("/_matrix/client/v3/account/3pid")
async def get_account_3pids(hs: Resources, requester: Requester) -> JsonObject:
    return {"threepids": []}


FEATURE = Feature(
    name="contact_information",
    spec="client-server-api/#adding-account-administrative-contact-information",
    routes=routes,
    capabilities={"m.3pid_changes": lambda config, requester: {"enabled": False}},
)
