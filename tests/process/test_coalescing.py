"""Items that wait for a destination are replaced by newer ones of the same subjects."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass

from hypothesis import given
from hypothesis import strategies as st

from homeserver.process.coalescing import without_replaced
from homeserver.process.delivery import Delivery, Now, Rest, Send


@dataclass(frozen=True)
class News:
    position: int
    subjects: frozenset[Hashable] = frozenset()


def sent(delivery: Delivery[News]) -> list[int]:
    """Returns what the machine asks its driver to send."""
    ask = delivery.next()
    assert isinstance(ask, Send)
    return [item.position for item in ask.items]


@given(st.lists(st.frozensets(st.integers(0, 3), max_size=3)), st.integers(0, 10))
def test_the_latest_item_of_every_subject_is_sent(told: list[frozenset[int]], at: int) -> None:
    news = [News(position, frozenset(subjects)) for position, subjects in enumerate(told)]
    left = [*without_replaced(news[:at], news[at:]), *news[at:]]
    assert left == sorted(left, key=lambda each: each.position)
    assert all(each in left for each in news if not each.subjects)
    for subject in range(4):
        about = [each for each in news if subject in each.subjects]
        assert not about or about[-1] in left


def test_waiting_items_are_replaced_but_not_those_under_way() -> None:
    delivery: Delivery[News] = Delivery("a.example", "b.example", lambda items: len(list(items)))
    typing = frozenset({"typing"})
    delivery.hand_over([News(1, typing)])
    assert sent(delivery) == [1]
    delivery.hand_over([News(2, typing), News(3), News(4, frozenset({"typing", "presence"}))])
    delivery.hand_over([News(5, typing)])
    assert sent(delivery) == [1]
    delivery.answered("taken", Now(0, 0))
    assert sent(delivery) == [3, 4, 5]
    delivery.answered("taken", Now(0, 0))
    assert delivery.next() == Rest()
    assert delivery.acked == 5
