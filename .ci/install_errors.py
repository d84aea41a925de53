"""Turns the output of a failed installer into a sentence and one command to run."""

from __future__ import annotations

import os
import re
from pathlib import Path

TAIL_LINES = 12


class SetupError(Exception):
    """Says what is wrong. `command` is one line to run."""

    def __init__(self, sentence: str, command: str) -> None:
        super().__init__(sentence)
        self.command = command


# A pattern in the output, its meaning, and what to run before the next attempt. The first match counts.
CAUSES = (
    (r"No space left on device", "The disk is full: about 1 GB is needed.", "df -h . /tmp"),
    (
        r"DO NOT MATCH THE HASHES|Hash mismatch",
        "A downloaded file does not match the hash in the lock file: a mirror or a cache has damaged or replaced it.",
        "{purge}",
    ),
    (
        r"name resolution|Name or service not known|dns error|NewConnectionError|Connection refused|[Tt]imed out"
        r"|ProxyError|Network is unreachable|Failed to fetch|error sending request|CERTIFICATE_VERIFY_FAILED",
        "The package index cannot be reached. Check the network and, if there is a proxy, HTTPS_PROXY.",
        "",
    ),
    (
        r"Failed building wheel|Failed to build|No matching distribution|has no wheels with",
        "A package has no prebuilt wheel for this machine; building it needs a compiler and header files.",
        "{sudo}apt-get install -y build-essential python3-dev libffi-dev libjpeg-dev zlib1g-dev",
    ),
)


def explain(output: str, log: str, again: str, python: Path, *, uv: bool) -> SetupError:
    """Turns the output of a failed installer into an error. `log` is its full log, `again` the command that was run."""
    installer = "uv" if uv else "pip"
    tail = "".join(f"  {line}\n" for line in output.splitlines()[-TAIL_LINES:])
    said = f"{tail}{installer} failed; its full output is in {log}."
    for pattern, meaning, before in CAUSES:
        if re.search(pattern, output):
            purge = "uv cache clean" if uv else f"{python} -m pip cache purge"
            command = before.format(purge=purge, sudo=sudo())
            return SetupError(f"{said}\n{meaning}", f"{command} && {again}" if command else again)
    return SetupError(said, f"{again} INSTALLER=pip" if uv else again)


def sudo() -> str:
    """Returns the prefix of a command that needs root."""
    return "" if os.geteuid() == 0 else "sudo "
