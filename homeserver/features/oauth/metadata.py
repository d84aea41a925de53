"""Discovery: where the endpoints are, and what they can do. Spec: client-server-api/#server-metadata-discovery"""

from __future__ import annotations

from homeserver.api.routes import Response, Routes
from homeserver.config import Config
from homeserver.errors import unrecognized
from homeserver.feature import JsonObject
from homeserver.resources import Resources
from homeserver.users.oauth.clients import GRANT_TYPES
from homeserver.users.oauth.requests import RESPONSE_MODES
from homeserver.users.oauth.scopes import SCOPES

# What the account pages do for clients that link to them. They understand the older names of MSC4191 as well.
ACTIONS = (
    "org.matrix.profile",
    "org.matrix.devices_list",
    "org.matrix.device_view",
    "org.matrix.device_delete",
    "org.matrix.account_deactivate",
    "org.matrix.cross_signing_reset",
)
# Clients may keep the metadata for as long; it changes only with the configuration.
_CACHED = {"cache-control": "public, max-age=3600"}

routes = Routes()


@routes.get("/_matrix/client/v1/auth_metadata")
@routes.get("/_matrix/client/unstable/org.matrix.msc2965/auth_metadata")
@routes.get("/.well-known/oauth-authorization-server")
@routes.get("/.well-known/openid-configuration")  # some libraries of clients know no other place
async def get_auth_metadata(hs: Resources) -> Response:
    check_enabled(hs)
    return Response(200, metadata_of(hs.config), _CACHED)


@routes.get("/_matrix/client/unstable/org.matrix.msc2965/auth_issuer")
async def get_auth_issuer(hs: Resources) -> Response:
    """Returns the issuer, whose metadata older clients then read from its well-known URI."""
    check_enabled(hs)
    return Response(200, {"issuer": issuer_of(hs.config)}, _CACHED)


def check_enabled(hs: Resources) -> None:
    """Raises 404 M_UNRECOGNIZED if the OAuth 2.0 API is turned off."""
    if not hs.config.oauth.enabled:
        raise unrecognized()


def issuer_of(config: Config) -> str:
    """Returns the name of this server as an authorization server."""
    return f"{config.base_url}/"


def metadata_of(config: Config) -> JsonObject:
    """Returns the metadata of RFC 8414."""
    base = f"{config.base_url}/_homeserver"
    return {
        "issuer": issuer_of(config),
        "authorization_endpoint": f"{base}/account/authorize",
        "token_endpoint": f"{base}/oauth/token",
        "registration_endpoint": f"{base}/oauth/register",
        "revocation_endpoint": f"{base}/oauth/revoke",
        "device_authorization_endpoint": f"{base}/oauth/device",
        "scopes_supported": SCOPES,
        "response_types_supported": ["code"],
        "response_modes_supported": RESPONSE_MODES,
        "grant_types_supported": GRANT_TYPES,
        "token_endpoint_auth_methods_supported": ["none"],
        "revocation_endpoint_auth_methods_supported": ["none"],
        "code_challenge_methods_supported": ["S256"],
        **({"prompt_values_supported": ["create"]} if config.registration.enabled else {}),
        "account_management_uri": f"{base}/account/",
        "account_management_actions_supported": ACTIONS,
    }
