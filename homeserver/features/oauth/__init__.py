"""The OAuth 2.0 API, with this server as its own authorization server. Spec: client-server-api/#oauth-20-api

The page on which people let a client in is the account pages' (`homeserver.pages.account`). What both share is in
`homeserver.users.oauth`.
"""

from __future__ import annotations

import trio

from homeserver import limits
from homeserver.api.routes import Routes
from homeserver.feature import Feature
from homeserver.features.oauth import endpoints, metadata
from homeserver.limits import Bucket
from homeserver.resources import Resources
from homeserver.users.oauth.cleanup import delete_expired, forget_oauth

routes = Routes()
routes.include(metadata.routes)
routes.include(endpoints.routes)


async def clean_up(hs: Resources) -> None:
    """Deletes codes that have expired and clients that nobody uses, from time to time."""
    await trio.sleep(limits.HOUSEKEEPING_DELAY_S)
    while True:
        await hs.database.write(delete_expired)
        await trio.sleep(limits.users.OAUTH_CLEANUP_INTERVAL_S)


FEATURE = Feature(
    name="oauth",
    spec="client-server-api/#oauth-20-api",
    routes=routes,
    limits={
        "oauth_register": Bucket(10, 0.05),  # new clients: people behind one address use the same few
        "oauth_device": Bucket(20, 0.2),  # once at each log-in without a browser; each waits for minutes
        "oauth_poll": Bucket(10, 0.5),  # per code: clients that ask every five seconds never reach it
    },
    background=(clean_up,),
    forget_user=forget_oauth,
)
