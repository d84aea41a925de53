"""The versions of the specification that this server speaks. Spec: client-server-api/#api-versions"""

from __future__ import annotations

from homeserver.api.routes import Routes
from homeserver.authenticate import Requester
from homeserver.feature import Feature, JsonObject
from homeserver.resources import Resources

VERSIONS = tuple(f"v1.{minor}" for minor in range(1, 20))
UNSTABLE_FEATURES: dict[str, bool] = {}

routes = Routes()


@routes.get("/_matrix/client/versions", rate_limit="")
async def get_versions(hs: Resources, requester: Requester | None) -> JsonObject:
    return {"versions": VERSIONS, "unstable_features": UNSTABLE_FEATURES}


FEATURE = Feature(name="versions", spec="client-server-api/#api-versions", routes=routes)
