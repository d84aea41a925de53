"""Words and doors of the specification: error codes, and who may come through which operation.

tests/data/errcodes.json and security.json are read from the contract of spec v1.19.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

from homeserver.api.routes import Operation
from homeserver.server import all_features
from tests.tidy.source import PACKAGES, python_files

DATA = Path(__file__).parents[1] / "data"
ERRCODES = frozenset(json.loads((DATA / "errcodes.json").read_text()))
SECURITY: dict[str, str] = json.loads((DATA / "security.json").read_text())

# Error codes that the spec's prose knows but its contract data does not, or that only tools of other servers use.
OTHER_ERRCODES = frozenset({"M_UNKNOWN_POS", "M_CONCURRENT_WRITE"})  # MSC4186, sliding sync; MSC4108, rendezvous

# Public doors that the spec does not have: they answer anyone, so each stands here with its reason.
OTHER_PUBLIC = {
    "GET /_matrix/client/unstable/uk.tcpip.msc4133/profile/{user_id}/{key_name}": "public since v1.16",
    "GET /_matrix/client/unstable/uk.tcpip.msc4133/profile/{user_id}": "the same",
    "GET /_matrix/key/v2/server/{key_id}": "in the spec before v1.6; older servers ask for keys by ID",
    "GET /_matrix/key/v2/query/{server_name}/{key_id}": "the same",
    "POST /_homeserver/client/v1/rtc/get_token": "for users of all servers, who prove themselves with OpenID tokens",
    "POST /_homeserver/client/v1/rtc/sfu/get": "the same",
    "GET /_homeserver/health/ready": "asked by whoever starts the server",
    "GET /_homeserver/health/live": "asked by whoever starts the server",
    "GET /_homeserver/metrics": "a listener of its own decides who reaches it",
    "GET /_synapse/admin/v1/register": "gives out the nonce that the shared secret signs",
    "POST /_synapse/admin/v1/register": "is signed with the shared secret",
    "GET /_synapse/admin/v1/server_version": "tools ask before they log in, as they do on other servers",
    "OPTIONS /_homeserver/client/v1/uploads": "tells what tus can do here, and browsers what they may send",
    "OPTIONS /_homeserver/client/v1/uploads/{upload_id}": "the same",
    "GET /_homeserver/client/v1/validate_email": "the link in an email, with a token of its own",
    "POST /_homeserver/client/v1/validate_email": "the button on that page",
    "GET /_matrix/client/v3/auth/{auth_type}/fallback/web": "a page that the spec has in prose",
    "POST /_matrix/client/v3/auth/{auth_type}/fallback/web": "the form on that page",
    "GET /_matrix/static/client/login/": "a log-in page that the spec has in prose",
    "GET /_homeserver/sso/begin": "a link on the log-in page",
    "GET /_homeserver/sso/stage": "the fallback page of m.login.sso leads there",
    "GET /_homeserver/sso/choose": "a page for people who are not logged in",
    "GET /_homeserver/sso/failed": "a page for the same people",
    "GET /_homeserver/sso/callback": "a provider sends browsers there, which have a cookie of ours",
    "GET /_homeserver/sso/continue": "a page for the same browsers",
    "POST /_homeserver/sso/continue": "the button on that page",
    "GET /_homeserver/client/v1/unsubscribe": "the link in an email, with a token of its own",
    "POST /_homeserver/client/v1/unsubscribe": "the button on that page, or of a mail program",
    "GET /_matrix/client/unstable/org.matrix.msc2965/auth_metadata": "for a client that is not logged in yet",
    "GET /_matrix/client/unstable/org.matrix.msc2965/auth_issuer": "the same, for older clients",
    "GET /.well-known/oauth-authorization-server": "the same, at the place of RFC 8414",
    "GET /.well-known/openid-configuration": "the same, where older clients look",
    "POST /_homeserver/oauth/register": "clients register themselves",
    "POST /_homeserver/oauth/token": "with a code or a refresh token",
    "POST /_homeserver/oauth/revoke": "with the token that ends",
    "POST /_homeserver/oauth/device": "for a client that is not logged in yet",
    **dict.fromkeys(
        (
            "POST /_matrix/client/unstable/org.matrix.msc4108/rendezvous",
            "OPTIONS /_matrix/client/unstable/org.matrix.msc4108/rendezvous",
            *(
                f"{method} /_matrix/client/unstable/{form}/rendezvous/{{rendezvous_id}}"
                for form in ("org.matrix.msc4108", "io.element.msc4388")
                for method in ("GET", "PUT", "DELETE", *(("OPTIONS",) if form == "org.matrix.msc4108" else ()))
            ),
        ),
        "for two devices of which one is not logged in yet; the ID is a secret that both have",
    ),
}


def normal(method: str, path: str) -> str:
    """Method and path with nameless parameters and the newest version of the endpoint."""
    path = re.sub(r"\{[^}]*\}", "{}", path)
    return f"{method} {re.sub(r'^/_matrix/client/(?:r0|v3)/', '/_matrix/client/v3/', path)}"


# The data says that servers sign it; its prose, "the API was called unauthenticated", that users may have a token.
BY_PROSE = {"GET /_matrix/client/v1/room_summary/{}": "optional"}

BY_PATH = {normal(*key.split(" ", 1)): kind for key, kind in SECURITY.items()} | BY_PROSE


def kind_of(operation: Operation) -> str:
    plan = operation.plan
    if plan.origin:
        return "signed"
    if plan.requester:
        return "optional" if plan.requester_optional else "token"
    return "public"


OPERATIONS = [operation for feature in all_features() for operation in feature.routes]
OF_ACCOUNTS = [each for each in OPERATIONS if each.plan.requester and not each.plan.requester_optional]


def fits(operation: Operation) -> bool:
    """Returns whether it requires a token, a signature or nothing, as the spec does. Requiring more does no harm."""
    kind = kind_of(operation)
    wanted = BY_PATH.get(normal(operation.method, operation.path))
    if wanted is None:
        return kind != "public" or f"{operation.method} {operation.path}" in OTHER_PUBLIC
    return kind == wanted or (wanted in ("public", "optional") and kind != "signed")


def test_operations_require_the_authentication_of_the_spec() -> None:
    assert [f"{each.method} {each.path}: {kind_of(each)}" for each in OPERATIONS if not fits(each)] == []


# Spec: client-server-api/#guest-access, "allowed to be accessed by guest accounts". `PUT` and `DELETE /profile` are for
# the display name only, which the handler checks.
FOR_GUESTS_BY_SPEC = """
GET account/whoami
GET devices
GET devices/{}
PUT devices/{}
GET events
POST keys/claim
POST keys/query
POST keys/upload
GET media/download/{}/{}
GET media/download/{}/{}/{}
GET media/thumbnail/{}/{}
DELETE profile/{}/{}
PUT profile/{}/{}
GET rooms/{}/context/{}
GET rooms/{}/event/{}
GET rooms/{}/initialSync
POST rooms/{}/join
POST rooms/{}/leave
GET rooms/{}/members
GET rooms/{}/messages
PUT rooms/{}/send/{}/{}
GET rooms/{}/state
GET rooms/{}/state/{}/{}
PUT rooms/{}/state/{}/{}
PUT sendToDevice/{}/{}
GET sync
"""

# Without these no client works for a guest, and none of them shows or changes more than the guest's own.
FOR_GUESTS_TOO = """
POST /_homeserver/client/v1/heartbeat
GET capabilities
POST join/{}
GET joined_rooms
POST logout
POST logout/all
GET presence/{}/status
PUT presence/{}/status
GET pushrules
GET rooms/{}/joined_members
POST rooms/{}/read_markers
POST rooms/{}/receipt/{}/{}
POST rooms/{}/send/{}
GET rooms/{}/state/{}
PUT rooms/{}/state/{}
PUT rooms/{}/typing/{}
GET user/{}/account_data/{}
PUT user/{}/account_data/{}
POST user/{}/filter
GET user/{}/filter/{}
GET user/{}/rooms/{}/account_data/{}
PUT user/{}/rooms/{}/account_data/{}
GET voip/turnServer
GET /_homeserver/client/v1/events
PUT org.matrix.msc4140/rooms/{}/delayed_event/{}/{}
GET org.matrix.msc4140/delayed_events
GET org.matrix.msc4140/delayed_events/{}
GET org.matrix.msc4143/rtc/transports
"""

# Spec: client-server-api/#account-suspension, "Servers SHOULD permit the user to perform at least the following". What
# has a general purpose is refused by its handler, unless it is a redaction of one's own event, or one's own leave.
FOR_SUSPENDED_BY_SPEC = """
POST account/deactivate
POST delete_devices
DELETE devices/{}
POST keys/device_signing/upload
POST keys/signatures/upload
POST login/get_token
POST logout
POST logout/all
PUT rooms/{}/redact/{}/{}
POST rooms/{}/leave
PUT rooms/{}/send/{}/{}
PUT rooms/{}/state/{}
PUT rooms/{}/state/{}/{}
"""

# What reading takes ("see and receive messages"), and what only the user's own clients get to see.
FOR_SUSPENDED_TOO = """
POST /_homeserver/client/v1/heartbeat
PUT /_homeserver/client/v1/privacy
DELETE /_homeserver/client/v1/friends/{}
PUT /_homeserver/client/v1/friends/{}/block
DELETE /_homeserver/client/v1/friends/{}/block
POST account/password
PUT devices/{}
POST keys/claim
POST keys/query
POST keys/upload
POST publicRooms
POST pushers/set
DELETE pushrules/global/{}/{}
PUT pushrules/global/{}/{}
PUT pushrules/global/{}/{}/actions
PUT pushrules/global/{}/{}/enabled
POST rooms/{}/forget
POST rooms/{}/read_markers
POST rooms/{}/receipt/{}/{}
POST rooms/{}/redact/{}
POST rooms/{}/send/{}
PUT user/{}/account_data/{}
POST user/{}/filter
PUT user/{}/rooms/{}/account_data/{}
DELETE user/{}/rooms/{}/tags/{}
PUT user/{}/rooms/{}/tags/{}
"""


def bare(operation: Operation) -> str:
    """Method and path as the lists above have them."""
    path = re.sub(r"\{[^}]*\}", "{}", operation.path)
    return f"{operation.method} {re.sub(r'^/_matrix/client/[^/]+/', '', path).rstrip('/')}"


def test_guests_may_use_exactly_the_operations_of_the_spec() -> None:
    listed = {*FOR_GUESTS_BY_SPEC.strip().splitlines(), *FOR_GUESTS_TOO.strip().splitlines()}
    assert {bare(each) for each in OF_ACCOUNTS if each.allow_guest} == listed & {bare(each) for each in OF_ACCOUNTS}


def test_suspended_accounts_may_use_exactly_the_operations_of_the_spec() -> None:
    listed = {*FOR_SUSPENDED_BY_SPEC.strip().splitlines(), *FOR_SUSPENDED_TOO.strip().splitlines()}
    reading = [each for each in OF_ACCOUNTS if each.method == "GET"]
    others = [each for each in OF_ACCOUNTS if each.method != "GET"]
    assert [bare(each) for each in reading if not each.allow_suspended] == []
    assert {bare(each) for each in others if each.allow_suspended} == listed & {bare(each) for each in others}


def test_error_codes_are_those_of_the_spec() -> None:
    unknown = {
        (source.name, code)
        for source in python_files(*PACKAGES)
        for _, text in source.strings
        for code in re.findall(r"^M_[A-Z_]+$", text)
        if code not in ERRCODES | OTHER_ERRCODES
    }
    assert not unknown, unknown
