"""Trains the dictionary that `compression` ships: `python -m tests.dictionary.train dictionary_2.dict`.

A new dictionary gets a new number; the old ones stay, since stored data names the one it was written with.
"""

from __future__ import annotations

import sys
from pathlib import Path

import zstandard

from tests.dictionary.samples import Samples

DICTIONARY_BYTES = 32 * 1024
SAMPLES = 40_000
LEVEL = 5


def train(dictionary_bytes: int = DICTIONARY_BYTES, samples: int = SAMPLES) -> bytes:
    """A dictionary of at most `dictionary_bytes`, always the same for the same version of zstd."""
    source = Samples(seed=1)
    return zstandard.train_dictionary(dictionary_bytes, [source.one() for _ in range(samples)], level=LEVEL).as_bytes()


if __name__ == "__main__":
    Path(sys.argv[1]).write_bytes(train())
