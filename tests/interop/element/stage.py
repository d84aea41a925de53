"""What the programs of this folder share: Element served on a port, a browser, and two people who use it.

Programs are started as `python PROGRAM PLAN`: PLAN is JSON, see `Plan`. They print each step. Their last line is JSON:
what Element has called, and what of that the servers have refused. They exit with 1 at the first step that fails.
"""

from __future__ import annotations

import json
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Protocol, TypedDict

from person import Person
from playwright.sync_api import sync_playwright


class Plan(TypedDict):
    """`site` is the folder that build.mjs has made; `chromium` is the program; `people` are of different servers."""

    chromium: str
    people: list[dict[str, str]]
    screenshots: str
    site: str


class Scene(Protocol):
    """A part of a story. Its docstring is printed when it has been played."""

    __name__: str

    def __call__(self, alice: Person, bob: Person) -> None: ...


class Files(SimpleHTTPRequestHandler):
    """Serves the files of a folder without a word."""

    extensions_map = {**SimpleHTTPRequestHandler.extensions_map, ".js": "text/javascript", ".wasm": "application/wasm"}

    def log_message(self, format: str, *args: object) -> None:
        """Nothing."""


@contextmanager
def serving(folder: str) -> Iterator[str]:
    """Serves a folder while the context is open. Gives its address, which browsers trust because it is local."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Files, directory=folder))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/"
    finally:
        server.shutdown()
        thread.join()


def play(*scenes: Scene) -> None:
    """Plays one scene after the other, as PLAN says, and keeps what both people see at the end of each."""
    plan: Plan = json.loads(sys.argv[1])
    with serving(plan["site"]) as site, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=plan["chromium"])
        alice, bob = (Person(browser, each, site, Path(plan["screenshots"])) for each in plan["people"])
        for scene in scenes:
            try:
                scene(alice, bob)
            finally:
                for person in (alice, bob):
                    person.screenshot(scene.__name__)
            print(scene.__doc__)
        browser.close()
    called = sorted(alice.traffic.called | bob.traffic.called)
    print(json.dumps({"called": called, "refused": sorted(alice.traffic.refused | bob.traffic.refused)}))
