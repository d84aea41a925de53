"""The grants: Authlib's, on our storage. Spec: client-server-api/#grant-types

Theory of operation. A request is answered in one write: the checks, the end of the code, and the new tokens. Authlib
raises errors inside, which are answers; `answer_token_request` returns them, so that what a refusal has changed is
committed too: a code or refresh token that is used again ends the session that came from its first use.

Authlib says in which order what is checked, and compares clients, redirect URIs and PKCE. What it leaves to us is here:
only S256, only public clients, and what becomes of codes and tokens.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
from authlib.oauth2 import OAuth2Error
from authlib.oauth2.rfc6749 import (
    AuthorizationCodeGrant,
    AuthorizationServer,
    InvalidGrantError,
    InvalidRequestError,
    OAuth2Payload,
    OAuth2Request,
    RefreshTokenGrant,
)
from authlib.oauth2.rfc7636 import CodeChallenge
from authlib.oauth2.rfc8628 import DeviceCodeGrant

from homeserver import authenticate, limits
from homeserver.authenticate import hash_token
from homeserver.database import Transaction
from homeserver.federation.identifiers import UserID
from homeserver.moments import is_ahead
from homeserver.users.accounts import is_active
from homeserver.users.devices import delete_devices_of_user, log_in
from homeserver.users.oauth.clients import Client, find_client, note_client_used
from homeserver.users.oauth.device_grants import Poll, delete_device_grant, find_poll, note_poll
from homeserver.users.oauth.scopes import parse_scope
from homeserver.users.oauth.sessions import OAuthSession, find_session, find_session_of_code, store_session

# Only these are read. Authlib quotes some of them in its errors, so they must be of what errors may contain.
_QUOTED = ("response_type", "client_id", "redirect_uri", "grant_type", "code_challenge", "code_challenge_method")
_QUOTABLE = re.compile(r"[\x20\x21\x23-\x5b\x5d-\x7e]*")


class Reply(msgspec.Struct, frozen=True):
    """The answer to a token request: status, and the JSON of tokens or of an error.

    ended: the session that the request has ended, because its code or token had been used before.
    """

    status: int
    body: dict[str, Any]
    ended: OAuthSession | None = None


class RefusedRequest(Exception):
    """An authorization request that is wrong. redirect_uri: the client's own; None if the client is not known."""

    def __init__(self, code: str, description: str, redirect_uri: str | None) -> None:
        super().__init__(description)
        self.code = code
        self.redirect_uri = redirect_uri


def check_authorization_request(tx: Transaction, parameters: Mapping[str, Sequence[str]]) -> tuple[Client, str]:
    """Returns the client and the redirect URI of an authorization request. Raises RefusedRequest.

    Its scope and its PKCE challenge are there and are valid.
    """
    try:
        grant = _Server(tx).get_consent_grant(_Request("GET", parameters))
    except OAuth2Error as error:
        raise RefusedRequest(error.error, _describe(error), error.redirect_uri) from None
    return grant.request.client, grant.redirect_uri


def answer_token_request(tx: Transaction, parameters: Mapping[str, Sequence[str]]) -> Reply:
    """Returns the answer of the token endpoint. Raises MatrixError if the user's devices cannot be logged in on."""
    try:
        request = _Request("POST", parameters)
    except OAuth2Error as error:
        return Reply(*error()[:2])
    server = _Server(tx)
    status, body = server.create_token_response(request)
    return Reply(status, body, server.ended)


def end_session(tx: Transaction, session: OAuthSession) -> None:
    """Logs a client out. The device is deleted with the session."""
    delete_devices_of_user(tx, session.user_id, [session.device_id])


class _Payload(OAuth2Payload):
    def __init__(self, values: Mapping[str, Sequence[str]]) -> None:
        self._lists = defaultdict(list, {name: list(given) for name, given in values.items() if given})
        self._first = {name: given[0] for name, given in self._lists.items()}

    @property
    def data(self) -> dict[str, str]:
        return self._first

    @property
    def datalist(self) -> defaultdict[str, list[str]]:
        return self._lists


class _Request(OAuth2Request):
    """The parameters of a request. Listeners and proxies decide whether its transport is secure."""

    def __init__(self, method: str, values: Mapping[str, Sequence[str]]) -> None:
        super().__init__(method, "https://localhost/")
        self.payload = _Payload(values)
        for name, given in self.payload.datalist.items():
            if len(given) > 1:
                raise InvalidRequestError("Each parameter may be given once only.")
            if name in _QUOTED and not _QUOTABLE.fullmatch(given[0]):
                raise InvalidRequestError(f"The {name} has characters that it cannot have.")

    @property
    def form(self) -> dict[str, str]:
        return self.payload.data


class _Server(AuthorizationServer):
    """Authlib's view of this server, for one request in one transaction. ended: see Reply."""

    def __init__(self, tx: Transaction) -> None:
        super().__init__()
        self.tx = tx
        self.ended: OAuthSession | None = None
        self.register_grant(_CodeGrant, [_Challenge(required=True)])
        self.register_grant(_RefreshGrant)
        self.register_grant(_DeviceGrant)

    def query_client(self, client_id: str) -> Client | None:
        return find_client(self.tx, client_id)

    def create_oauth2_request(self, request: _Request) -> _Request:
        return request

    def handle_response(self, status: int, body: Any, headers: Any) -> tuple[int, dict[str, Any]]:
        return status, dict(body)

    def send_signal(self, name: str, *args: Any, **kwargs: Any) -> None:
        """Nobody listens."""

    def save_token(self, token: dict[str, Any], request: _Request) -> None:
        """Tokens are stored when they are made."""

    def end_if_replayed(self, code: str) -> None:
        """Ends the session that came from a code, for a code that is not there any more."""
        session = find_session_of_code(self.tx, hash_token(code))
        if session is not None:
            self.end(session)

    def end(self, session: OAuthSession) -> None:
        end_session(self.tx, session)
        self.ended = session

    def log_in(self, client: Client, user_id: UserID, scope: str, origin: bytes) -> dict[str, Any]:
        """Returns the tokens of a new session."""
        device_id = parse_scope(scope).device_id
        tokens = log_in(self.tx, user_id, device_id, client.name, True)
        store_session(self.tx, user_id, device_id, client.client_id, scope, origin)
        note_client_used(self.tx, client.client_id)
        return _token_body(tokens, scope)


def _token_body(tokens: Mapping[str, Any], scope: str) -> dict[str, Any]:
    return {
        "access_token": tokens["access_token"],
        "token_type": "Bearer",
        "expires_in": tokens["expires_in_ms"] // 1000,
        "refresh_token": tokens["refresh_token"],
        "scope": scope,
    }


def _may_log_in(tx: Transaction, user_id: UserID) -> bool:
    """Returns whether the account may get a new session. Suspended accounts may."""
    flags = authenticate.get_account_flags(tx, user_id)
    return is_active(tx, user_id) and not flags.is_locked and not flags.is_guest


# --- authorization codes ---


class _Code(msgspec.Struct, frozen=True):
    code_hash: bytes
    user_id: UserID
    redirect_uri: str
    scope: str
    code_challenge: str
    code_challenge_method: str = "S256"

    def get_redirect_uri(self) -> str:
        return self.redirect_uri

    def get_scope(self) -> str:
        return self.scope


class _Challenge(CodeChallenge):
    """PKCE, which Authlib would let clients leave out."""

    SUPPORTED_CODE_CHALLENGE_METHOD = ["S256"]

    def validate_code_challenge(self, grant: _CodeGrant, redirect_uri: str) -> None:
        data = grant.request.payload.data
        if not data.get("code_challenge") or data.get("code_challenge_method") != "S256":
            raise InvalidRequestError("A code_challenge with the code_challenge_method S256 is required.")
        super().validate_code_challenge(grant, redirect_uri)


class _CodeGrant(AuthorizationCodeGrant):
    TOKEN_ENDPOINT_AUTH_METHODS = ["none"]

    def query_authorization_code(self, code: str, client: Client) -> _Code | None:
        tx: Transaction = self.server.tx
        if len(code) > limits.users.OAUTH_CODE_CHARACTERS_MAX:
            return None
        code_hash = hash_token(code)
        row = tx.one(
            "SELECT client_id, user_nid, redirect_uri, scope, challenge, expires_ms FROM oauth_codes"
            " WHERE code_hash = ?",
            code_hash,
        )
        if row is None:
            self.server.end_if_replayed(code)
            return None
        client_id, user_nid, redirect_uri, scope, challenge, expires_ms = row
        if client_id != client.client_id or not is_ahead(expires_ms, tx.now_ms, limits.users.OAUTH_CODE_LIFETIME_MS):
            return None
        return _Code(code_hash, UserID(tx.name(user_nid)), redirect_uri, scope, challenge)

    def authenticate_user(self, code: _Code) -> UserID | None:
        return code.user_id if _may_log_in(self.server.tx, code.user_id) else None

    def generate_token(self, user: UserID, scope: str, **_: Any) -> dict[str, Any]:
        tokens: dict[str, Any] = self.server.log_in(
            self.request.client, user, scope, self.request.authorization_code.code_hash
        )
        return tokens

    def delete_authorization_code(self, code: _Code) -> None:
        self.server.tx.run("DELETE FROM oauth_codes WHERE code_hash = ?", code.code_hash)


# --- refresh tokens ---


class _AccountLocked(OAuth2Error):
    """The session waits until the account is unlocked. After a 4xx the client would forget its keys.

    Spec: client-server-api/#refresh-token-grant, #account-locking
    """

    error = "temporarily_unavailable"
    description = "This account has been locked."
    status_code = 503


class _RefreshToken(msgspec.Struct, frozen=True):
    token: str
    session: OAuthSession

    def check_client(self, client: Client) -> bool:
        return self.session.client_id == client.client_id

    def get_scope(self) -> str:
        return self.session.scope


class _RefreshGrant(RefreshTokenGrant):
    TOKEN_ENDPOINT_AUTH_METHODS = ["none"]
    INCLUDE_NEW_REFRESH_TOKEN = True

    def authenticate_refresh_token(self, refresh_token: str) -> _RefreshToken | None:
        tx: Transaction = self.server.tx
        found = authenticate.find_refresh_token(tx, refresh_token)
        session = None if found is None else find_session(tx, found.user_id, found.device_id)
        if found is None or session is None:
            return None
        if found.is_spent:
            self.server.end(session)
            return None
        return _RefreshToken(refresh_token, session)

    def _validate_token_scope(self, token: _RefreshToken) -> None:
        """A session always keeps its whole scope, whatever part of it the client names."""

    def authenticate_user(self, token: _RefreshToken) -> UserID:
        if authenticate.get_account_flags(self.server.tx, token.session.user_id).is_locked:
            raise _AccountLocked
        return token.session.user_id

    def issue_token(self, user: UserID, token: _RefreshToken) -> dict[str, Any]:
        note_client_used(self.server.tx, token.session.client_id)
        return _token_body(authenticate.replace_tokens(self.server.tx, token.token).body(), token.session.scope)

    def revoke_old_credential(self, token: _RefreshToken) -> None:
        """It ends with the first use of a new token, see `homeserver.authenticate.refresh`."""


# --- device codes ---


class _DeviceGrant(DeviceCodeGrant):
    TOKEN_ENDPOINT_AUTH_METHODS = ["none"]

    def query_device_credential(self, device_code: str) -> Poll:
        tx: Transaction = self.server.tx
        poll = None
        if len(device_code) <= limits.users.OAUTH_CODE_CHARACTERS_MAX:
            poll = find_poll(tx, hash_token(device_code))
            if poll is None:
                self.server.end_if_replayed(device_code)
        if poll is None or poll.client_id != self.request.payload.client_id:
            raise InvalidGrantError("This device_code is not known.")
        return poll

    def query_user_grant(self, code_hash: bytes) -> tuple[UserID | None, bool] | None:
        poll = find_poll(self.server.tx, code_hash)
        if poll is None or (poll.user_id is None and not poll.is_refused):
            return None
        return poll.user_id, poll.user_id is not None and _may_log_in(self.server.tx, poll.user_id)

    def should_slow_down(self, poll: Poll) -> bool:
        return note_poll(self.server.tx, poll)

    def generate_token(self, user: UserID, scope: str, **_: Any) -> dict[str, Any]:
        poll: Poll = self.request.credential
        tokens: dict[str, Any] = self.server.log_in(self.request.client, user, scope, poll.code_hash)
        delete_device_grant(self.server.tx, poll.code_hash)
        return tokens


def _describe(error: OAuth2Error) -> str:
    return str(error.get_error_description() or error.error)
