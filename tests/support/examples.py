"""How many examples a property is tried with: the profiles in `tests/conftest.py` decide.

`make test` uses the profile "default"; `make test ARGS="--hypothesis-profile=deep tests/…"` looks ten times as hard.
"""

from __future__ import annotations

from hypothesis import settings


def share_of_examples(share: float) -> int:
    """The profile's number of examples times `share`: below 1 for costly examples, above 1 for cheap ones."""
    return max(1, round(settings().max_examples * share))


def is_default_profile() -> bool:
    """Returns whether this is the profile of `make test`, in which protocol properties use fixed examples."""
    return settings.get_current_profile_name() == "default"
