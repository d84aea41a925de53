"""Authorization requests: a client sends someone's browser to us, and we send it back with a code, or with an error.

Theory of operation. The account page that is the authorization endpoint calls `read_request` with the parameters of its
URL, each time that it is opened, so nothing is stored until the user agrees. Then `store_code` returns where the
browser goes: to the client, with a code that it exchanges for tokens at the token endpoint once, within minutes, and
with the verifier to which the request has committed itself (PKCE). `deny` returns where it goes if the user does not.

What is wrong with a request is told to the person, with a link to the client only if the redirect URI is the client's
own. The browser is never sent there by itself before someone has decided: anyone can register a client, so this server
would redirect to wherever an attacker likes. Spec: client-server-api/#authorisation-code-flow, RFC 9700, section 4.11.2
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal, get_args

import msgspec
from authlib.common.urls import add_params_to_uri

from homeserver import limits
from homeserver.authenticate import hash_token, new_token
from homeserver.database import Transaction
from homeserver.errors import MatrixError
from homeserver.federation.identifiers import UserID
from homeserver.users.accounts import is_active
from homeserver.users.oauth.clients import Client, note_client_used
from homeserver.users.oauth.grants import RefusedRequest, check_authorization_request
from homeserver.users.oauth.scopes import Scope, parse_scope

ResponseMode = Literal["query", "fragment"]
RESPONSE_MODES: tuple[ResponseMode, ...] = get_args(ResponseMode)


class AuthorizationRefused(Exception):
    """An authorization request that cannot be answered. The message is for the person, and for the client's author.

    return_to: a link to the client, which tells it what was wrong; None if it is not known who the client is.
    """

    def __init__(self, description: str, return_to: str | None = None) -> None:
        super().__init__(description)
        self.return_to = return_to


class AuthorizationRequest(msgspec.Struct, frozen=True):
    """A request that can be granted. wants_account: the user would like to create one first (`prompt=create`).

    login_hint: who the client believes the user to be; "" if it does not say. It is text of the client, so unchecked.
    """

    client: Client
    redirect_uri: str
    response_mode: ResponseMode
    scope: Scope
    challenge: str
    state: str | None
    wants_account: bool
    login_hint: str


def read_request(tx: Transaction, parameters: Mapping[str, Sequence[str]]) -> AuthorizationRequest:
    """Returns the request in the parameters of a URL, each with all its values. Raises AuthorizationRefused."""
    given = {name: values[0] for name, values in parameters.items() if values}
    state, mode = given.get("state"), given.get("response_mode", "query")
    if state is not None and len(state) > limits.users.OAUTH_STATE_CHARACTERS_MAX:
        raise AuthorizationRefused("The state of this request is too long.")
    answer_mode: ResponseMode = "fragment" if mode == "fragment" else "query"
    try:
        client, redirect_uri = check_authorization_request(tx, parameters)
    except RefusedRequest as error:
        link = None
        if error.redirect_uri is not None:
            link = _answer(error.redirect_uri, answer_mode, state, error=error.code, error_description=str(error))
        raise AuthorizationRefused(str(error), link) from None
    if mode not in RESPONSE_MODES:
        link = _answer(redirect_uri, answer_mode, state, error="invalid_request")
        raise AuthorizationRefused("response_mode must be query or fragment.", link)
    return AuthorizationRequest(
        client=client,
        redirect_uri=redirect_uri,
        response_mode=answer_mode,
        scope=parse_scope(given["scope"]),
        challenge=given["code_challenge"],
        state=state,
        wants_account="create" in given.get("prompt", "").split(" "),
        login_hint=given.get("login_hint", "")[: limits.LOGGED_NAME_CHARACTERS_MAX],
    )


def store_code(tx: Transaction, request: AuthorizationRequest, user_id: UserID) -> str:
    """Lets the client in, because the user wants it: returns where the browser goes next.

    Raises M_USER_DEACTIVATED if the account has ended meanwhile.
    """
    if not is_active(tx, user_id):
        raise MatrixError(403, "M_USER_DEACTIVATED", "This account has been deactivated.")
    user_nid = tx.intern(user_id)
    tx.run(
        "DELETE FROM oauth_codes WHERE user_nid = ? AND expires_ms <= COALESCE((SELECT expires_ms FROM oauth_codes"
        " WHERE user_nid = ? ORDER BY expires_ms DESC LIMIT 1 OFFSET ?), 0)",
        user_nid, user_nid, limits.users.OAUTH_CODES_PER_USER_MAX - 1,
    )  # fmt: skip
    code = new_token("hscd")
    tx.run(
        "INSERT INTO oauth_codes (code_hash, client_id, user_nid, redirect_uri, scope, challenge, expires_ms)"
        " VALUES (?, ?, ?, ?, ?, ?, ?)",
        hash_token(code), request.client.client_id, user_nid, request.redirect_uri, request.scope.text,
        request.challenge, tx.now_ms + limits.users.OAUTH_CODE_LIFETIME_MS,
    )  # fmt: skip
    note_client_used(tx, request.client.client_id)
    return _answer(request.redirect_uri, request.response_mode, request.state, code=code)


def deny(request: AuthorizationRequest) -> str:
    """Returns where the browser goes if the user does not let the client in."""
    return _answer(request.redirect_uri, request.response_mode, request.state, error="access_denied")


def _answer(redirect_uri: str, mode: ResponseMode, state: str | None, **values: str) -> str:
    if state is not None:
        values["state"] = state
    return str(add_params_to_uri(redirect_uri, values, fragment=mode == "fragment"))
