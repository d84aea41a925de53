"""Discovery documents, if `public.serve_well_known` is on: base URL for clients, host and port for servers.

Spec: client-server-api/#well-known-uris, server-server-api/#getwell-knownmatrixserver
"""

from __future__ import annotations

from homeserver.api.routes import Routes
from homeserver.errors import not_found
from homeserver.feature import Feature, JsonObject
from homeserver.resources import Resources

routes = Routes()


@routes.get("/.well-known/matrix/client", rate_limit="")
async def get_wellknown(hs: Resources) -> JsonObject:
    _check_served(hs)
    return hs.config.client_discovery()


@routes.get("/.well-known/matrix/server", rate_limit="")
async def get_wellknown_server(hs: Resources) -> JsonObject:
    _check_served(hs)
    return {"m.server": hs.config.federation_address}


def _check_served(hs: Resources) -> None:
    if not hs.config.public.serve_well_known:
        raise not_found("This server does not serve discovery documents.")


FEATURE = Feature(name="well_known", spec="client-server-api/#well-known-uris", routes=routes)
