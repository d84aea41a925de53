"""Tables in one test: many rows share a server, which costs far more than a row.

    for body in BODIES:
        with row(body):
            assert (await alice.post("createRoom", body)).status_code == 400

Parametrise instead if a row changes what the next one meets.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

SHOWN_CHARACTERS_MAX = 300


@contextmanager
def row(*values: object) -> Iterator[None]:
    """Names the row in what fails within it."""
    try:
        yield
    except BaseException as error:
        error.add_note(f"row: {', '.join(map(repr, values))[:SHOWN_CHARACTERS_MAX]}")
        raise
