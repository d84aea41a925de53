"""Creating an account, on servers where `[registration]` lets people do so.

The rules are those of `POST /register`: names, passwords, registration tokens, and how many accounts an address may
create. Spec: client-server-api/#user-registration
"""

from __future__ import annotations

import msgspec

from homeserver.config import Config
from homeserver.database import Transaction
from homeserver.errors import MatrixError
from homeserver.federation.identifiers import UserID
from homeserver.pages.account.login import begin_session, said_of
from homeserver.pages.account.visits import Answer, Page, PageRoutes, Problem, Redirect, Visit, problem_of
from homeserver.process.rate_limits import address_key
from homeserver.resources import Resources
from homeserver.users.accounts import check_name_is_free, create_user, find_user, user_id_of, user_in_use
from homeserver.users.page_sessions import local_path
from homeserver.users.passwords import check_new_password, hash_password
from homeserver.users.registration_tokens import STAGE, is_valid_token, note_token_used
from homeserver.users.user_interactive import Authentication

routes = PageRoutes()

# The fields at which each error of `_check_free` is shown.
_FIELDS = {"M_UNAUTHORIZED": "token", "M_FORBIDDEN": "token"}


class _Wish(msgspec.Struct, frozen=True):
    """The form of the page."""

    name: str
    password: str
    repeated: str
    token: str


@routes.get("register", is_public=True)
async def show_register(hs: Resources, visit: Visit) -> Answer:
    check_is_open(hs.config)
    return _page(hs, visit, local_path(visit.query.get("return_to")))


def check_is_open(config: Config) -> None:
    """Raises M_FORBIDDEN unless people can create accounts on this page."""
    if not config.registration.enabled:
        said = "Accounts on this server are created by the people who run it. Ask them for one."
        raise MatrixError(403, "M_FORBIDDEN", said)
    if config.registration.recaptcha_public_key or config.registration.terms_url:
        said = (
            "This server asks new people for more than this page can. Create your account in an app, such as Element."
        )
        raise MatrixError(403, "M_FORBIDDEN", said)


def _page(hs: Resources, visit: Visit, return_to: str, problems: tuple[Problem, ...] = (), status: int = 200) -> Page:
    values = {
        "return_to": return_to,
        "name": visit.text("username"),
        "token": visit.text("token"),
        "needs_token": hs.config.registration.require_token,
        "length_min": hs.config.passwords.length_min,
    }
    return Page("register.html", values, problems, status)


@routes.post("register", is_public=True)
async def register(hs: Resources, visit: Visit) -> Answer:
    check_is_open(hs.config)
    return_to = local_path(visit.text("return_to"))
    if visit.session is not None:
        return Redirect(return_to)
    wish = _Wish(
        visit.text("username").strip(), visit.text("password"), visit.text("repeated"), visit.text("token").strip()
    )  # fmt: skip
    problems = _problems(hs, wish)
    if problems:
        return _page(hs, visit, return_to, problems, 400)
    try:
        hs.rate_limits.take("registration", address_key(visit.address), hs.now_ms())
        user_id = user_id_of(hs.server_name, wish.name)
        await hs.database.read(_check_free, user_id, wish.token)
        password_hash = await hash_password(hs, wish.password)
        token = await hs.database.write(_store_account, user_id, password_hash, wish.token, visit)
    except MatrixError as error:
        at = "" if error.status == 429 else _FIELDS.get(error.errcode, "username")
        return _page(hs, visit, return_to, (Problem(at, said_of(error)),), error.status)
    return Redirect(return_to, session=token)


def _problems(hs: Resources, wish: _Wish) -> tuple[Problem, ...]:
    problems: list[Problem] = []
    try:
        user_id_of(hs.server_name, wish.name)
    except MatrixError as error:
        problems += problem_of(error, "username")
    try:
        check_new_password(hs, wish.password)
        if wish.password != wish.repeated:
            problems.append(Problem("repeated", "The two passwords are not the same."))
    except MatrixError as error:
        problems += problem_of(error, "password")
    if hs.config.registration.require_token and not wish.token:
        problems.append(Problem("token", "Enter the registration token that you have been given."))
    return tuple(problems)


def _check_free(tx: Transaction, user_id: UserID, token: str) -> None:
    """Raises MatrixError if the token is not valid or, only then, if the name is taken: others cannot test names."""
    _check_token(tx, token)
    check_name_is_free(tx, user_id)
    if find_user(tx, user_id) is not None:
        raise user_in_use()


def _check_token(tx: Transaction, token: str) -> None:
    if tx.server.config.registration.require_token and not is_valid_token(tx, token):
        raise MatrixError(401, "M_UNAUTHORIZED", "This registration token is not valid.")


def _store_account(tx: Transaction, user_id: UserID, password_hash: str, token: str, visit: Visit) -> str:
    """Creates the account, and returns the token of a session."""
    if tx.server.config.registration.require_token:
        note_token_used(tx, Authentication(results={STAGE: token}))
    create_user(tx, user_id, password_hash)
    return begin_session(tx, user_id, "registration", visit)
