"""Runs the programs of client libraries, in js_sdk/ for example, and grants what they ask for while they run."""

from __future__ import annotations

import json
import subprocess
import tempfile
import threading
from collections.abc import Callable
from typing import Any

from tests.interop.clients import PASSWORD, Client
from tests.interop.setup import JS_SDK, JS_SDK_OAUTH, js_sdk_folder, js_sdk_oauth_folder

TIMEOUT_S = 240
OUTPUT_TAIL = 6000


def describe(*people: Client) -> list[dict[str, str]]:
    """Returns what a program has to know of people to log them in."""
    return [
        {
            "url": person.server.url,
            "server_name": person.server.server_name,
            "user": person.localpart,
            "user_id": person.user_id,
            "password": PASSWORD,
        }
        for person in people
    ]


def run_js_sdk(
    program: str, *people: Client, grant: Callable[[dict[str, Any]], None] | None = None, **plan: Any
) -> set[str]:
    """Runs a program of js_sdk/ to its end. Returns what the servers refused."""
    described = json.dumps({**plan, "people": describe(*people)})
    command = ["node", str(JS_SDK / program), str(js_sdk_folder()), described]
    return set(run(command, grant)["refused"])


def run_js_sdk_oauth(program: str, *people: Client) -> set[str]:
    """Runs a program of js_sdk_oauth/ to its end. Returns what the servers refused."""
    described = json.dumps({"people": describe(*people)})
    return set(run(["node", str(JS_SDK_OAUTH / program), str(js_sdk_oauth_folder()), described])["refused"])


def run(command: list[str], grant: Callable[[dict[str, Any]], Any] | None = None) -> dict[str, Any]:
    """Runs a program until it exits with 0. Returns its last line, decoded from JSON: {} if it is something else.

    grant: does what an earlier line asks for, if that is a JSON object. Then the program gets a line on its standard
    input, with what `grant` has returned, as JSON. Raises AssertionError, with the end of the output, if the program
    fails or takes too long.
    """
    wish: dict[str, Any] = {}
    with tempfile.TemporaryFile("w+") as errors:
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": errors}
        process = subprocess.Popen(command, text=True, **pipes)  # type: ignore[call-overload]
        clock = threading.Timer(TIMEOUT_S, process.kill)
        clock.start()
        printed: list[str] = []
        try:
            for line in process.stdout:
                print(line, end="", flush=True)
                printed.append(line)
                wish = _parse_wish(line)
                if wish and grant is not None and "refused" not in wish:
                    answer = grant(wish)
                    process.stdin.write("\n" if answer is None else f"{json.dumps(answer)}\n")
                    process.stdin.flush()
            status = process.wait()
        finally:
            clock.cancel()
            process.kill()
            process.wait()
        errors.seek(0)
        said = "".join(printed)[-OUTPUT_TAIL:] + errors.read()[-OUTPUT_TAIL:]
    assert status == 0, f"{command[1]} ended with {status}\n{said}"
    return wish


def _parse_wish(line: str) -> dict[str, Any]:
    if not line.startswith("{"):
        return {}
    parsed: dict[str, Any] = json.loads(line)
    return parsed
