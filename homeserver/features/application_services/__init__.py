"""Application services: bridges and bots that act for many users, and are sent what concerns them.

Spec: application-service-api/

- `interest` decides what concerns an application service, `transactions` and `encryption` make of it what is sent,
  `delivery` sends it, and `storage` has how far it has got. `status` is what administrators see of that.
- `ping` answers an application service that asks whether it can be reached, and `directory` keeps the room directories
  of its networks.
- As whom an application service acts is decided by `homeserver.users.application_services`. It is asked questions by
  `homeserver.remote.application_services`. Its registration is read by `homeserver.config.application_services`.
"""

from __future__ import annotations

from collections.abc import Sequence

from homeserver.api.routes import Routes
from homeserver.feature import Feature
from homeserver.features.application_services.delivery import Deliveries
from homeserver.features.application_services.directory import routes as directory_routes
from homeserver.features.application_services.ping import routes as ping_routes
from homeserver.features.application_services.storage import SCHEMA

__all__ = ["SCHEMA", "feature_of"]


routes = Routes()
routes.include(ping_routes)
routes.include(directory_routes)


def feature_of(features: Sequence[Feature]) -> Feature:
    """Returns the feature that sends application services the events of rooms, and the ephemeral data of `features`."""
    sources = tuple(feature.ephemeral for feature in features if feature.ephemeral is not None)
    return Feature(
        name="application_services",
        spec="application-service-api/",
        schema=SCHEMA,
        routes=routes,
        background=(Deliveries(sources).run,),
    )
