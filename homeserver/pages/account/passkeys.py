"""Passkeys: adding one, listing and removing them, and logging in with one. See `homeserver.users.passkeys`."""

from __future__ import annotations

from base64 import urlsafe_b64decode, urlsafe_b64encode
from binascii import Error as Base64Error

from homeserver import limits
from homeserver.database import Transaction
from homeserver.errors import MatrixError, forbidden, not_found
from homeserver.federation.identifiers import UserID
from homeserver.pages.account.devices import day
from homeserver.pages.account.login import ask_again, begin_session, is_confirmed, login_page, said_of
from homeserver.pages.account.notices import notice_of
from homeserver.pages.account.visits import Answer, Data, Page, PageRoutes, Problem, Redirect, Visit, page_path
from homeserver.process.rate_limits import address_key
from homeserver.resources import Resources
from homeserver.users.page_sessions import local_path
from homeserver.users.passkeys import (
    NewPasskey,
    Passkey,
    are_passkeys_possible,
    check_new_passkey,
    check_passkey,
    create_challenge,
    create_passkey,
    delete_challenge,
    delete_passkey,
    find_passkey,
    get_challenge,
    list_passkeys,
    make_creation_options,
    make_request_options,
    note_passkey_used,
    read_credential_id,
    wrong_passkey,
)
from homeserver.users.password_login import count_login, log_failed_login

routes = PageRoutes()

JSON = "application/json"


@routes.get("passkeys")
async def show_passkeys(hs: Resources, visit: Visit) -> Answer:
    return await _page(hs, visit)


async def _page(hs: Resources, visit: Visit, problems: tuple[Problem, ...] = (), status: int = 200) -> Page:
    values = {
        "passkeys": [_shown(each) for each in await hs.database.read(list_passkeys, visit.user_id)],
        "name": visit.text("name"),
        "notice": notice_of(visit),
        "possible": are_passkeys_possible(hs.config),
        "confirmed": is_confirmed(hs, visit),
        "confirm": ask_again(page_path("passkeys")).to,
    }
    return Page("passkeys.html", values, problems, status, scripts=True)


def _shown(passkey: Passkey) -> dict[str, str]:
    return {
        "id": urlsafe_b64encode(passkey.credential_id).decode(),
        "name": passkey.name,
        "created": day(passkey.created_ms),
        "used": "" if passkey.used_ms is None else day(passkey.used_ms),
    }


# --- adding and removing ---


@routes.post("passkeys/options")
async def get_creation_options(hs: Resources, visit: Visit) -> Answer:
    _check_confirmed(hs, visit)
    known, challenge = await hs.database.write(_begin_adding, visit)
    return Data((await make_creation_options(hs, visit.user_id, known, challenge)).encode(), JSON)


def _begin_adding(tx: Transaction, visit: Visit) -> tuple[list[Passkey], bytes]:
    return list_passkeys(tx, visit.user_id), create_challenge(tx, visit.form_token)


def _check_confirmed(hs: Resources, visit: Visit) -> None:
    if not is_confirmed(hs, visit):
        raise forbidden("Your log-in is too old for this. Open the page again.")


@routes.post("passkeys")
async def add_passkey(hs: Resources, visit: Visit) -> Answer:
    if not is_confirmed(hs, visit):
        return ask_again(page_path("passkeys"))
    name = " ".join(visit.text("name").split()) or "Passkey"
    if len(name) > limits.PASSKEY_NAME_CHARACTERS_MAX:
        said = f"A name may have at most {limits.PASSKEY_NAME_CHARACTERS_MAX} characters."
        return await _page(hs, visit, (Problem("name", said),), 400)
    try:
        challenge = await hs.database.read(get_challenge, visit.form_token)
        new = await check_new_passkey(hs, visit.text("credential"), challenge)
        await hs.database.write(_store_passkey, visit, challenge, new, name)
    except MatrixError as error:
        return await _page(hs, visit, (Problem("", error.error),), error.status)
    return Redirect(page_path("passkeys") + "?done=passkey")


def _store_passkey(tx: Transaction, visit: Visit, challenge: bytes, new: NewPasskey, name: str) -> None:
    delete_challenge(tx, visit.form_token, challenge)
    create_passkey(tx, visit.user_id, new, name)


@routes.post("passkeys/delete")
async def remove_passkey(hs: Resources, visit: Visit) -> Answer:
    if not is_confirmed(hs, visit):
        return ask_again(page_path("passkeys"))
    try:
        credential_id = urlsafe_b64decode(visit.text("id").encode())
    except (Base64Error, ValueError):
        raise not_found("You have no such passkey.") from None
    await hs.database.write(delete_passkey, visit.user_id, credential_id)
    return Redirect(page_path("passkeys") + "?done=passkey-removed")


# --- logging in ---


@routes.post("passkeys/login_options", is_public=True)
async def get_request_options(hs: Resources, visit: Visit) -> Answer:
    hs.rate_limits.take("login", address_key(visit.address), hs.now_ms())
    challenge = await hs.database.write(create_challenge, visit.form_token)
    return Data((await make_request_options(hs, challenge)).encode(), JSON)


@routes.post("passkeys/login", is_public=True)
async def log_in_with_passkey(hs: Resources, visit: Visit) -> Answer:
    """Also shows again who the person is: then the passkey must be of the user who is logged in."""
    return_to = local_path(visit.text("return_to"))
    try:
        hs.rate_limits.take("login", address_key(visit.address), hs.now_ms())
        token = await _log_in(hs, visit, visit.text("credential"))
    except MatrixError as error:
        count_login(hs, "refused")
        log_failed_login(visit.address, "" if visit.session is None else visit.user_id, error.errcode)
        if visit.session is not None:
            raise
        return login_page(hs, return_to, "", (Problem("", said_of(error)),), error.status)
    count_login(hs, "accepted")
    return Redirect(return_to, session=token)


async def _log_in(hs: Resources, visit: Visit, answer: str) -> str:
    """Returns the token of a new session. Raises MatrixError."""
    challenge = await hs.database.read(get_challenge, visit.form_token)
    credential_id = await hs.workers.run(read_credential_id, answer)
    passkey = await hs.database.read(find_passkey, credential_id)
    if passkey is None or (visit.session is not None and passkey.user_id != visit.user_id):
        raise wrong_passkey()
    sign_count = await check_passkey(hs, passkey, answer, challenge)
    return await hs.database.write(_store_login, visit, challenge, passkey, sign_count)


def _store_login(tx: Transaction, visit: Visit, challenge: bytes, passkey: Passkey, sign_count: int) -> str:
    delete_challenge(tx, visit.form_token, challenge)
    user_id: UserID = passkey.user_id
    if find_passkey(tx, passkey.credential_id) is None:  # removed meanwhile
        raise wrong_passkey()
    note_passkey_used(tx, passkey, sign_count)
    return begin_session(tx, user_id, "passkey", visit)
