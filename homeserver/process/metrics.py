"""Metrics: counters and gauges of one server, as Prometheus text."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import msgspec

Labels = tuple[tuple[str, str], ...]


class Counter:
    """The value of one counter. Whoever counts adds to it."""

    __slots__ = ("value",)

    def __init__(self) -> None:
        self.value: float = 0


class Metrics(msgspec.Struct):
    """Used on the trio thread only. Names and labels come from the program, never from requests, so they are few."""

    _counters: dict[tuple[str, Labels], Counter] = msgspec.field(default_factory=dict)
    _read: dict[str, tuple[str, Callable[[], float]]] = msgspec.field(default_factory=dict)
    _help: dict[str, str] = msgspec.field(default_factory=dict)

    def count(self, name: str, labels: Labels = (), amount: float = 1) -> None:
        """Adds to a counter. `name` ends in `_total`, preceded by its unit."""
        self.counter(name, labels).value += amount

    def counter(self, name: str, labels: Labels = ()) -> Counter:
        """Returns a counter, for those that count often enough to keep it."""
        counter = self._counters.get((name, labels))
        if counter is None:
            counter = self._counters[name, labels] = Counter()
        return counter

    def gauge(self, name: str, read: Callable[[], float], help_text: str = "") -> None:
        """Registers a value that is read whenever the metrics are requested."""
        self._read[name] = ("gauge", read)
        self._help[name] = help_text

    def total(self, name: str, read: Callable[[], float], help_text: str) -> None:
        """Registers a counter kept elsewhere, which is read whenever the metrics are. `name` ends in `_total`."""
        self._read[name] = ("counter", read)
        self._help[name] = help_text

    def describe(self, name: str, help_text: str) -> None:
        """Sets the help text of a counter."""
        self._help[name] = help_text

    def counters(self) -> Mapping[tuple[str, Labels], float]:
        """Returns all counters with their current values."""
        return {key: counter.value for key, counter in self._counters.items()}

    def text(self) -> str:
        """Returns everything in the Prometheus text format, sorted."""
        lines: list[str] = []
        before = ""
        for (name, labels), value in sorted(self.counters().items()):
            if name != before:
                lines += self._head(name, "counter")
                before = name
            shown = ",".join(f'{key}="{_escape(value_)}"' for key, value_ in labels)
            lines.append(f"{name}{{{shown}}} {_number(value)}" if shown else f"{name} {_number(value)}")
        for name, (kind, read) in sorted(self._read.items()):
            lines += self._head(name, kind)
            lines.append(f"{name} {_number(read())}")
        return "\n".join(lines) + "\n"

    def _head(self, name: str, kind: str) -> list[str]:
        about = self._help.get(name)
        return ([f"# HELP {name} {about}"] if about else []) + [f"# TYPE {name} {kind}"]


def _escape(value: str) -> str:
    return value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


def _number(value: float) -> str:
    return str(int(value)) if value == int(value) else repr(value)
