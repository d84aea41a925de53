"""Comparing two answers: which differences are known and justified, and how the others are shown."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from tests.differential.oracle_client import Refusal

SHOWN_MAX = 8
"""Differences printed in full; the first few tell all, the rest is counted."""


@dataclass(frozen=True, slots=True)
class Difference:
    """One question and both answers. `material` is all that the question was about, as small as possible."""

    about: str
    version: str
    seed: object
    ours: Any
    synapse: Any
    material: Any

    def show(self) -> str:
        material = json.dumps(self.material, default=str)
        return (
            f"--- {self.about}, room version {self.version}, seed {self.seed}\n"
            f"ours:    {self.ours!r}\nSynapse: {self.synapse!r}\nfor: {material}"
        )


@dataclass(frozen=True, slots=True)
class Deviation:
    """Where Synapse is known to leave the specification, or this leaves a choice; and why ours stands."""

    name: str
    why: str
    applies: Callable[[Difference], bool]


@dataclass(slots=True)
class Report:
    """What was compared, and what came of it."""

    deviations: tuple[Deviation, ...] = ()
    compared: Counter[str] = field(default_factory=Counter)
    seen: Counter[str] = field(default_factory=Counter)
    differences: list[Difference] = field(default_factory=list)

    def compare(self, difference: Difference, *, same: bool) -> None:
        """Counts a pair of answers; keeps it if it is a difference that nothing justifies."""
        self.compared[difference.about] += 1
        if same:
            return
        for deviation in self.deviations:
            if deviation.applies(difference):
                self.seen[deviation.name] += 1
                return
        self.differences.append(difference)

    def summary(self) -> str:
        counts = ", ".join(f"{count} × {about}" for about, count in sorted(self.compared.items()))
        known = "".join(f"; known deviation {name!r} × {count}" for name, count in sorted(self.seen.items()))
        return f"{counts}{known}"

    def conclude(self) -> None:
        """Prints what was done. AssertionError with every unexplained difference."""
        print(self.summary())
        shown = "\n".join(difference.show() for difference in self.differences[:SHOWN_MAX])
        assert not self.differences, f"{len(self.differences)} differences, of which the first are:\n{shown}"


def refused(answer: Any) -> bool:
    return isinstance(answer, Refusal)
