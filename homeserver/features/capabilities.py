"""Capabilities of the server and the user, declared by features. Spec: client-server-api/#capabilities-negotiation"""

from __future__ import annotations

from collections.abc import Sequence

from homeserver.api.routes import Routes
from homeserver.authenticate import Requester
from homeserver.feature import Feature, JsonObject, combine
from homeserver.resources import Resources


def feature_of(features: Sequence[Feature]) -> Feature:
    """Returns the feature that serves the capabilities of `features`. Raises ValueError if two declare the same one."""
    capabilities = combine("capabilities", (feature.capabilities for feature in features))
    routes = Routes()

    @routes.get("/_matrix/client/v3/capabilities", allow_guest=True)
    async def get_capabilities(hs: Resources, requester: Requester) -> JsonObject:
        told = {name: capability(hs.config, requester) for name, capability in capabilities.items()}
        return {"capabilities": {name: each for name, each in told.items() if each is not None}}

    return Feature(name="capabilities", spec="client-server-api/#capabilities-negotiation", routes=routes)
