"""What happens to nodes and to their database, drawn from a seed. At most one node at a time is harmed."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable
from dataclasses import dataclass, field

from tests.nodes.cluster import Node, Nodes
from tests.nodes.people import FAULT_S_MAX


@dataclass(slots=True)
class Faults:
    """A thread that harms something, waits, heals it, waits. done: what was done, in words."""

    nodes: Nodes
    chance: random.Random
    over: threading.Event
    done: list[str] = field(default_factory=list)

    def run(self) -> None:
        kinds: list[Callable[[], None]] = []
        while not self.over.wait(self.chance.uniform(0.5, 2)):
            if not kinds:  # each kind comes before any comes again
                kinds = [self._kill, self._pause, self._hold, self._cut, self._slow_down]
                kinds += [self._delay_hints, self._restart_database]
                self.chance.shuffle(kinds)
            kinds.pop()()

    def _note(self, node: Node, what: str) -> None:
        self.done.append(f"{node.server.folder.name} {what}")

    def _kill(self) -> None:
        node = self.chance.choice(self.nodes.nodes)
        self._note(node, "is killed")
        node.kill()
        self._wait(0, 2)
        self.nodes.start(node)

    def _pause(self) -> None:
        node = self.chance.choice(self.nodes.nodes)
        self._note(node, "stands still")
        node.pause()
        self._wait(1, FAULT_S_MAX)
        node.go_on()

    def _hold(self) -> None:
        node = self.chance.choice(self.nodes.nodes)
        self._note(node, "does not reach the database")
        node.wire.hold()
        self._wait(1, FAULT_S_MAX)
        node.wire.heal()

    def _cut(self) -> None:
        node = self.chance.choice(self.nodes.nodes)
        self._note(node, "loses its connections to the database")
        node.wire.cut()

    def _slow_down(self) -> None:
        node = self.chance.choice(self.nodes.nodes)
        self._note(node, "has a slow network to the database")
        node.wire.slow_down(0.03)
        self._wait(1, 4)
        node.wire.heal()

    def _delay_hints(self) -> None:
        node = self.chance.choice(self.nodes.nodes)
        self._note(node, "hears late of what other nodes have written")
        node.wire.delay_hints(self.chance.uniform(0.1, 5))
        self._wait(2, 8)
        node.wire.heal()

    def _restart_database(self) -> None:
        self.done.append("PostgreSQL ends at once and starts again")
        self.nodes.postgres.throw_away()
        self.nodes.postgres.start()

    def _wait(self, least_s: float, most_s: float) -> None:
        """Ends early if nothing more is to be harmed."""
        self.over.wait(self.chance.uniform(least_s, most_s))
