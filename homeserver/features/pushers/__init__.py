"""Pushers: push notifications for a user's devices, through gateways. Spec: client-server-api/#push-notifications

`settings` is what clients call, `messages` makes what a gateway is told, and `delivery` tells it.
"""

from __future__ import annotations

from homeserver.feature import Feature
from homeserver.features.pushers.delivery import deliver
from homeserver.features.pushers.settings import LIMITS, routes
from homeserver.users.push.pushers import forget_pushers

FEATURE = Feature(
    name="pushers",
    spec="client-server-api/#push-notifications",
    routes=routes,
    limits=LIMITS,
    background=(deliver,),
    forget_user=forget_pushers,
)
