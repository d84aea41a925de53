"""A person who uses the chat page in Chromium, and what they do with it."""

from __future__ import annotations

import itertools
import json
import re
from pathlib import Path
from typing import Any
from urllib.parse import quote

from playwright.sync_api import Browser, ConsoleMessage, Locator, Page, expect

PATIENCE_MS = 60_000
DESKTOP = {"width": 1180, "height": 760}
PHONE = {"width": 390, "height": 780}

# Notifications are noted instead of shown: a browser without a screen has nowhere to show them.
NOTED_NOTIFICATIONS = """
window.noted = [];
window.Notification = class {
  static permission = "default";
  static async requestPermission() { return (this.permission = "granted"); }
  constructor(title, options) { window.noted.push(`${title}: ${options.body}`); }
  close() {}
};
"""

# Calls an operation with the token of the page: what another client of the same person might do.
CALL = """
async ([method, path, content]) => {
  const { accessToken } = JSON.parse(localStorage.getItem("homeserver.chat.session"));
  const headers = { authorization: `Bearer ${accessToken}`, "content-type": "application/json" };
  const answer = await fetch(path, { method, headers, body: JSON.stringify(content) });
  if (!answer.ok) throw new Error(await answer.text());
  return answer.json();
}
"""

expect.set_options(timeout=PATIENCE_MS)


class Person:
    """A user of one server, in a browser of their own. complaints: what the browser says is wrong with the page."""

    def __init__(
        self, browser: Browser, described: dict[str, str], screenshots: Path, *, phone: bool = False, **options: Any
    ) -> None:
        self.name = described["user"]
        self.user_id = described["user_id"]
        self.complaints: list[str] = []
        self._password = described["password"]
        self._url = f"{described['url']}/_homeserver/chat"
        self._screenshots = screenshots
        self._transactions = itertools.count(1)
        self.context = browser.new_context(
            viewport=PHONE if phone else DESKTOP, has_touch=phone, is_mobile=phone, ignore_https_errors=True, **options
        )
        self.context.add_init_script(NOTED_NOTIFICATIONS)
        self.page: Page = self.context.new_page()
        self.page.set_default_timeout(PATIENCE_MS)
        self.page.on("console", self._note_complaint)
        self.page.on("pageerror", lambda error: self.complaints.append(f"uncaught: {error}"))

    def _note_complaint(self, message: ConsoleMessage) -> None:
        # Chromium reports every refused or failed request itself; what matters of these is seen on the page.
        if message.type in ("error", "warning") and "Failed to load resource" not in message.text:
            self.complaints.append(f"{message.type}: {message.text[:300]}")

    def screenshot(self, name: str) -> None:
        """Stores what is on the screen, for people to look at."""
        self.page.screenshot(path=self._screenshots / f"{name}-{self.name}.png")

    # -- the account -----------------------------------------------------------------------------------

    def log_in(self) -> None:
        """Opens the page and logs in with the password."""
        self.page.goto(self._url)
        self.page.get_by_label("Name").fill(self.name)
        self.page.get_by_label("Password").fill(self._password)
        self.page.get_by_role("button", name="Log in").click()
        expect(self.page.get_by_role("navigation")).to_be_visible()

    def log_out(self) -> None:
        """Logs out, and waits until the page offers to log in again."""
        self.page.locator(".me").click()
        self.page.get_by_role("button", name="Log out").click()
        self.page.get_by_role("dialog", name="Log out?").get_by_role("button", name="Log out").click()
        expect(self.page.get_by_label("Password")).to_be_visible()

    # -- people ----------------------------------------------------------------------------------------

    def ask_friend(self, other: Person, words: str) -> None:
        """Asks somebody to be a friend."""
        self.page.get_by_role("button", name="New conversation").first.click()
        dialog = self.page.get_by_role("dialog")
        dialog.get_by_label("Matrix ID").fill(other.user_id)
        dialog.get_by_label("A word to say who you are").fill(words)
        dialog.get_by_role("button", name="Send request").click()
        expect(dialog).to_be_hidden()

    def accept(self, other: Person) -> None:
        """Accepts a friend request, which opens the conversation."""
        self.page.get_by_role("button", name=f"Accept: {other.name}").click()
        expect(self.composer).to_be_visible()

    def open(self, name: str) -> None:
        """Opens a conversation of the list."""
        self.page.get_by_role("navigation").get_by_role("button", name=re.compile(f"^{re.escape(name)},")).click()
        expect(self.page.get_by_role("heading", name=name)).to_be_visible()

    def begin_group(self, name: str, *friends: Person) -> None:
        """Begins a group with friends."""
        self.page.get_by_role("button", name="New conversation").first.click()
        self.page.get_by_role("button", name="Begin a group").click()
        dialog = self.page.get_by_role("dialog", name="New group")
        dialog.get_by_label("Name", exact=True).fill(name)
        for friend in friends:
            dialog.get_by_label(friend.name).check()
        dialog.get_by_role("button", name="Create").click()
        expect(self.page.get_by_role("heading", name=name)).to_be_visible()

    # -- the conversation ------------------------------------------------------------------------------

    @property
    def composer(self) -> Locator:
        """Where a message is written."""
        return self.page.get_by_role("textbox", name="Write a message")

    @property
    def room_id(self) -> str:
        """The conversation that is open."""
        return str(self.page.evaluate("decodeURIComponent(location.hash.slice('#/room/'.length))"))

    def say(self, text: str) -> None:
        """Sends a message to the conversation that is open."""
        self.composer.fill(text)
        self.page.keyboard.press("Enter")

    def call(self, method: str, path: str, content: dict[str, Any]) -> dict[str, Any]:
        """Calls an operation of the client-server API, as another client of this person would."""
        answer: dict[str, Any] = self.page.evaluate(CALL, [method, f"/_matrix/client/v3/{path}", content])
        return answer

    def send_raw(self, content: dict[str, Any]) -> None:
        """Sends a message to the conversation that is open, which the page itself would not send."""
        self.call("PUT", f"rooms/{quote(self.room_id)}/send/m.room.message/{next(self._transactions)}", content)

    def message(self, text: str) -> Locator:
        """The last message with this text."""
        return self.page.locator("article").filter(has_text=text).last

    def read(self, text: str) -> Locator:
        """Waits until the message is on the screen, and returns it."""
        message = self.message(text)
        expect(message).to_be_visible()
        return message

    def expect_status(self, text: str, status: str) -> None:
        """Waits until the ticks of an own message say this: Sent, Delivered, Read."""
        expect(self.message(text).locator(".ticks")).to_have_attribute("aria-label", status)

    def act(self, text: str, action: str) -> None:
        """Clicks one of the buttons that appear while the pointer is over a message."""
        message = self.read(text)
        message.hover()
        message.get_by_role("button", name=action, exact=True).click()

    def choose(self, text: str, entry: str) -> None:
        """Chooses an entry of a message's menu."""
        self.act(text, "More")
        self.page.get_by_role("menuitem", name=entry).click()

    def react(self, text: str, emoji: str) -> None:
        """Reacts to a message."""
        self.act(text, "React")
        self.page.get_by_role("group", name="Emoji").get_by_text(emoji, exact=True).click()

    def attach(self, name: str, kind: str, content: bytes) -> None:
        """Attaches a file to the next message."""
        self.page.locator("input[type=file]").set_input_files([{"name": name, "mimeType": kind, "buffer": content}])

    def search(self, term: str) -> Locator:
        """Searches. Returns the messages that are found."""
        self.page.get_by_role("searchbox").fill(term)
        return self.page.get_by_role("list", name="Messages").first.get_by_role("button")

    # -- what a checker says ---------------------------------------------------------------------------

    def check_accessibility(self, axe: str, what: str) -> list[str]:
        """Returns what axe-core finds wrong with what is on the screen. axe: its source."""
        options = {"runOnly": ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"]}
        self.page.evaluate(axe)
        found = self.page.evaluate(f"axe.run(document, {json.dumps(options)})")
        return [
            f"{what}: {each['id']}: {each['help']}: {node['html'][:160]} {node['failureSummary'][:300]}"
            for each in found["violations"]
            for node in each["nodes"][:3]
        ]
