"""Our end of the pipe to `oracle.py`: asks Synapse, and keeps count."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

ORACLE = Path(__file__).with_name("oracle.py")
REPOSITORY = ORACLE.parents[2]


def synapse_python() -> Path:
    """The Python that has Synapse: SYNAPSE_VENV, else what `tests/interop/setup.py` made."""
    return Path(os.environ.get("SYNAPSE_VENV", REPOSITORY / ".venv-synapse")) / "bin" / "python"


class OracleFailed(RuntimeError):
    """The process ended, which Synapse's refusals never cause."""


class Refusal:
    """Synapse raised. `kind` is the class of the exception."""

    __slots__ = ("kind", "text")

    def __init__(self, kind: str, text: str) -> None:
        self.kind = kind
        self.text = text

    @property
    def is_verdict(self) -> bool:
        """Returns whether Synapse refused on purpose, rather than failing on the input."""
        return self.kind in ("AuthError", "UnstableSpecAuthError", "SynapseError", "EventSizeError")

    def __repr__(self) -> str:
        return f"<{self.kind}: {self.text}>"


class Oracle:
    """Synapse's functions as one method. Use as a context manager."""

    def __init__(self, python: Path | None = None) -> None:
        self.asked = 0
        # -I: neither the working directory nor PYTHONPATH may put our packages in Synapse's way.
        command = [str(python or synapse_python()), "-I", str(ORACLE)]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        hello = self._read()
        self.synapse: str = hello["synapse"]
        self.versions: list[str] = hello["versions"]

    def __enter__(self) -> Oracle:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.communicate(timeout=10)

    def ask(
        self, version: str, events: Mapping[str, object], calls: list[dict[str, Any]], rejected: Iterable[str] = ()
    ) -> list[Any]:
        """Synapse's answer to each call; a Refusal where it raised."""
        request = {"version": version, "events": events, "rejected": list(rejected), "calls": calls}
        if self._process.stdin is None:
            raise OracleFailed("the oracle has no stdin")
        self._process.stdin.write(json.dumps(request).encode() + b"\n")
        self._process.stdin.flush()
        self.asked += len(calls)
        answers = self._read()
        return [Refusal(a["error"], a["text"]) if isinstance(a, dict) and "error" in a else a for a in answers]

    def _read(self) -> Any:
        line = self._process.stdout.readline() if self._process.stdout is not None else b""
        if not line:
            raise OracleFailed(f"the oracle ended with status {self._process.wait(10)}")
        return json.loads(line)
