"""Fixtures of the comparisons: Synapse's process, and the number of examples. Run by `make interop`."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from tests.differential.oracle_client import Oracle


@dataclass(frozen=True, slots=True)
class Effort:
    """How much is compared. DIFFERENTIAL_SEED: the first seed; DIFFERENTIAL_COUNT: how many, in percent."""

    first_seed: int
    scale: float

    def seeds(self, count: int) -> range:
        return range(self.first_seed, self.first_seed + max(1, round(count * self.scale)))


@pytest.fixture(scope="session")
def effort() -> Effort:
    return Effort(
        int(os.environ.get("DIFFERENTIAL_SEED", "0")), float(os.environ.get("DIFFERENTIAL_COUNT", "100")) / 100
    )


@pytest.fixture(scope="session")
def oracle() -> Iterator[Oracle]:
    with Oracle() as oracle:
        print(f"\nthe oracle is Synapse {oracle.synapse}")
        yield oracle
        print(f"\nSynapse answered {oracle.asked} questions")
