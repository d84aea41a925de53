"""What commands say is in the singular if it is one."""

from __future__ import annotations

import pytest

from homeserver.cli.output import counted
from homeserver.config import ConfigError, Retention


@pytest.mark.parametrize(("number", "text"), [(0, "0 blocks"), (1, "1 block"), (2, "2 blocks"), (21, "21 blocks")])
def test_numbers_are_followed_by_their_noun(number: int, text: str) -> None:
    assert counted(number, "block") == text


@pytest.mark.parametrize("days", [{"default_days": 31, "max_days": 30}, {"min_days": 31, "max_days": 30}])
def test_retention_that_contradicts_itself_is_refused(days: dict[str, int]) -> None:
    with pytest.raises(ConfigError, match=r"must not be more than retention\.max_days"):
        Retention(**days)


def test_retention_without_a_limit_is_accepted() -> None:
    assert Retention(default_days=31).default_days == Retention(default_days=31, max_days=31).max_days == 31
