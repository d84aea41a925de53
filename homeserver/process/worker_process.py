"""The separate process of `Workers.run_process` and of `Service`: it reads calls from stdin and writes to stdout.

It communicates in msgpack, which unlike pickle cannot make the server run anything. The input of `run_process` may be
hostile and may take the process over. So it has a limit on memory, and cannot write files. The process of a service
keeps an object, whose methods it calls, and may write files. It has a lower priority than the server.
"""

from __future__ import annotations

import importlib
import os
import resource
import select
import struct
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import msgspec

SERVICE_NICENESS = 5  # requests and syncs come first


def read_exactly(descriptor: int, count: int) -> bytes:
    """Returns `count` bytes, or fewer at the end of the input."""
    parts: list[bytes] = []
    while count:
        part = os.read(descriptor, min(count, 1 << 20))
        if not part:
            break
        parts.append(part)
        count -= len(part)
    return b"".join(parts)


def write_all(descriptor: int, data: bytes) -> None:
    """Writes every byte."""
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]


def find_function(name: str) -> Any:
    """Returns the function "package.module:name". Does not run the packages' `__init__`, which import the server."""
    module_name, _, function_name = name.partition(":")
    packages = module_name.split(".")[:-1]
    for depth in range(len(packages)):
        package = ".".join(packages[: depth + 1])
        if package not in sys.modules:
            folder = next(path for entry in sys.path if (path := Path(entry, *packages[: depth + 1])).is_dir())
            bare = sys.modules[package] = ModuleType(package)
            bare.__path__ = [str(folder)]
    return getattr(importlib.import_module(module_name), function_name)


def answer(find: Callable[[str], Any], request: bytes) -> bytes:
    """Returns the encoded answer to a call: [True, result] or [False, kind of error, message].

    find: returns the function of a name.
    """
    try:
        name, args = msgspec.msgpack.decode(request)
        return msgspec.msgpack.encode([True, find(name)(*args)])
    except BaseException as error:  # whatever it is, the server decides how to treat it
        return msgspec.msgpack.encode([False, type(error).__name__, str(error)[:1000]])


def main(memory_bytes: int, idle_seconds: float, factory: str = "", *args: str) -> None:
    """Answers calls until the input ends. Exits with status 0 if no call arrives for `idle_seconds`.

    factory: "package.module:Class" of a service, and its arguments. Its `close` is called in the end.
    """
    # A service may map large files, which take no memory of their own.
    kind = resource.RLIMIT_DATA if factory else resource.RLIMIT_AS
    resource.setrlimit(kind, (memory_bytes, memory_bytes))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    requests, answers = os.dup(0), os.dup(1)
    null = os.open(os.devnull, os.O_RDWR)
    for standard in (0, 1):  # output of the called functions must not mix with the answers
        os.dup2(null, standard)
    if not factory:
        resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
        _answer_calls(requests, answers, idle_seconds, find_function)
        return
    os.nice(SERVICE_NICENESS)
    service = find_function(factory)(*args)
    try:
        _answer_calls(requests, answers, idle_seconds, lambda name: getattr(service, name))
    finally:
        service.close()


def _answer_calls(requests: int, answers: int, idle_seconds: float, find: Callable[[str], Any]) -> None:
    while select.select([requests], [], [], idle_seconds)[0]:
        header = read_exactly(requests, 8)
        if len(header) < 8:
            return
        (length,) = struct.unpack("<Q", header)
        body = answer(find, read_exactly(requests, length))
        write_all(answers, struct.pack("<Q", len(body)) + body)


if __name__ == "__main__":
    main(int(sys.argv[1]), float(sys.argv[2]), *sys.argv[3:])
