"""A cache limited by bytes keeps what is in use, and never more than its limit."""

from __future__ import annotations

from homeserver.database.cache import SizedCache


def test_a_value_is_cached_until_newer_ones_need_its_bytes() -> None:
    cache = SizedCache(100)
    cache.put("old", "value", 40)
    cache.put("new", "other", 40)  # more than half: the old half begins
    assert cache.get("old") == "value"
    cache.put("newest", "third", 40)
    cache.put("newer still", "fourth", 40)
    assert cache.get("new") is None
    assert cache.get("newer still") == "fourth"


def test_a_recently_used_value_stays() -> None:
    cache = SizedCache(1_000)
    cache.put("in use", "value", 10)
    for number in range(1_000):
        cache.put(number, "other", 10)
        assert cache.get("in use") == "value"


def test_a_replaced_value_does_not_count() -> None:
    cache = SizedCache(100)
    cache.put("kept", "value", 10)
    for _ in range(100):
        cache.put("replaced", "other", 10)
    assert cache.get("kept") == "value"


def test_a_value_larger_than_the_limit_is_not_cached() -> None:
    cache = SizedCache(100)
    cache.put("huge", "value", 1_000)
    cache.put("next", "other", 60)
    assert cache.get("huge") is None
