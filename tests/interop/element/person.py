"""A person who uses Element in Chromium, and what they do with it."""

from __future__ import annotations

import re
from pathlib import Path

from playwright.sync_api import Browser, ConsoleMessage, Locator, Response, expect

PATIENCE_MS = 60_000
VIEWPORT = {"width": 1280, "height": 800}
# What is different for each user, room or event in a path.
NAMES = re.compile(r"(?<=/)(?:(?:[!$@#]|%(?:21|24|40|23))[^/]+|m\d{10,}[^/]*|[^/]{23,})")

expect.set_options(timeout=PATIENCE_MS)


class Traffic:
    """What Element asked of the servers."""

    def __init__(self) -> None:
        self.called: set[str] = set()
        self.refused: set[str] = set()

    def note(self, response: Response, server_url: str) -> None:
        """Notes an answer of the server."""
        request = response.request
        # The requests of the service worker itself are noted, too.
        is_other = request.method == "OPTIONS" or response.from_service_worker
        if is_other or not response.url.startswith(f"{server_url}/_matrix/"):
            return
        path = NAMES.sub("…", response.url.removeprefix(server_url).partition("?")[0])
        self.called.add(f"{request.method} {path}")
        if response.status >= 400:
            self.refused.add(f"{response.status} {request.method} {path}")


class Person:
    """A user of one server, in a browser of their own."""

    def __init__(self, browser: Browser, described: dict[str, str], site: str, screenshots: Path) -> None:
        self.name = described["user"]
        self.user_id = described["user_id"]
        self.server_name = self.user_id.partition(":")[2]
        self.traffic = Traffic()
        self._password = described["password"]
        self._server_url = described["url"]
        self._site = site
        self._screenshots = screenshots
        # The server's name points to its federation port, where Element looks for the file well-known.
        self._context = browser.new_context(viewport=VIEWPORT, ignore_https_errors=True)
        self._context.on("response", lambda response: self.traffic.note(response, self._server_url))
        self.page = self._context.new_page()
        self.page.set_default_timeout(PATIENCE_MS)
        self.page.on("console", self._print_complaint)
        self.page.on("pageerror", lambda error: print(f"{self.name}: uncaught: {error}"))

    def _print_complaint(self, message: ConsoleMessage) -> None:
        if message.type in ("error", "warning"):
            print(f"{self.name}: {message.type}: {' '.join(message.text.split())[:300]}")

    def screenshot(self, name: str) -> None:
        """Stores what is on the screen, for people to look at."""
        self.page.screenshot(path=self._screenshots / f"{name}-{self.name}.png")

    # -- the account -----------------------------------------------------------------------------------

    def log_in(self) -> None:
        """Opens Element, logs in with the password, and closes what it explains to new users."""
        self._sign_in()
        self.page.get_by_role("button", name="OK", exact=True).click()

    def _sign_in(self) -> None:
        self.page.goto(f"{self._site}?homeserver={self._server_url}#/login")
        self.page.get_by_label("Username", exact=True).fill(self.name)
        self.page.get_by_label("Password", exact=True).fill(self._password)
        self.page.get_by_role("button", name="Sign in").click()

    def log_out(self) -> None:
        """Logs out, and waits until Element offers to log in again."""
        self.page.get_by_role("button", name="User menu").click()
        self.page.get_by_role("menuitem", name="Sign out").click()
        self.page.get_by_role("dialog").get_by_role("button", name="Sign out").click()
        expect(self.page.get_by_label("Password", exact=True)).to_be_visible()

    def set_up_backup(self) -> str:
        """Sets up secret storage and the backup of keys. Returns the security key, which opens both."""
        self.page.get_by_role("alert").get_by_role("button", name="Continue").click()
        dialog = self.page.get_by_role("dialog")
        dialog.get_by_role("button", name="Continue").click()
        security_key = dialog.locator("code").inner_text()
        with self.page.expect_download():
            dialog.get_by_role("button", name="Download").click()
        with self.page.expect_response(
            lambda response: "/room_keys/keys?" in response.url
        ):  # the keys are in the backup
            dialog.get_by_role("button", name="Continue").click()
        dialog.get_by_role("button", name="Done").click()
        expect(dialog).to_be_hidden()
        return security_key

    def log_in_again(self, security_key: str) -> None:
        """Logs in with a new device, and verifies it with the security key."""
        self._sign_in()
        self.page.get_by_role("button", name="Verify with Security Key").click()
        dialog = self.page.get_by_role("dialog").last
        dialog.get_by_label("Security Key").fill(security_key)
        dialog.get_by_role("button", name="Continue").click()
        self.page.get_by_role("button", name="Done").click()

    # -- rooms -----------------------------------------------------------------------------------------

    def create_room(self, name: str) -> None:
        """Creates a private room, which Element encrypts."""
        self.page.get_by_role("button", name="Add room").click()
        self.page.get_by_role("menuitem", name="New room").click()
        dialog = self.page.get_by_role("dialog")
        dialog.get_by_label("Name", exact=True).fill(name)
        dialog.get_by_role("button", name="Create room").click()
        expect(self.page.get_by_text("This is the start of")).to_be_visible()

    def create_old_room(self, name: str, alias: str) -> None:
        """Creates a public room of an older version, which Element would not, and opens it."""
        options = {"name": name, "preset": "public_chat", "room_version": "10", "room_alias_name": alias}
        self.page.evaluate("options => mxMatrixClientPeg.get().createRoom(options)", options)
        self.open(name)

    def upgrade_room(self, version: str) -> None:
        """Upgrades the room that is open."""
        self.say(f"/upgraderoom {version}")
        self.page.get_by_role("dialog").get_by_role("button", name="Upgrade", exact=True).click()
        expect(self.page.get_by_text("This room has been replaced")).to_be_visible()

    def follow_upgrade(self) -> None:
        """Goes from a room that was upgraded to its successor."""
        self.page.get_by_role("link", name="The conversation continues here.").click()
        expect(self.page.get_by_text("This room is a continuation of another conversation.")).to_be_visible()

    def create_space(self, name: str) -> None:
        """Creates a public space with the rooms that Element suggests."""
        self.page.get_by_role("button", name="Create a space").click()
        self.page.get_by_role("button", name=re.compile("^Public")).click()
        self.page.locator(".mx_SpaceCreateMenu_wrapper").get_by_label("Name", exact=True).fill(name)
        self.page.get_by_role("button", name="Create", exact=True).click()
        self.page.get_by_role("button", name="Continue").click()
        expect(self.page.get_by_text(f"Share {name}")).to_be_visible()

    def join_alias(self, alias: str) -> None:
        """Joins a room or space by its alias."""
        self.page.get_by_role("button", name="Search").first.click()
        self.page.locator(".mx_SpotlightDialog_searchBox input").fill(alias)
        self.page.get_by_role("option", name=f"Join {alias}").click()

    def invite(self, other: Person) -> None:
        """Invites another person to the room that is open."""
        self.page.get_by_role("button", name="Invite to this room").click()
        dialog = self.page.get_by_role("dialog")
        dialog.get_by_role("textbox").fill(other.user_id)
        dialog.locator(".mx_InviteDialog_tile", has_text=other.user_id).first.click()
        dialog.get_by_role("button", name="Invite", exact=True).click()
        expect(dialog).to_be_hidden()

    def accept(self, name: str) -> None:
        """Accepts the invite to a room."""
        self.open(name)
        self.page.get_by_role("button", name="Accept").click()
        expect(self.composer).to_be_visible()

    def open(self, name: str) -> None:
        """Opens a room from the list."""
        self.page.get_by_role("treeitem", name=re.compile(name)).click()

    # -- the timeline ----------------------------------------------------------------------------------

    @property
    def composer(self) -> Locator:
        """Where a message to the room is written."""
        return self.page.locator(".mx_RoomView").get_by_role("textbox", name=re.compile("^Send a"))

    def say(self, text: str) -> None:
        """Sends a message to the room that is open."""
        self._write(self.composer, text)

    def _write(self, where: Locator, text: str) -> None:
        where.click()
        self.page.keyboard.type(text)
        self.page.keyboard.press("Enter")

    def message(self, text: str) -> Locator:
        """The message with this text in the room that is open."""
        return self.page.locator(".mx_RoomView_timeline .mx_EventTile").filter(has_text=text).last

    def read(self, text: str) -> Locator:
        """Waits until the message is on the screen, and returns it."""
        message = self.message(text)
        expect(message).to_be_visible()
        return message

    def _act(self, message: Locator, action: str) -> None:
        """Clicks one of the buttons that appear while the pointer is over a message."""
        message.hover()
        message.get_by_role("toolbar").get_by_label(action, exact=True).click()

    def react(self, text: str, emoji: str) -> None:
        """Reacts to the message with this text."""
        self._act(self.read(text), "React")
        self.page.get_by_role("toolbar", name="Quick reactions").get_by_text(emoji).click()

    def reply(self, text: str, answer: str) -> None:
        """Replies to the message with this text."""
        self._act(self.read(text), "Reply")
        self.say(answer)

    def edit(self, text: str, corrected: str) -> None:
        """Changes one's own message with this text."""
        self._act(self.read(text), "Edit")
        editor = self.page.get_by_role("textbox", name="Edit message")
        editor.press("ControlOrMeta+a")
        self.page.keyboard.type(corrected)
        self.page.keyboard.press("Enter")

    def remove(self, text: str) -> None:
        """Redacts one's own message with this text."""
        self._act(self.read(text), "Options")
        self.page.get_by_role("menuitem", name="Remove").click()
        self.page.get_by_role("dialog").get_by_role("button", name="Remove").click()

    def send_picture(self, path: Path) -> None:
        """Sends a picture to the room that is open."""
        self.page.locator(".mx_RoomView .mx_MessageComposer input[type=file]").set_input_files(path)
        self.page.get_by_role("dialog").get_by_role("button", name="Upload").click()

    def see_picture(self) -> None:
        """Waits until a picture in the room that is open has been loaded, and decrypted."""
        picture = self.page.locator(".mx_MImageBody img.mx_MImageBody_thumbnail").last
        expect(picture).to_be_visible()
        expect(picture).to_have_js_property("complete", True)
        expect(picture).not_to_have_js_property("naturalWidth", 0)

    def search(self, term: str) -> Locator:
        """Searches the room that is open. Returns the results."""
        self.page.get_by_role("button", name="Room info").first.click()
        field = self.page.get_by_placeholder("Search messages")
        field.fill(term)
        field.press("Enter")
        return self.page.locator(".mx_RoomView_searchResultsPanel")

    # -- threads ---------------------------------------------------------------------------------------

    @property
    def thread(self) -> Locator:
        """The thread that is open beside the room."""
        return self.page.locator(".mx_ThreadView")

    def start_thread(self, text: str, answer: str) -> None:
        """Starts a thread on the message with this text."""
        self._act(self.read(text), "Reply in thread")
        self.say_in_thread(answer)

    def open_thread(self, text: str) -> None:
        """Opens the thread on the message with this text."""
        self.read(text).get_by_role("button", name="Open thread").click()

    def say_in_thread(self, text: str) -> None:
        """Sends a message to the thread that is open."""
        self._write(self.thread.get_by_role("textbox"), text)

    def read_in_thread(self, text: str) -> None:
        """Waits until the message is in the thread that is open."""
        expect(self.thread.locator(".mx_EventTile").filter(has_text=text).last).to_be_visible()
