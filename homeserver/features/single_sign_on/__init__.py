"""Single sign-on: logging in with an outside provider of OpenID Connect.

Spec: client-server-api/#sso-client-loginauthentication

`beginning` sends a browser to the provider, `callback` takes it back and finds the account (`people`). What is stored
on the way, and the steps, are in `homeserver.users.single_sign_on`; requests to providers in
`homeserver.remote.openid_provider`. docs/sso.md is for operators.
"""

from __future__ import annotations

from homeserver.api.routes import Routes
from homeserver.feature import Feature
from homeserver.features.single_sign_on import beginning, callback
from homeserver.limits import Bucket
from homeserver.users.single_sign_on import forget_single_sign_on

routes = Routes()
for part in (beginning, callback):
    routes.include(part.routes)

FEATURE = Feature(
    name="single_sign_on",
    spec="client-server-api/#sso-client-loginauthentication",
    routes=routes,
    limits={"sso": Bucket(60, 1)},  # an office behind one address comes at nine; a provider limits guesses itself
    forget_user=forget_single_sign_on,
)
