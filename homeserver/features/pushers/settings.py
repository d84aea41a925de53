"""What clients call to list, set and delete pushers. Spec: client-server-api/#post_matrixclientv3pushersset"""

from __future__ import annotations

from typing import Any
from urllib.parse import urlsplit

import msgspec

from homeserver import limits
from homeserver.api.routes import Empty, Routes
from homeserver.authenticate import Requester
from homeserver.database import Transaction
from homeserver.encoding import to_json
from homeserver.errors import MatrixError, invalid_param, missing_param
from homeserver.feature import JsonObject
from homeserver.federation.wire import WireError
from homeserver.federation.wire.client import parse_url
from homeserver.limits import Bucket
from homeserver.resources import Resources
from homeserver.users.push.pushers import EMAIL_APP_ID, delete_pusher, list_pushers, store_pusher
from homeserver.users.threepids import EMAIL, find_owner, fold_email

NOTIFY_PATH = "/_matrix/push/v1/notify"
LIMITS = {"pusher": Bucket(20, 0.2)}  # an app sets its pusher when it starts; each URL is a machine that we contact

routes = Routes()


class PusherBody(msgspec.Struct, frozen=True):
    """If `kind` is null, the pusher is deleted, and only app_id and pushkey matter."""

    app_id: str
    pushkey: str
    kind: str | None
    app_display_name: str | None = None
    device_display_name: str | None = None
    lang: str | None = None
    profile_tag: str | None = None
    data: dict[str, Any] | None = None
    append: bool = False


@routes.get("/_matrix/client/v3/pushers")
async def get_pushers(hs: Resources, requester: Requester) -> JsonObject:
    pushers = await hs.database.read(list_pushers, requester.user_id)
    return {"pushers": [pusher.body() for pusher in pushers]}


@routes.post("/_matrix/client/v3/pushers/set", allow_suspended=True, rate_limit="pusher")
async def post_pusher(hs: Resources, requester: Requester, body: PusherBody) -> Empty:
    _check_key(body)
    if body.kind is None:
        await hs.database.write(delete_pusher, requester.user_id, body.app_id, body.pushkey)
        return Empty()
    content = _content_of(body, allows_http=hs.config.outbound_http.allow_private_addresses)
    await hs.database.write(_store, requester, body, content)
    return Empty()


def _store(tx: Transaction, requester: Requester, body: PusherBody, content: JsonObject) -> None:
    pushkey, device_id = body.pushkey, requester.device_id
    if body.kind == "email":
        if not tx.server.config.email.smtp_host:
            raise invalid_param("This server sends no email.")
        pushkey, device_id = fold_email(pushkey), ""  # it stays when the device is logged out
        if find_owner(tx, EMAIL, pushkey) != requester.user_id:
            raise MatrixError(400, "M_THREEPID_NOT_FOUND", "Add the email address to your account first.")
    store_pusher(tx, requester.user_id, device_id, body.app_id, pushkey, content, append=body.append)


def _check_key(body: PusherBody) -> None:
    if len(body.pushkey.encode()) > limits.users.PUSHKEY_BYTES_MAX:
        raise invalid_param(f"A pushkey is limited to {limits.users.PUSHKEY_BYTES_MAX} bytes.")
    if len(body.app_id) > limits.users.APP_ID_CHARACTERS_MAX:
        raise invalid_param(f"An app_id is limited to {limits.users.APP_ID_CHARACTERS_MAX} characters.")


def _content_of(body: PusherBody, *, allows_http: bool) -> JsonObject:
    """Returns what is stored of a new pusher. Raises M_MISSING_PARAM, M_INVALID_PARAM or M_TOO_LARGE."""
    if body.kind not in ("http", "email"):
        raise invalid_param("This server has no pushers of that kind. Set kind to http or email.")
    if (body.kind == "email") != (body.app_id == EMAIL_APP_ID):
        raise invalid_param(f"The app_id of an email pusher, and of no other, is {EMAIL_APP_ID}.")
    content: JsonObject = {
        "app_display_name": body.app_display_name,
        "device_display_name": body.device_display_name,
        "lang": body.lang,
        "data": body.data,
    }
    missing = [name for name, value in content.items() if value is None]
    if missing:
        raise missing_param(f"A pusher needs {', '.join(missing)}.")
    if body.profile_tag is not None:
        content["profile_tag"] = body.profile_tag
    if body.kind == "email":
        content["kind"] = body.kind
    else:
        _check_url(content["data"].get("url"), allows_http=allows_http)
    if not isinstance(content["data"].get("format", ""), str):
        raise invalid_param("data.format must be a string.")
    if len(to_json(content)) > limits.users.PUSHER_BYTES_MAX:
        raise MatrixError(413, "M_TOO_LARGE", f"A pusher is limited to {limits.users.PUSHER_BYTES_MAX} bytes.")
    return content


def _check_url(url: object, *, allows_http: bool) -> None:
    """Raises MatrixError unless notifications may be sent to this URL. Names are looked up only when it is used.

    http is for gateways in one's own network, which the configuration must allow.
    """
    if url is None:
        raise missing_param("An http pusher needs data.url.")
    if not isinstance(url, str):
        raise invalid_param("data.url must be a string.")
    try:
        parse_url(url, ("https", "http") if allows_http else ("https",))
        path = urlsplit(url).path
    except (WireError, ValueError) as error:
        raise invalid_param(f"data.url is not the https URL of a push gateway: {error}.") from error
    if path != NOTIFY_PATH:
        raise invalid_param(f"The path of data.url must be {NOTIFY_PATH}.")
