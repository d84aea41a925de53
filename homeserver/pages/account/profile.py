"""Display name and picture: how other people see the user. Suspended accounts can look, but not change them."""

from __future__ import annotations

from homeserver import authenticate
from homeserver.errors import MatrixError, not_found
from homeserver.pages.account.login import said_of
from homeserver.pages.account.notices import notice_of
from homeserver.pages.account.visits import Answer, Data, Page, PageRoutes, Problem, Redirect, Visit, page_path
from homeserver.resources import Resources
from homeserver.users.profile import get_member_profile
from homeserver.users.profile_changes import change_profile, checked_value

routes = PageRoutes()

# Pictures that browsers show and that cannot have scripts.
PICTURES = ("image/png", "image/jpeg", "image/gif", "image/webp", "image/avif")
SAVED = "?done=profile"


@routes.get("profile")
async def show_profile(hs: Resources, visit: Visit) -> Answer:
    return await _page(hs, visit)


async def _page(hs: Resources, visit: Visit, problems: tuple[Problem, ...] = (), status: int = 200) -> Page:
    profile = await hs.database.read(get_member_profile, visit.user_id)
    assert visit.session is not None, "the route needs a log-in"
    values = {
        "name": visit.form.get("name", profile.get("displayname", "")),
        "has_picture": "avatar_url" in profile,
        "suspended": visit.session.flags.is_suspended,
        "pictures": ", ".join(PICTURES),
        "notice": notice_of(visit),
    }
    return Page("profile.html", values, problems, status)


@routes.get("picture")
async def get_picture(hs: Resources, visit: Visit) -> Answer:
    uri = (await hs.database.read(get_member_profile, visit.user_id)).get("avatar_url")
    if not isinstance(uri, str) or visit.files is None:
        raise not_found("You have no picture.")
    content_type, content = await visit.files.download(hs, uri)
    if content_type not in PICTURES:
        raise not_found("Your picture is of a kind that cannot be shown here.")
    return Data(content, content_type)


@routes.post("profile")
async def save_name(hs: Resources, visit: Visit) -> Answer:
    try:
        await _change(hs, visit, "displayname", " ".join(visit.text("name").split()))
    except MatrixError as error:
        return await _page(hs, visit, (Problem("name", said_of(error)),), error.status)
    return Redirect(page_path("profile") + SAVED)


@routes.post("profile/picture", takes_picture=True)
async def save_picture(hs: Resources, visit: Visit) -> Answer:
    content_type, content = visit.picture or ("", b"")
    if content_type not in PICTURES or visit.files is None:
        problem = Problem("picture", "Choose a picture: PNG, JPEG, GIF, WebP or AVIF.")
        return await _page(hs, visit, (problem,), 400)
    try:
        _check_may_change(hs, visit)
        hs.rate_limits.take("upload", visit.user_id, hs.now_ms())
        uri = await visit.files.upload(hs, visit.user_id, content, content_type)
        await change_profile(hs, visit.user_id, "avatar_url", checked_value("avatar_url", uri))
    except MatrixError as error:
        return await _page(hs, visit, (Problem("picture", said_of(error)),), error.status)
    return Redirect(page_path("profile") + SAVED)


@routes.post("profile/remove_picture")
async def remove_picture(hs: Resources, visit: Visit) -> Answer:
    await _change(hs, visit, "avatar_url", "")
    return Redirect(page_path("profile") + SAVED)


async def _change(hs: Resources, visit: Visit, field: str, value: str) -> None:
    """Sets a field, or removes it if the value is empty. Raises MatrixError, as the operation does."""
    _check_may_change(hs, visit)
    await change_profile(hs, visit.user_id, field, checked_value(field, value))


def _check_may_change(hs: Resources, visit: Visit) -> None:
    """Raises M_USER_SUSPENDED, or M_LIMIT_EXCEEDED: each change is an event in each of the user's rooms."""
    assert visit.session is not None, "the route needs a log-in"
    if visit.session.flags.is_suspended:
        raise authenticate.user_suspended()
    hs.rate_limits.take("profile", visit.user_id, hs.now_ms())
