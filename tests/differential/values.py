"""Values that a PDU may hold, likely and hostile, drawn from a seeded `random.Random`."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any, TypeVar

T = TypeVar("T")

TEXTS: Sequence[str] = (
    "", "a", " ", "join", "é", "e\u0301", "\u0000", "\u0001\u001f", "\u007f\u0080", "\u2028\u2029", "\ufeff",
    "\ufffd", "\uffff",
    "\U0001f600", "\U0010ffff", "ｱ", "\"\\/\b\f\n\r\t", "</script>", "%00", "m.room.member", "@:", "!", "$", "#",
    "a" * 256, "\u00df" * 128,
)  # fmt: skip
"""What JSON writers escape differently, what sorts differently in UTF-16, and what is just too long."""

KEYS: Sequence[str] = (
    "a",
    "b",
    "é",
    "\U0001f600",
    "\uffff",
    "ﬁ",
    "",
    "\u0000",
    "m.relates_to",
    "unsigned",
    "hashes",
    "1",
    "10",
    "2",
)

NUMBERS: Sequence[int] = (0, 1, -1, 49, 50, 51, 100, 2**31, -(2**31), 2**53 - 1, -(2**53) + 1)

LARGE_NUMBERS: Sequence[int] = (2**53, -(2**53), 2**63 - 1, 2**63, 2**64, 10**30, -(10**30))

FLOATS: Sequence[float] = (
    0.0, -0.0, 1.0, -1.5, 50.0, 50.57, 99.99999999999999, 0.1, 1e15, 1e16, 1e21, 1e22, 1.5e300, 5e-324, 1e-7,
    123456789.123, 2.0**53, 1e-5,
)  # fmt: skip
"""Where writers of JSON change between plain and exponential notation."""

STRINGY_LEVELS: Sequence[str] = (
    "0", "50", "100", "-1", "+50", " 50 ", "\t50\n", "000100", " -0100 ", "--5", "+ 5", "5 0", "50.0", "5e1", "0x10",
    "", " ", "abc",
    "١٠", "５０", "1_000", "\u00a050\u2003", "\u001c50", "9" * 30,
)  # fmt: skip
"""Strings that some reader somewhere takes for an integer, and some that none does."""


def pick(rng: random.Random, *weighted: tuple[float, T]) -> T:
    """One of the values, by weight."""
    return rng.choices([value for _, value in weighted], [weight for weight, _ in weighted])[0]


def chance(rng: random.Random, probability: float) -> bool:
    return rng.random() < probability


def odd(rng: random.Random, *, strict: bool) -> Any:
    """Something that is probably of the wrong type. `strict`: only what canonical JSON allows."""
    options: list[Any] = [
        None, True, False, [], {}, [[]], {"a": {}}, ["@a:alpha.test"], {"a": 1},
        rng.choice(TEXTS), rng.choice(NUMBERS), rng.choice(STRINGY_LEVELS),
    ]  # fmt: skip
    if not strict:
        options += [rng.choice(LARGE_NUMBERS), rng.choice(FLOATS)]
    return rng.choice(options)


def value(rng: random.Random, *, strict: bool, depth: int = 3) -> Any:
    """Any JSON value."""
    if depth > 0 and chance(rng, 0.3):
        if chance(rng, 0.5):
            return [value(rng, strict=strict, depth=depth - 1) for _ in range(rng.randrange(4))]
        return {rng.choice(KEYS): value(rng, strict=strict, depth=depth - 1) for _ in range(rng.randrange(5))}
    return odd(rng, strict=strict)


def text(rng: random.Random, length_max: int = 8) -> str:
    """Random code points, surrogates excepted, mostly of few bytes."""
    ranges = ((0x20, 0x7E), (0x00, 0xFF), (0x100, 0xD7FF), (0xE000, 0xFFFF), (0x10000, 0x10FFFF))
    return "".join(chr(rng.randint(*rng.choice(ranges))) for _ in range(rng.randrange(length_max)))
