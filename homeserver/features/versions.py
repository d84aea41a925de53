"""The supported versions of the specification. Spec: client-server-api/#api-versions"""

from __future__ import annotations

from collections.abc import Sequence

from homeserver.api.routes import Routes
from homeserver.authenticate import Requester
from homeserver.feature import Feature, JsonObject, combine
from homeserver.resources import Resources

VERSIONS = tuple(f"v1.{minor}" for minor in range(1, 20))


def feature_of(features: Sequence[Feature]) -> Feature:
    """Returns the feature that serves the versions, and the unstable features of `features`.

    Raises ValueError if two declare the same unstable feature.
    """
    unstable_features = combine("unstable features", (feature.unstable_features for feature in features))
    routes = Routes()

    @routes.get("/_matrix/client/versions", rate_limit="")
    async def get_versions(hs: Resources, requester: Requester | None) -> JsonObject:
        return {"versions": VERSIONS, "unstable_features": unstable_features}

    return Feature(name="versions", spec="client-server-api/#api-versions", routes=routes)
