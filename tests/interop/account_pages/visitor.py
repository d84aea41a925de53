"""A person at the account pages in Chromium, who uses the keyboard only."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from playwright.sync_api import Browser, ConsoleMessage, Page, expect

PATIENCE_MS = 30_000
TABS_MAX = 40
DESKTOP = {"width": 1180, "height": 760}
PHONE = {"width": 360, "height": 740}
RULES = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"]

# The focused element as a person perceives it: what it is, what it is called, and whether the focus can be seen.
FOCUSED = """
() => {
  const element = document.activeElement;
  const style = getComputedStyle(element);
  const label = element.labels?.[0]?.textContent ?? element.textContent;
  return {
    kind: element.tagName === "INPUT" ? element.type : element.tagName.toLowerCase(),
    name: label.trim().replace(/\\s+/g, " "),
    seen: style.outlineStyle !== "none" && parseFloat(style.outlineWidth) >= 2,
  };
}
"""

expect.set_options(timeout=PATIENCE_MS)


class Visitor:
    """complaints: what the browser, or the checker of accessibility, says is wrong with the pages."""

    def __init__(self, browser: Browser, axe: str, screenshots: Path, **options: Any) -> None:
        self.complaints: list[str] = []
        self._axe = axe
        self._screenshots = screenshots
        self.context = browser.new_context(viewport=DESKTOP, bypass_csp=False, **options)
        self.page: Page = self.context.new_page()
        self.page.set_default_timeout(PATIENCE_MS)
        self.tools = self.context.new_cdp_session(self.page)  # one for all: with its end, passkeys would be gone
        self.page.on("console", self._note_complaint)
        self.page.on("pageerror", lambda error: self.complaints.append(f"uncaught: {error}"))

    def _note_complaint(self, message: ConsoleMessage) -> None:
        if message.type in ("error", "warning") and "Failed to load resource" not in message.text:
            self.complaints.append(f"{message.type}: {message.text[:300]}")

    def expect_heading(self, text: str) -> None:
        """Waits for the page with this heading."""
        expect(self.page.get_by_role("heading", level=1)).to_have_text(text)

    # -- the keyboard ----------------------------------------------------------------------------------

    def tab_to(self, kind: str, name: str) -> None:
        """Goes from element to element until one is focused; each must be seen to be."""
        passed = []
        for _ in range(TABS_MAX):
            self.page.keyboard.press("Tab")
            focused = self.page.evaluate(FOCUSED)
            if focused["kind"] != "body" and not focused["seen"]:
                self.complaints.append(f"{self.page.url}: the focus on {focused['name']!r} cannot be seen")
            if focused["kind"] == kind and focused["name"].startswith(name):
                return
            passed.append(f"{focused['kind']} {focused['name']}")
        raise AssertionError(f"no {kind} {name!r} on {self.page.url}; passed {passed}")

    def press(self, kind: str, name: str) -> None:
        """Goes to a link or a button, and uses it."""
        self.tab_to(kind, name)
        self.page.keyboard.press("Enter")

    def tick(self, name: str) -> None:
        """Goes to a box and ticks it, or clears it."""
        self.tab_to("checkbox", name)
        self.page.keyboard.press("Space")

    def type_in(self, kind: str, name: str, text: str) -> None:
        """Goes to a field, and replaces what is in it."""
        self.tab_to(kind, name)
        self.page.keyboard.press("Control+a")
        self.page.keyboard.type(text)

    def log_in(self, user: str, password: str) -> None:
        """Fills in the log-in page."""
        self.type_in("text", "Username", user)
        self.type_in("password", "Password", password)
        self.page.keyboard.press("Enter")

    # -- what the page looks like ----------------------------------------------------------------------

    def look(self, what: str) -> None:
        """Has every screen checked, and keeps pictures: wide and on a phone, in the light and in the dark."""
        for name, size, scheme in (
            ("wide", DESKTOP, "light"),
            ("wide-dark", DESKTOP, "dark"),
            ("phone", PHONE, "light"),
            ("phone-dark", PHONE, "dark"),
        ):
            self.page.set_viewport_size({"width": size["width"], "height": size["height"]})
            self.page.emulate_media(color_scheme="dark" if scheme == "dark" else "light")
            if self.page.evaluate("document.documentElement.scrollWidth > innerWidth"):
                self.complaints.append(f"{what}, {name}: wider than the screen")
            self.complaints += [f"{what}, {name}: {each}" for each in self._violations()]
            self.page.screenshot(path=self._screenshots / f"{what.replace(' ', '-')}-{name}.png", full_page=True)
        self.page.set_viewport_size({"width": DESKTOP["width"], "height": DESKTOP["height"]})
        self.page.emulate_media(color_scheme="light")

    def _violations(self) -> Sequence[str]:
        # In a world of its own: the policy of the page forbids scripts there.
        client = self.tools
        frame = client.send("Page.getFrameTree")["frameTree"]["frame"]["id"]
        world = client.send("Page.createIsolatedWorld", {"frameId": frame, "worldName": "checker"})
        run = f"{self._axe};axe.run(document, {json.dumps({'runOnly': RULES})}).then(found => JSON.stringify(found))"
        options = {"contextId": world["executionContextId"], "awaitPromise": True, "returnByValue": True}
        answer = client.send("Runtime.evaluate", {"expression": run, **options})
        found = json.loads(answer["result"]["value"])
        return [
            f"{each['id']}: {each['help']}: {node['html'][:160]} {node['failureSummary'][:300]}"
            for each in found["violations"]
            for node in each["nodes"][:3]
        ]
