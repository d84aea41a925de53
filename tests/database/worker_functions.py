"""What the tests ask the separate process to do."""

from __future__ import annotations

import os
import sys
import time


def describe() -> dict[str, object]:
    """What the process is: its number, and which of our packages it has run."""
    return {"pid": os.getpid(), "environment": sorted(os.environ), "modules": sorted(sys.modules)}


def echo(*values: object) -> list[object]:
    """The arguments."""
    return list(values)


def refuse(reason: str) -> None:
    """What a parser does with a file that is none."""
    raise ValueError(reason)


def fail() -> None:
    """What a parser does that has a bug."""
    raise IndexError("out of range")


def take_memory(count_bytes: int) -> int:
    """What a decompression bomb does."""
    return len(bytearray(count_bytes))


def take_time(seconds: float) -> None:
    """What a quadratic parser does."""
    time.sleep(seconds)


def spin() -> None:
    """The same, and it never lets go of the GIL for long."""
    while True:
        pass


def die(status: int) -> None:
    """What a broken C library does."""
    os._exit(status)


def crash() -> None:
    """What a worse one does."""
    os.kill(os.getpid(), 11)


def write_a_file(path: str) -> None:
    """What an attacker may try."""
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
