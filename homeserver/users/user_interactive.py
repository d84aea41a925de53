"""User-interactive authentication: stages that a request must pass before it is carried out.

Theory of operation. A request without `auth` gets a 401 that lists the flows, each a sequence of stages, and a new
session. The client repeats the request with `auth`, which names the session and answers one stage. A completed stage is
stored in the session; when all stages of a flow are complete, the request is carried out. The write that does so also
deletes the session (`delete_session`), so a session can be used only once, for one operation of one user. A failed
stage leaves the session as it was, and the client may try again.

Sessions are rows of the database, so any node may answer the next request, and a restart in the middle of a
registration loses nothing. Their number and age are limited.
Spec: client-server-api/#user-interactive-authentication-api
"""

from __future__ import annotations

import secrets
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

import msgspec
import orjson

from homeserver import limits
from homeserver.database import Schema, Step, Transaction
from homeserver.errors import MatrixError, bad_json, forbidden, missing_param
from homeserver.feature import JsonObject
from homeserver.federation.identifiers import UserID
from homeserver.moments import latest
from homeserver.resources import Resources
from homeserver.users import accounts
from homeserver.users.passwords import verify_password
from homeserver.users.single_sign_on import list_external_ids
from homeserver.users.threepids import identify

# number: 1, 2, … in order of creation, so that the oldest can be dropped. completed: JSON object, stage → result.
SCHEMA = Schema(
    "user_interactive",
    (
        Step(
            "create",
            """
            CREATE TABLE user_interactive_sessions (
                session TEXT PRIMARY KEY,
                number INTEGER NOT NULL,
                operation TEXT NOT NULL,
                user_nid INTEGER NOT NULL,
                created_ms INTEGER NOT NULL,
                completed TEXT NOT NULL
            );
            CREATE UNIQUE INDEX user_interactive_sessions_number ON user_interactive_sessions (number);
            """,
        ),
    ),
)

Load = Callable[[Transaction, JsonObject], Any]
Check = Callable[[Resources, JsonObject, Any], Awaitable[Any]]


SSO_STAGE = "m.login.sso"


def _load_nothing(tx: Transaction, auth: JsonObject) -> None:
    return None


class Stage(msgspec.Struct, frozen=True):
    """One type of authentication, as offered by one operation.

    load(tx, auth) reads the data it needs, in the request's only read; an exception ends the request. check(hs, auth,
    loaded) returns the result to store in the session (JSON); it raises 401 or 403 if the client may try again.
    `params` are sent to the client.
    """

    type: str
    check: Check
    load: Load = _load_nothing
    params: Mapping[str, Any] | None = None


Flow = tuple[Stage, ...]
Flows = Sequence[Flow] | Callable[[Transaction], Sequence[Flow]]
"""The flows that an operation offers, or a function that reads which ones these are."""


class AuthenticationRequired(MatrixError):
    """The 401 that lists the flows. It has an errcode only after a failed stage."""

    def body(self) -> JsonObject:
        if self.errcode:
            return {"errcode": self.errcode, "error": self.error, **self.extra}
        return dict(self.extra)


class Authentication(msgspec.Struct, frozen=True):
    """Proof that all stages of a flow are complete. Pass it to `delete_session` in the write that does the work.

    results: by stage. session: None if the client authenticated in its first request.
    """

    session: str | None = None
    results: Mapping[str, Any] = msgspec.field(default_factory=dict)


class Attempt(msgspec.Struct, frozen=True):
    """A request that needs authentication, with all the data read for it."""

    operation: str
    user_id: UserID | None
    flows: Sequence[Flow]
    auth: JsonObject | None
    session: str | None = None
    completed: Mapping[str, Any] = msgspec.field(default_factory=dict)
    stage: Stage | None = None
    loaded: Any = None
    error: MatrixError | None = None


async def require_stages(
    hs: Resources,
    operation: str,
    auth: JsonObject | None,
    flows: Flows,
    user_id: UserID | None = None,
) -> Authentication:
    """Returns once the stages of one of `flows` are complete. Otherwise raises the 401 that guides the client.

    auth: the `auth` of the request's body. operation: names the operation and its target; a session for another
    operation or user is refused. Needs one read, and one write if stages remain.
    """
    attempt = await hs.database.read(begin, operation, auth, flows, user_id)
    return await proceed(hs, attempt)


def begin(
    tx: Transaction,
    operation: str,
    auth: JsonObject | None,
    flows: Flows,
    user_id: UserID | None = None,
) -> Attempt:
    """Does the reading half of `require_stages`, for operations that read more. Raises M_BAD_JSON for a bad `auth`."""
    if callable(flows):
        flows = flows(tx)
    if auth is None:
        return Attempt(operation, user_id, flows, None)
    session, kind = auth.get("session"), auth.get("type")
    if not isinstance(session, str | None) or not isinstance(kind, str | None):
        raise bad_json("The type and the session of auth must be strings.")
    if session is None and kind is None:
        return Attempt(operation, user_id, flows, None)  # some clients send an empty object first
    completed: Mapping[str, Any] = {}
    error = None
    if session is not None:
        found = _find_session(tx, session)
        if found is None:
            session, error = None, MatrixError(401, "M_UNKNOWN", "This session is unknown or too old. Start again.")
        else:
            of_operation, of_user_nid, completed = found
            if of_operation != operation or of_user_nid != (tx.find(user_id) if user_id else 0):
                raise forbidden("This session was started for another request.")
    stage = None
    if kind is not None and kind not in completed:  # "Completed stages cannot be retried"
        stage = _next_stage(flows, completed, kind)
        if stage is None and error is None:
            error = MatrixError(401, "M_FORBIDDEN", "This stage is not offered here, or not yet.")
    if error is not None or stage is None:
        return Attempt(operation, user_id, flows, auth, session, completed, error=error)
    return Attempt(operation, user_id, flows, auth, session, completed, stage, stage.load(tx, auth))


async def proceed(hs: Resources, attempt: Attempt) -> Authentication:
    """Does the other half of `require_stages`: checks the given stage; raises the 401 unless a flow is complete."""
    completed = dict(attempt.completed)
    error = attempt.error
    if attempt.stage is not None:
        try:
            completed[attempt.stage.type] = await attempt.stage.check(hs, attempt.auth or {}, attempt.loaded)
        except MatrixError as refused:
            if refused.status not in (401, 403):
                raise
            error = refused
    if attempt.auth is not None and error is None and _is_complete(attempt.flows, completed):
        return Authentication(attempt.session, completed)
    session = attempt.session or secrets.token_urlsafe(24)
    if attempt.session is None or completed != attempt.completed:
        await hs.database.write(_store_session, session, attempt, completed)
    raise _unauthorized(attempt.flows, session, completed, error)


def delete_session(tx: Transaction, authentication: Authentication) -> None:
    """Deletes the session. Raises M_FORBIDDEN if another request has already used it."""
    session = authentication.session
    if session is not None and not tx.run("DELETE FROM user_interactive_sessions WHERE session = ?", session):
        raise forbidden("This session has already been used.")


def _next_stage(flows: Sequence[Flow], completed: Mapping[str, Any], kind: str) -> Stage | None:
    """Returns the stage of that type if only completed stages precede it in a flow: "must be completed in order"."""
    for flow in flows:
        for stage in flow:
            if stage.type == kind:
                return stage
            if stage.type not in completed:
                break
    return None


def _is_complete(flows: Sequence[Flow], completed: Mapping[str, Any]) -> bool:
    return any(all(stage.type in completed for stage in flow) for flow in flows)


def _unauthorized(
    flows: Sequence[Flow], session: str, completed: Mapping[str, Any], error: MatrixError | None
) -> MatrixError:
    body: JsonObject = {
        "flows": [{"stages": [stage.type for stage in flow]} for flow in flows],
        "params": {stage.type: stage.params for flow in flows for stage in flow if stage.params is not None},
        "session": session,
    }
    if completed:
        body["completed"] = list(completed)
    if error is None:
        return AuthenticationRequired(401, "", "This request needs further authentication.", **body)
    return AuthenticationRequired(401, error.errcode, error.error, **error.extra, **body)


# --- stages ---


def read_text(auth: JsonObject, key: str) -> str:
    """Returns a string in `auth`. Raises M_MISSING_PARAM or M_BAD_JSON."""
    value = auth.get(key)
    if value is None:
        raise missing_param(f"The {key} is missing in auth.")
    if not isinstance(value, str):
        raise bad_json(f"The {key} in auth must be a string.")
    return value


async def _accept(hs: Resources, auth: JsonObject, loaded: Any) -> bool:
    return True


DUMMY = Stage("m.login.dummy", _accept)


def password_stage(user_id: UserID) -> Stage:
    """Returns the stage `m.login.password`, which the requester must answer."""

    def load(tx: Transaction, auth: JsonObject) -> str | None:
        read_text(auth, "password")
        identifier = auth.get("identifier")
        if not isinstance(identifier, dict | None):
            raise bad_json("The identifier must be an object.")
        if identify(tx, identifier, auth.get("user")) != user_id:
            raise forbidden("Only the user who sent this request can authenticate it.")
        user = accounts.find_user(tx, user_id)
        return None if user is None else user.password_hash

    async def check(hs: Resources, auth: JsonObject, loaded: str | None) -> bool:
        if not (await verify_password(hs, user_id, loaded, read_text(auth, "password"))).is_right:
            raise accounts.wrong_password()
        return True

    return Stage("m.login.password", check, load)


async def _refuse_sso(hs: Resources, auth: JsonObject, loaded: Any) -> bool:
    raise MatrixError(401, "M_UNAUTHORIZED", "Log in again in a browser first: open the fallback page of this stage.")


def owner_flows(user_id: UserID) -> Callable[[Transaction], Sequence[Flow]]:
    """Returns how a user can prove to be the owner of the account: with the password, or by single sign-on.

    Accounts that have neither, such as those of bridges, are offered the password, which is then always wrong.
    """

    def read(tx: Transaction) -> Sequence[Flow]:
        flows: list[Flow] = []
        providers = {provider.id for provider in tx.server.config.sso}
        if providers and any(each in providers for each, _ in list_external_ids(tx, user_id)):
            flows.append((Stage(SSO_STAGE, _refuse_sso),))
        user = accounts.find_user(tx, user_id)
        if not flows or (user is not None and user.password_hash is not None):
            flows.insert(0, (password_stage(user_id),))
        return flows

    return read


# --- fallback pages ---


class Pending(msgspec.Struct, frozen=True):
    """A session that waits for stages, as fallback pages see it. user_id: None for operations without a user."""

    session: str
    operation: str
    user_id: UserID | None
    completed: Mapping[str, Any]


def find_pending(tx: Transaction, session: str) -> Pending | None:
    """Returns a session, None if it is unknown, used or too old."""
    found = _find_session(tx, session)
    if found is None:
        return None
    operation, user_nid, completed = found
    return Pending(session, operation, UserID(tx.name(user_nid)) if user_nid else None, completed)


def note_stage_completed(tx: Transaction, session: str, stage: str, result: Any) -> bool:
    """Notes that a stage was completed on a fallback page. Returns False if the session has ended.

    Whether the operation has such a stage is found out when its request is repeated; a useless one does no harm.
    """
    found = _find_session(tx, session)
    if found is None:
        return False
    text = orjson.dumps({**found[2], stage: result}).decode()
    tx.run("UPDATE user_interactive_sessions SET completed = ? WHERE session = ?", text, session)
    return True


# --- storage ---


def _find_session(tx: Transaction, session: str) -> tuple[str, int, dict[str, Any]] | None:
    """Returns operation, user (0 for none) and completed stages; None if the session is unknown or too old."""
    row = tx.one(
        "SELECT operation, user_nid, completed FROM user_interactive_sessions WHERE session = ? AND created_ms > ?"
        " AND created_ms <= ?",
        session, tx.now_ms - limits.USER_INTERACTIVE_LIFETIME_MS, latest(tx.now_ms, 0),
    )  # fmt: skip
    return None if row is None else (row[0], row[1], orjson.loads(row[2]))


def forget_sessions(tx: Transaction, user_id: UserID) -> None:
    """Deletes the user's sessions."""
    tx.run("DELETE FROM user_interactive_sessions WHERE user_nid = ?", tx.find(user_id))


def _store_session(tx: Transaction, session: str, attempt: Attempt, completed: Mapping[str, Any]) -> None:
    """Stores a new session, or the completed stages of a known one. Deletes sessions that are too old or too many."""
    text = orjson.dumps(completed).decode()
    if attempt.session is not None:
        tx.run("UPDATE user_interactive_sessions SET completed = ? WHERE session = ?", text, session)
        return
    (last,) = tx.one("SELECT MAX(number) FROM user_interactive_sessions") or (None,)
    number = (last or 0) + 1
    tx.run(
        "INSERT INTO user_interactive_sessions (session, number, operation, user_nid, created_ms, completed)"
        " VALUES (?, ?, ?, ?, ?, ?)",
        session, number, attempt.operation, tx.intern(attempt.user_id) if attempt.user_id else 0, tx.now_ms, text,
    )  # fmt: skip
    tx.run("DELETE FROM user_interactive_sessions WHERE number <= ?", number - limits.USER_INTERACTIVE_SESSIONS_MAX)
