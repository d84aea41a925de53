"""Discovery documents, if `public.serve_well_known` is on: base URL for clients, host and port for servers.

Also the media server of calls, contacts, and the key of a policy server under its name, as far as the settings say.
Spec: client-server-api/#well-known-uris, #getwell-knownmatrixsupport, #getwell-knownmatrixpolicy_server,
server-server-api/#getwell-knownmatrixserver
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
    found: JsonObject = {**hs.config.client_discovery()}
    transports = hs.config.rtc.list_transports(hs.config.base_url)
    if transports:
        found["org.matrix.msc4143.rtc_foci"] = transports  # for clients from before the request for them
    return found


@routes.get("/.well-known/matrix/server", rate_limit="")
async def get_wellknown_server(hs: Resources) -> JsonObject:
    _check_served(hs)
    return {"m.server": hs.config.federation_address}


@routes.get("/.well-known/matrix/support", rate_limit="")
async def get_wellknown_support(hs: Resources) -> JsonObject:
    _check_served(hs)
    public = hs.config.public
    contacts = [
        _contact("m.role.admin", public.support_user, public.support_email),
        _contact("m.role.security", public.security_user, public.security_email),
    ]
    support: JsonObject = {"contacts": [contact for contact in contacts if len(contact) > 1]}
    if public.support_page:
        support["support_page"] = public.support_page
    if not support["contacts"]:
        del support["contacts"]
    if not support:
        raise not_found("This server publishes no contacts.")
    return support


@routes.get("/.well-known/matrix/policy_server", rate_limit="")
async def get_wellknown_policy(hs: Resources) -> JsonObject:
    _check_served(hs)
    if not hs.config.public.policy_server_key:
        raise not_found("There is no policy server under this name.")
    return {"public_keys": {"ed25519": hs.config.public.policy_server_key}}


def _contact(role: str, user_id: str, email_address: str) -> JsonObject:
    contact: JsonObject = {"role": role}
    if user_id:
        contact["matrix_id"] = user_id
    if email_address:
        contact["email_address"] = email_address
    return contact


def _check_served(hs: Resources) -> None:
    if not hs.config.public.serve_well_known:
        raise not_found("This server does not serve discovery documents.")


FEATURE = Feature(name="well_known", spec="client-server-api/#well-known-uris", routes=routes)
