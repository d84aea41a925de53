"""Pushers: push notifications for a user's devices, through gateways. Spec: client-server-api/#push-notifications

`settings` is what clients call, `messages` makes what a gateway is told, `delivery` tells it,
and `emails` writes emails.
"""

from __future__ import annotations

from homeserver.api.routes import Routes
from homeserver.feature import Feature
from homeserver.features.pushers import emails, settings
from homeserver.features.pushers.delivery import deliver
from homeserver.users.push.pushers import forget_pushers

routes = Routes()
routes.include(settings.routes)
routes.include(emails.routes)

FEATURE = Feature(
    name="pushers",
    spec="client-server-api/#push-notifications",
    routes=routes,
    limits=settings.LIMITS,
    background=(deliver, emails.write_emails),
    forget_user=forget_pushers,
)
