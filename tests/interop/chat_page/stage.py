"""What the programs of this folder share. They are started as `python PROGRAM PLAN`: PLAN is JSON, see `Plan`.

They print each scene. Their last line is JSON: what the browser or the checker of accessibility complained about.
They exit with 1 at the first scene that fails.
"""

from __future__ import annotations

import json
import struct
import sys
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypedDict

from person import Person
from playwright.sync_api import Browser, sync_playwright

WIDTH, HEIGHT = 320, 200


class Plan(TypedDict):
    """`chromium` is the program; `people` are of different servers; `axe` is the file of axe-core."""

    axe: str
    chromium: str
    people: list[dict[str, str]]
    screenshots: str


@dataclass
class Stage:
    """What scenes may use besides the people. complaints: what the checker of accessibility says."""

    browser: Browser
    plan: Plan
    axe: str
    complaints: list[str]

    def check(self, person: Person, what: str) -> None:
        """Has the checker of accessibility look at somebody's screen, and keeps a picture of it."""
        self.complaints += person.check_accessibility(self.axe, what)
        person.screenshot(what.replace(" ", "-"))


class Scene(Protocol):
    """A part of a story. Its docstring is printed when it has been played."""

    __name__: str

    def __call__(self, stage: Stage, alice: Person, bob: Person) -> None: ...


def play(*scenes: Scene) -> None:
    """Plays one scene after the other, as PLAN says, and keeps what both people see at the end of each."""
    plan: Plan = json.loads(sys.argv[1])
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=plan["chromium"])
        stage = Stage(browser, plan, Path(plan["axe"]).read_text("utf-8"), [])
        alice, bob = (Person(browser, each, Path(plan["screenshots"])) for each in plan["people"])
        for scene in scenes:
            try:
                scene(stage, alice, bob)
            finally:
                for person in (alice, bob):
                    person.screenshot(scene.__name__)
            print(scene.__doc__, flush=True)
        browser.close()
    print(json.dumps({"complaints": stage.complaints + alice.complaints + bob.complaints}))


def png() -> bytes:
    """Returns a picture of WIDTH × HEIGHT pixels, the colours of an evening."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    rows = b"".join(
        b"\0" + bytes((30 + 200 * y // HEIGHT, 40 + 110 * y // HEIGHT, 110 - 40 * y // HEIGHT)) * WIDTH
        for y in range(HEIGHT)
    )
    header = struct.pack(">IIBBBBB", WIDTH, HEIGHT, 8, 2, 0, 0, 0)
    parts = chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress(rows)), chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)
