"""A person logs in to apps and keeps an account, by keyboard alone: python journey.py PLAN

PLAN is JSON: `url` of the server, `axe` (the file of axe-core), `chromium` (the program), `screenshots` (a folder),
`user`, `user_id` and `password`. Prints each scene; its last line is JSON with the complaints.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

from app import App
from playwright.sync_api import expect, sync_playwright
from visitor import Visitor

NEW_PASSWORD = "a better password"
POLL_S = 5.2  # the interval that the server asks for


class Story:
    """What the scenes share."""

    def __init__(self, plan: dict[str, str], visitor: Visitor, app: App) -> None:
        self.plan = plan
        self.me = visitor
        self.app = app
        self.account = f"{plan['url']}/_homeserver/account/"


def log_in_to_an_app(story: Story) -> None:
    """An app opens the log-in page; a mistake is explained; the person consents; the app has its tokens."""
    me, plan = story.me, story.plan
    me.page.goto(story.app.address("PHONE"))
    me.expect_heading(f"Log in to {plan['server_name']}")
    me.look("log in")
    me.type_in("text", "Username", plan["user"])
    me.page.keyboard.press("Enter")
    summary = me.page.get_by_role("alert").filter(has_text="There is a problem")
    expect(summary).to_be_focused()
    me.look("log in without a password")
    me.press("a", "Enter your password.")
    expect(me.page.get_by_label("Password")).to_be_focused()
    me.page.keyboard.type(plan["password"])
    me.page.keyboard.press("Enter")
    me.expect_heading("Log in to An App?")
    me.look("consent")
    me.press("button", "Allow")
    me.expect_heading("Back in the app")
    assert story.app.returned[-1]["state"] == ["the state of the app"]
    assert story.app.finish() == plan["user_id"]


def log_in_without_knowing_how(story: Story) -> None:
    """An app that knows no way to log in opens the page that does it, which gives it the access token."""
    me, plan = story.me, story.plan
    me.page.goto(f"{plan['url']}/_matrix/static/client/login/?device_id=WEBVIEW")
    me.expect_heading(f"Log in to {plan['server_name']}")
    me.look("log in for an app")
    me.type_in("text", "Username", plan["user"])
    me.type_in("password", "Password", plan["password"])
    me.page.keyboard.press("Enter")
    expect(me.page.get_by_role("alert")).to_contain_text("only works inside an app")
    me.page.evaluate("window.matrixLogin = { onLogin: (answer) => { window.answer = answer; } }")
    me.page.keyboard.press("Enter")
    told = me.page.wait_for_function("window.answer").json_value()
    assert (told["user_id"], told["device_id"]) == (plan["user_id"], "WEBVIEW")


def keep_an_app_out(story: Story) -> None:
    """The person is still logged in, but does not want to let the app in."""
    me = story.me
    me.page.goto(story.app.address("OTHER"))
    me.expect_heading("Log in to An App?")
    me.press("button", "Cancel")
    me.expect_heading("Back in the app")
    assert story.app.returned[-1]["error"] == ["access_denied"]


def log_in_a_television(story: Story) -> None:
    """A device shows a code; the person types it, sees what asks, and allows it."""
    me = story.me
    codes = story.app.begin_device("TV")
    me.page.goto(codes["verification_uri"])
    me.expect_heading("Log in a device by code")
    me.type_in("text", "Code", "BCDF GHJK")
    me.page.keyboard.press("Enter")
    expect(me.page.get_by_role("alert").filter(has_text="There is a problem")).to_be_focused()
    me.look("wrong code")
    me.type_in("text", "Code", codes["user_code"].lower())
    me.page.keyboard.press("Enter")
    me.expect_heading("Log in An App on another device?")
    me.look("code")
    assert story.app.poll_device(codes) == "authorization_pending"
    me.press("button", "Allow")
    expect(me.page.get_by_role("status")).to_contain_text("is being logged in")
    time.sleep(POLL_S)
    assert story.app.poll_device(codes) == story.plan["user_id"]


def look_after_devices(story: Story) -> None:
    """The person renames a device and logs it out."""
    me = story.me
    me.page.goto(story.account)
    me.look("account")
    me.press("a", "Devices")
    me.expect_heading("Devices")
    me.look("devices")
    me.press("a", "Details of An App, TV")
    me.expect_heading("An App")
    me.look("device")
    me.type_in("text", "Name", "Television")
    me.page.keyboard.press("Enter")
    expect(me.page.get_by_role("heading", name="Television")).to_be_visible()
    me.press("a", "Log out Television, TV")
    me.expect_heading("Log out Television?")
    me.look("log out a device")
    me.press("button", "Log out")
    expect(me.page.get_by_role("status")).to_have_text("The device has been logged out.")


def change_the_profile(story: Story) -> None:
    """The person changes the display name."""
    me = story.me
    me.page.goto(f"{story.account}?action=org.matrix.profile")
    me.expect_heading("Profile")
    me.type_in("text", "Display name", "Juliet Capulet")
    me.page.keyboard.press("Enter")
    expect(me.page.get_by_role("status")).to_have_text("Your profile has been saved.")
    me.look("profile")


def add_a_passkey(story: Story) -> None:
    """The person adds a passkey, logs out, and logs in with it."""
    me = story.me
    me.tools.send("WebAuthn.enable")
    key: dict[str, Any] = {"protocol": "ctap2", "transport": "internal", "automaticPresenceSimulation": True}
    key |= {"hasResidentKey": True, "hasUserVerification": True, "isUserVerified": True}
    me.tools.send("WebAuthn.addVirtualAuthenticator", {"options": key})
    me.page.goto(story.account)
    me.press("a", "Passkeys")
    me.expect_heading("Passkeys")
    me.type_in("text", "Name", "This laptop")
    me.press("button", "Add a passkey")
    expect(me.page.get_by_role("status")).to_have_text("The passkey has been added.")
    me.look("passkeys")
    me.press("a", "Log out")
    me.expect_heading("Log out of these pages?")
    me.look("log out")
    me.press("button", "Log out")
    me.expect_heading(f"Log in to {story.plan['server_name']}")
    me.press("button", "Use a passkey")
    me.expect_heading("Juliet Capulet")


def change_the_password(story: Story) -> None:
    """The person changes the password; devices stay logged in, as wished."""
    me, plan = story.me, story.plan
    me.page.goto(story.account)
    me.press("a", "Password")
    me.expect_heading("Change your password")
    me.look("password")
    me.type_in("password", "Current password", plan["password"])
    me.type_in("password", "New password", NEW_PASSWORD)
    me.type_in("password", "New password again", NEW_PASSWORD)
    me.tick("Log out all devices")
    me.press("button", "Change password")
    expect(me.page.get_by_role("status")).to_have_text("Your password has been changed.")


def reset_the_identity(story: Story) -> None:
    """The person approves that an app resets cross-signing."""
    me = story.me
    me.page.goto(f"{story.account}?action=org.matrix.cross_signing_reset")
    me.expect_heading("Reset your digital identity?")
    me.look("reset")
    me.press("button", "Allow the reset")
    expect(me.page.get_by_role("status")).to_contain_text("within the next ten minutes")


def leave(story: Story) -> None:
    """The person deactivates the account, and cannot log in any more."""
    me = story.me
    me.page.goto(f"{story.account}?action=org.matrix.account_deactivate")
    me.expect_heading("Deactivate your account?")
    me.press("button", "Deactivate")
    expect(me.page.get_by_role("alert").filter(has_text="There is a problem")).to_be_focused()
    me.look("deactivate")
    me.tick("I am sure")
    me.type_in("password", "Password", NEW_PASSWORD)
    me.page.keyboard.press("Enter")
    expect(me.page.get_by_role("status")).to_have_text("Your account has been deactivated.")
    me.log_in(story.plan["user"], NEW_PASSWORD)
    expect(me.page.get_by_role("alert").filter(has_text="deactivated")).to_be_visible()


def come_again(story: Story) -> None:
    """An app wishes for a new account; the person creates one and lets the app in."""
    me = story.me
    me.page.goto(story.app.address("NEW", prompt="create"))
    me.expect_heading(f"Create an account on {story.plan['server_name']}")
    me.look("create an account")
    me.type_in("text", "Username", "rosaline")
    me.type_in("password", "Password", NEW_PASSWORD)
    me.type_in("password", "Password again", NEW_PASSWORD)
    me.page.keyboard.press("Enter")
    me.expect_heading("Log in to An App?")
    me.press("button", "Allow")
    me.expect_heading("Back in the app")
    assert story.app.finish().startswith("@rosaline:")


SCENES = (
    log_in_to_an_app, log_in_without_knowing_how, keep_an_app_out, log_in_a_television, look_after_devices,
    change_the_profile, add_a_passkey, change_the_password, reset_the_identity, leave, come_again,
)  # fmt: skip


def main(plan: dict[str, str]) -> None:
    """Plays all scenes."""
    screenshots = Path(plan["screenshots"])
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=plan["chromium"])
        visitor = Visitor(browser, Path(plan["axe"]).read_text("utf-8"), screenshots)
        app = App(plan["url"], "An App")
        story = Story(plan, visitor, app)
        for scene in SCENES:
            try:
                scene(story)
            except BaseException:
                visitor.page.screenshot(path=screenshots / f"failed-{scene.__name__}.png", full_page=True)
                raise
            print(scene.__doc__, flush=True)
        app.close()
        browser.close()
    print(json.dumps({"complaints": visitor.complaints}))


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
