"""Email addresses of an account: validating, adding and deleting them, and binding them at identity servers.

Phone numbers cannot be added, and without a mail server in the configuration neither can email addresses, as the
capability m.3pid_changes says.

Spec: client-server-api/#adding-account-administrative-contact-information
"""

from __future__ import annotations

from typing import Literal

import msgspec

from homeserver.api.forms import make_page
from homeserver.api.routes import Empty, Request, Response, Routes
from homeserver.authenticate import Requester
from homeserver.database import Transaction
from homeserver.errors import MatrixError
from homeserver.feature import Feature, JsonObject
from homeserver.federation.identifiers import UserID
from homeserver.limits import Bucket
from homeserver.remote.identity_server import bind, parse_id_server, unbind
from homeserver.resources import Resources
from homeserver.users.email_validation import (
    PATH,
    Purpose,
    check_client_secret,
    delete_validation,
    find_link,
    find_validation,
    forget_validations,
    not_validated,
    request_validation,
    set_validated,
)
from homeserver.users.push.pushers import delete_email_pushers
from homeserver.users.threepids import (
    EMAIL,
    delete_binding,
    delete_threepid,
    find_binding,
    fold_email,
    forget_threepids,
    list_threepids,
    store_binding,
    store_threepid,
)
from homeserver.users.user_interactive import Authentication, delete_session, owner_flows, require_stages

routes = Routes()

Medium = Literal["email", "msisdn"]


@routes.get("/_matrix/client/v3/account/3pid")
async def get_account_3pids(hs: Resources, requester: Requester) -> JsonObject:
    known = await hs.database.read(list_threepids, requester.user_id)
    return {
        "threepids": [
            {
                "medium": each.medium,
                "address": each.address,
                "validated_at": each.validated_ms,
                "added_at": each.added_ms,
            }
            for each in known
        ]
    }


# --- validating an address ---


class EmailTokenBody(msgspec.Struct, frozen=True):
    """`next_link`, `id_server` and `id_access_token` have no effect: this server validates addresses itself."""

    client_secret: str
    email: str
    send_attempt: int


@routes.post("/_matrix/client/v3/account/3pid/email/requestToken", rate_limit="email")
async def request_token_to_3pid_email(
    hs: Resources, requester: Requester | None, body: EmailTokenBody, request: Request
) -> JsonObject:
    return await _request_token(hs, "add", body, None if requester is None else requester.user_id)


@routes.post("/_matrix/client/v3/register/email/requestToken", rate_limit="email")
async def request_token_to_register_email(hs: Resources, body: EmailTokenBody) -> JsonObject:
    return await _request_token(hs, "register", body, None)


@routes.post("/_matrix/client/v3/account/password/email/requestToken", rate_limit="email")
async def request_token_to_reset_password_email(hs: Resources, body: EmailTokenBody) -> JsonObject:
    return await _request_token(hs, "reset", body, None)


async def _request_token(hs: Resources, purpose: Purpose, body: EmailTokenBody, user_id: UserID | None) -> JsonObject:
    check_client_secret(body.client_secret)
    if not hs.config.email.smtp_host:
        raise MatrixError(403, "M_THREEPID_DENIED", "This server sends no email.")
    address = fold_email(body.email)
    hs.rate_limits.take("email_address", address, hs.now_ms())
    sid = await hs.database.write(
        request_validation, purpose, user_id, address, body.client_secret, body.send_attempt
    )  # fmt: skip
    return {"sid": sid}


@routes.post("/_matrix/client/v3/account/3pid/msisdn/requestToken", rate_limit="email")
async def request_token_to_3pid_msisdn(hs: Resources) -> Empty:
    raise _no_phones()


@routes.post("/_matrix/client/v3/register/msisdn/requestToken", rate_limit="email")
async def request_token_to_register_msisdn(hs: Resources) -> Empty:
    raise _no_phones()


@routes.post("/_matrix/client/v3/account/password/msisdn/requestToken", rate_limit="email")
async def request_token_to_reset_password_msisdn(hs: Resources) -> Empty:
    raise _no_phones()


def _no_phones() -> MatrixError:
    return MatrixError(400, "M_THREEPID_MEDIUM_NOT_SUPPORTED", "This server sends no text messages.")


class LinkQuery(msgspec.Struct, frozen=True):
    """The link in an email."""

    sid: str
    client_secret: str
    token: str


@routes.get(PATH, rate_limit="login")
async def show_validation(hs: Resources, query: LinkQuery) -> Response:
    found = await hs.database.read(find_link, query.sid, query.client_secret, query.token)
    if found is None:
        return _no_link()
    return make_page(f"Is {found.address} yours?", f"Confirm it for {hs.server_name}.", "Confirm")


@routes.post(PATH, rate_limit="login")
async def submit_validation(hs: Resources, query: LinkQuery) -> Response:
    if await hs.database.write(set_validated, query.sid, query.client_secret, query.token) is None:
        return _no_link()
    return make_page("Thank you", "The address is confirmed. Go back to your app, and continue there.")


def _no_link() -> Response:
    return make_page(
        "This link does not work any more", "It is too old, or was used already. Ask for another email.", status=404
    )


# --- adding and deleting ---


class AddBody(msgspec.Struct, frozen=True):
    sid: str
    client_secret: str
    auth: JsonObject | None = None


@routes.post("/_matrix/client/v3/account/3pid/add", rate_limit="login")
async def add_3pid(hs: Resources, requester: Requester, body: AddBody) -> Empty:
    flows = owner_flows(requester.user_id)
    authentication = await require_stages(hs, "add an address", body.auth, flows, requester.user_id)
    await hs.database.write(_add, requester.user_id, body, authentication)
    return Empty()


def _add(tx: Transaction, user_id: UserID, body: AddBody, authentication: Authentication) -> None:
    found = find_validation(tx, body.sid, body.client_secret, "add")
    if found is None or found.validated_ms is None:
        raise not_validated()
    delete_session(tx, authentication)
    delete_validation(tx, found.sid, user_id)
    store_threepid(tx, user_id, EMAIL, found.address, found.validated_ms)


class DeleteBody(msgspec.Struct, frozen=True):
    medium: Medium
    address: str
    id_server: str | None = None


@routes.post("/_matrix/client/v3/account/3pid/delete", rate_limit="login")
async def delete_3pid_from_account(hs: Resources, requester: Requester, body: DeleteBody) -> JsonObject:
    address = _folded(body)
    await hs.database.write(_delete, requester.user_id, body.medium, address)
    return {"id_server_unbind_result": await _unbind(hs, requester.user_id, body, address)}


def _delete(tx: Transaction, user_id: UserID, medium: str, address: str) -> None:
    delete_threepid(tx, user_id, medium, address)
    if medium == EMAIL:
        delete_email_pushers(tx, user_id, address)


def _folded(body: DeleteBody) -> str:
    return fold_email(body.address) if body.medium == EMAIL else body.address


# --- identity servers ---


class BindBody(msgspec.Struct, frozen=True):
    sid: str
    client_secret: str
    id_server: str
    id_access_token: str


class OldBindBody(msgspec.Struct, frozen=True):
    three_pid_creds: BindBody


@routes.post("/_matrix/client/v3/account/3pid/bind", rate_limit="login")
async def bind_3pid(hs: Resources, requester: Requester, body: BindBody) -> Empty:
    check_client_secret(body.client_secret)
    server = parse_id_server(body.id_server, body.id_access_token)
    medium, address = await bind(hs, server, body.id_access_token, body.sid, body.client_secret, requester.user_id)
    await hs.database.write(store_binding, requester.user_id, medium, address, server)
    return Empty()


@routes.post("/_matrix/client/v3/account/3pid", rate_limit="login")
async def post_3pids(hs: Resources, requester: Requester, body: OldBindBody) -> Empty:
    return await bind_3pid(hs, requester, body.three_pid_creds)


@routes.post("/_matrix/client/v3/account/3pid/unbind", rate_limit="login")
async def unbind_3pid_from_account(hs: Resources, requester: Requester, body: DeleteBody) -> JsonObject:
    return {"id_server_unbind_result": await _unbind(hs, requester.user_id, body, _folded(body))}


async def _unbind(hs: Resources, user_id: UserID, body: DeleteBody, address: str) -> str:
    """Asks the identity server to forget the address. Returns "success", or "no-support" if it cannot be asked."""
    if body.id_server is not None:
        server = parse_id_server(body.id_server, "")
    else:
        known = await hs.database.read(find_binding, user_id, body.medium, address)
        if known is None:
            return "no-support"
        server = known
    if not await unbind(hs, server, user_id, body.medium, address):
        return "no-support"
    await hs.database.write(delete_binding, user_id, body.medium, address, server)
    return "success"


def forget_user(tx: Transaction, user_id: UserID, erase: bool) -> bool:
    """Deletes the addresses of a user whose account ends. Identity servers keep what they were told."""
    forget_threepids(tx, user_id)
    forget_validations(tx, user_id)
    return False


FEATURE = Feature(
    name="contact_information",
    spec="client-server-api/#adding-account-administrative-contact-information",
    routes=routes,
    limits={
        "email": Bucket(10, 0.02),  # from one address or user: people mistype their own
        "email_address": Bucket(3, 0.002),  # to one address: nobody's inbox can be filled
    },
    capabilities={"m.3pid_changes": lambda config, requester: {"enabled": bool(config.email.smtp_host)}},
    forget_user=forget_user,
)
