"""Functions that the tests run in the separate process."""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path
from typing import Any


def describe() -> dict[str, object]:
    """Returns the process ID and the packages of ours that it has imported."""
    return {"pid": os.getpid(), "environment": sorted(os.environ), "modules": sorted(sys.modules)}


def echo(*values: object) -> list[object]:
    """The arguments."""
    return list(values)


def refuse(reason: str) -> None:
    """Fails as a parser does on a file of another format."""
    raise ValueError(reason)


def fail() -> None:
    """Fails as a parser with a bug does."""
    raise IndexError("out of range")


def take_memory(count_bytes: int) -> int:
    """Behaves like a decompression bomb."""
    return len(bytearray(count_bytes))


def take_time(seconds: float) -> None:
    """Behaves like a parser with quadratic run time."""
    time.sleep(seconds)


def spin() -> None:
    """The same, and it never lets go of the GIL for long."""
    while True:
        pass


def die(status: int) -> None:
    """Behaves like a broken C library."""
    os._exit(status)


def crash() -> None:
    """Behaves like an even more broken C library."""
    os.kill(os.getpid(), 11)


def write_a_file(path: str) -> None:
    """Does what an attacker may try."""
    with open(path, "wb") as file:
        file.write(b"x" * 100)


def chatter() -> str:
    """Prints where answers go."""
    print("noise")
    os.write(1, b"more noise")
    return "answer"


def return_object() -> object:
    """Something that has no place in an answer."""
    return object()


class Notebook:
    """An object for a service: keeps words in memory, and in a file once it is closed."""

    def __init__(self, path: str) -> None:
        self._path = Path(path)
        self._words: list[str] = []

    def note(self, word: str) -> list[Any]:
        self._words.append(word)
        return [os.getpid(), self._words]

    def die_once(self) -> str:
        if not self._path.exists():
            self._path.write_text("died")
            os.kill(os.getpid(), signal.SIGKILL)
        return self._path.read_text()

    def refuse(self) -> None:
        raise ValueError("no")

    def fail(self) -> None:
        raise LookupError("nothing there")

    def close(self) -> None:
        self._path.write_text(" ".join(self._words))
