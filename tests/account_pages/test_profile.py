"""Display name and picture on the account pages."""

from __future__ import annotations

import pytest

from homeserver import authenticate
from homeserver.authenticate import AccountFlags
from homeserver.config import BlobsSection
from homeserver.users.administration import set_shadow_banned
from tests.media import images
from tests.support.browser import ACCOUNT, Browser, PageShown
from tests.support.homeservers import PASSWORD, Homeservers, Server

SCRIPT = "<script>alert(1)</script>\"'>"


async def open_profile(server: Server, browser: Browser) -> PageShown:
    await server.register("alice")
    await browser.log_in("alice", PASSWORD)
    return await browser.open(f"{ACCOUNT}profile")


async def profile_of(server: Server) -> dict[str, str]:
    profile: dict[str, str] = await server.anonymous.ok("GET", "profile/@alice:test.example")
    return profile


async def test_a_person_changes_their_name(homeserver: Server, browser: Browser) -> None:
    page = await open_profile(homeserver, browser)
    page = await browser.send(page, "profile", name="  Alice   Liddell ")
    assert "Your profile has been saved." in page.text
    assert (await profile_of(homeserver))["displayname"] == "Alice Liddell"
    assert (await browser.open(ACCOUNT)).heading == "Alice Liddell"


async def test_a_new_name_reaches_the_rooms(homeserver: Server, browser: Browser) -> None:
    page = await open_profile(homeserver, browser)
    alice = await homeserver.log_in("alice")
    room_id = await homeserver.make_room(alice)
    await browser.send(page, "profile", name="Alice Liddell")
    member = await alice.ok("GET", f"rooms/{room_id}/state/m.room.member/{alice.user_id}")
    assert member["displayname"] == "Alice Liddell"


async def test_new_names_of_shadow_banned_users_do_not_reach_rooms(homeserver: Server, browser: Browser) -> None:
    page = await open_profile(homeserver, browser)
    alice = await homeserver.log_in("alice")
    room_id = await homeserver.make_room(alice)
    await homeserver.write(set_shadow_banned, alice.user_id, True)
    page = await browser.send(page, "profile", name="Alice Liddell")
    assert "Your profile has been saved." in page.text
    assert (await profile_of(homeserver))["displayname"] == "Alice Liddell"
    member = await alice.ok("GET", f"rooms/{room_id}/state/m.room.member/{alice.user_id}")
    assert member["displayname"] == "alice"


async def test_names_keep_to_the_rules_of_the_operation(homeserver: Server, browser: Browser) -> None:
    page = await open_profile(homeserver, browser)
    page = await browser.send(page, "profile", name="x" * 5_000)
    assert page.status == 400 and page.problems[0].startswith("A display name may be at most")


async def test_names_of_people_are_shown_as_text(homeserver: Server, browser: Browser) -> None:
    page = await open_profile(homeserver, browser)
    page = await browser.send(page, "profile", name=SCRIPT)  # examined: nothing of it is markup
    assert page.tree.xpath("//input[@id='name']/@value") == [SCRIPT]
    assert (await browser.open(ACCOUNT)).heading == SCRIPT


async def upload(browser: Browser, page: PageShown, content: bytes, content_type: str = "image/png") -> PageShown:
    token = page.form("profile/picture").xpath(".//input[@name='form_token']/@value")[0]
    files = {"picture": ("me.png", content, content_type)}
    answer = await browser.http.post(f"{ACCOUNT}profile/picture", data={"form_token": token}, files=files)
    return await browser.shown(answer)


async def test_a_person_changes_their_picture(homeserver: Server, browser: Browser) -> None:
    page = await open_profile(homeserver, browser)
    picture = images.encoded(images.gradient(40, 40), "PNG")
    page = await upload(browser, page, picture)
    assert "Your profile has been saved." in page.text
    uri = (await profile_of(homeserver))["avatar_url"]
    assert uri.startswith("mxc://test.example/")
    shown = await browser.http.get(f"{ACCOUNT}picture")
    assert (shown.headers["content-type"], shown.content) == ("image/png", picture)
    page = await browser.send(page, "profile/remove_picture")
    assert "avatar_url" not in await profile_of(homeserver)
    assert (await browser.http.get(f"{ACCOUNT}picture")).status_code == 404


@pytest.mark.parametrize("content_type", ["image/svg+xml", "text/html", ""])
async def test_pictures_are_pictures(homeserver: Server, browser: Browser, content_type: str) -> None:
    """Files with scripts would be run in the name of this server."""
    page = await open_profile(homeserver, browser)
    page = await upload(browser, page, b"<svg onload=alert(1)>", content_type)
    assert page.problems == ["Choose a picture: PNG, JPEG, GIF, WebP or AVIF."]


async def test_a_picture_of_another_kind_is_not_shown(homeserver: Server, browser: Browser) -> None:
    """A client may set any file as the picture."""
    await open_profile(homeserver, browser)
    alice = await homeserver.log_in("alice")
    headers = {"content-type": "image/svg+xml"}
    uploaded = await alice.post("/_matrix/media/v3/upload", content=b"<svg/>", headers=headers)
    uri = uploaded.json()["content_uri"]
    await alice.ok("PUT", f"profile/{alice.user_id}/avatar_url", json={"avatar_url": uri})
    answer = await browser.http.get(f"{ACCOUNT}picture")
    assert answer.status_code == 404 and b"<svg" not in answer.content.split(b"<main")[1]


async def test_too_large_a_picture_is_refused(homeserver: Server, browser: Browser) -> None:
    page = await open_profile(homeserver, browser)
    assert (await upload(browser, page, bytes(9 << 20))).status == 413


async def test_pictures_keep_to_the_limits_of_uploads(homeservers: Homeservers) -> None:
    server = await homeservers.start(blobs=BlobsSection(url="memory:", upload_bytes_max=100))
    browser = Browser(server.app, server.name)
    page = await open_profile(server, browser)
    page = await upload(browser, page, images.encoded(images.gradient(40, 40), "PNG"))
    assert page.status == 413 and len(page.problems) == 1


async def test_accounts_that_are_suspended_keep_their_profile(homeserver: Server, browser: Browser) -> None:
    page = await open_profile(homeserver, browser)
    await homeserver.write(authenticate.store_account_flags, "@alice:test.example", AccountFlags(is_suspended=True))
    assert "Your account is suspended." in (await browser.open(f"{ACCOUNT}profile")).text
    page = await browser.send(page, "profile", name="Other")
    assert page.status == 403
    assert (await upload(browser, page, images.encoded(images.gradient(40, 40), "PNG"))).status == 403
    assert (await profile_of(homeserver))["displayname"] == "alice"
