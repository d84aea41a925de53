"""Registration with a shared secret, for scripts and test suites: creates accounts, including administrators.

It is not part of the specification; the protocol is that of Synapse's `/_synapse/admin/v1/register`, on which tools
rely. GET returns a nonce. POST sends it back with an HMAC-SHA1, keyed with the secret, over nonce, username, password
and "admin" or "notadmin" (and the user type, if there is one), separated by NUL.

Nonces are not stored: each contains its expiry time and a signature. Using one twice gains nothing, because the HMAC
covers the name of the account, which can be created only once.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets

import msgspec

from homeserver import limits
from homeserver.api.routes import Routes
from homeserver.authenticate import AccountFlags
from homeserver.config import read_secret
from homeserver.database import Transaction
from homeserver.encoding import to_json
from homeserver.errors import MatrixError, forbidden, invalid_param
from homeserver.feature import Feature, JsonObject
from homeserver.federation.identifiers import UserID
from homeserver.moments import is_ahead
from homeserver.resources import Resources
from homeserver.users import accounts
from homeserver.users.devices import check_device_id, log_in
from homeserver.users.passwords import check_new_password, hash_password
from homeserver.users.profile import store_field

PATH = "/_synapse/admin/v1/register"

routes = Routes()


@routes.get(PATH, rate_limit="")
async def get_nonce(hs: Resources) -> JsonObject:
    return {"nonce": _make_nonce(_shared_secret(hs), hs.now_ms() + limits.SHARED_SECRET_NONCE_MS)}


class SharedSecretBody(msgspec.Struct, frozen=True):
    nonce: str
    username: str
    password: str
    mac: str
    admin: bool = False
    user_type: str | None = None
    displayname: str | None = None
    device_id: str | None = None
    inhibit_login: bool | None = None


@routes.post(PATH, rate_limit="")
async def register_with_shared_secret(hs: Resources, body: SharedSecretBody) -> JsonObject:
    secret = _shared_secret(hs)
    if not _is_good_nonce(secret, body.nonce, hs.now_ms()):
        raise MatrixError(400, "M_UNKNOWN", "The nonce is unknown or has expired.")
    if "\0" in body.username or "\0" in body.password:
        raise invalid_param("The username and password may not contain NUL.")
    if not hmac.compare_digest(_mac(secret, body).encode(), body.mac.lower().encode("utf-8", "surrogatepass")):
        raise forbidden("The HMAC is not correct.")
    user_id = accounts.user_id_of(hs.server_name, body.username)
    check_new_password(hs, body.password)
    check_device_id(body.device_id)
    password_hash = await hash_password(hs, body.password)
    return await hs.database.write(_store, user_id, password_hash, body)


def _store(tx: Transaction, user_id: UserID, password_hash: str, body: SharedSecretBody) -> JsonObject:
    accounts.create_user(tx, user_id, password_hash, AccountFlags(is_admin=body.admin))
    if body.displayname:
        store_field(tx, user_id, "displayname", to_json(body.displayname[: limits.users.DISPLAYNAME_CHARACTERS_MAX]))
    if body.inhibit_login:
        return {"user_id": user_id}
    return {**log_in(tx, user_id, body.device_id, None, False), "home_server": tx.server.name}


def _shared_secret(hs: Resources) -> bytes:
    """Returns the secret that the operator shares with their tools. Raises M_UNRECOGNIZED if there is none."""
    path = hs.config.registration.shared_secret_file
    if not path:
        raise MatrixError(404, "M_UNRECOGNIZED", "Registration with a shared secret is not enabled on this homeserver.")
    return read_secret("registration.shared_secret_file", path).encode()


def _mac(secret: bytes, body: SharedSecretBody) -> str:
    parts = [body.nonce, body.username, body.password, "admin" if body.admin else "notadmin"]
    if body.user_type is not None:
        parts.append(body.user_type)
    message = "\0".join(parts).encode("utf-8", "surrogatepass")
    return hmac.new(secret, message, hashlib.sha1).hexdigest()


def _make_nonce(secret: bytes, until_ms: int) -> str:
    text = f"{until_ms:x}.{secrets.token_hex(16)}"
    return f"{text}.{_sign(secret, text)}"


def _is_good_nonce(secret: bytes, nonce: str, now_ms: int) -> bool:
    text, _, signature = nonce.rpartition(".")
    signed = hmac.compare_digest(_sign(secret, text).encode(), signature.encode("utf-8", "surrogatepass"))
    return signed and is_ahead(int(text.partition(".")[0], 16), now_ms, limits.SHARED_SECRET_NONCE_MS)


def _sign(secret: bytes, text: str) -> str:
    message = b"nonce " + text.encode("utf-8", "surrogatepass")
    return hmac.new(secret, message, hashlib.sha256).hexdigest()[:32]


FEATURE = Feature(name="shared_secret_registration", spec="", routes=routes)
