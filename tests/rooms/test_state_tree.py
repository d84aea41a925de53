"""The state tree is a dict whose equal contents have equal roots, however they came about."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from homeserver.database import DatabaseDamaged
from homeserver.database.cache import Caches
from homeserver.rooms import state_tree
from homeserver.rooms.state_tree import EMPTY_ROOT, LEAF_MAX, Key

Entries = dict[Key, int]


class Nodes:
    """As much of a Transaction as the tree needs: two statements and a cache."""

    def __init__(self) -> None:
        self.rows: dict[bytes, bytes] = {}
        self._caches = Caches()

    def one(self, sql: str, node_id: bytes) -> tuple[bytes] | None:
        content = self.rows.get(node_id)
        return None if content is None else (content,)

    def many(self, sql: str, rows: Any) -> None:
        self.rows.update(rows)

    def all_in(self, sql: str, node_ids: Any) -> list[tuple[bytes, bytes]]:
        return [(node_id, self.rows[node_id]) for node_id in node_ids if node_id in self.rows]

    def cache(self, name: str, limit: int) -> Any:
        return self._caches.named(name, limit)


# Few numbers, so that keys meet again; and many, so that there are several levels.
keys = st.one_of(st.tuples(st.integers(1, 5), st.integers(1, 12)), st.tuples(st.just(7), st.integers(1, 5000)))
positions = st.integers(1, 2**40)
states = st.one_of(
    st.dictionaries(keys, positions, max_size=60),
    st.builds(lambda count, by: {(7, n): n * by for n in range(count)}, st.integers(0, 700), st.integers(1, 9)),
)
changes = st.dictionaries(keys, st.none() | positions, max_size=40)


def changed(entries: Entries, what: dict[Key, int | None]) -> Entries:
    after = {**entries, **what}
    return {key: position for key, position in after.items() if position is not None}


@given(states)
def test_stored_entries_are_returned(entries: Entries) -> None:
    tx: Any = Nodes()
    root = state_tree.build(tx, entries)
    assert state_tree.items(tx, root) == entries
    for key in [*entries, (1, 1), (7, 4999), (99, 99)]:
        assert state_tree.get(tx, root, key) == entries.get(key)


@given(states, st.randoms(use_true_random=False))
def test_insertion_order_does_not_change_the_root(entries: Entries, random: Any) -> None:
    tx: Any = Nodes()
    order = list(entries.items())
    random.shuffle(order)
    root = EMPTY_ROOT
    while order:
        size = random.randint(1, 50)
        root = state_tree.apply(tx, root, dict(order[:size]))
        order = order[size:]
    assert root == state_tree.build(tx, entries)


@given(states, changes)
def test_changes_behave_like_those_of_a_dict(entries: Entries, what: dict[Key, int | None]) -> None:
    tx: Any = Nodes()
    root = state_tree.apply(tx, state_tree.build(tx, entries), what)
    assert state_tree.items(tx, root) == changed(entries, what)
    assert root == state_tree.build(tx, changed(entries, what))


@given(states, changes)
def test_undoing_a_change_restores_the_root(entries: Entries, what: dict[Key, int | None]) -> None:
    tx: Any = Nodes()
    root = state_tree.build(tx, entries)
    there = state_tree.apply(tx, root, what)
    back = {key: entries.get(key) for key in what}
    assert state_tree.apply(tx, there, back) == root


@given(states, changes, changes)
def test_differences_equal_those_of_two_dicts(
    entries: Entries, one: dict[Key, int | None], two: dict[Key, int | None]
) -> None:
    tx: Any = Nodes()
    old, new = changed(entries, one), changed(entries, two)
    found = state_tree.changed(tx, state_tree.build(tx, old), state_tree.build(tx, new))
    expected = {key: (old.get(key), new.get(key)) for key in old.keys() | new.keys() if old.get(key) != new.get(key)}
    assert found == expected


@given(states, keys, positions)
def test_one_change_writes_only_the_nodes_on_its_path(entries: Entries, key: Key, position: int) -> None:
    tx: Any = Nodes()
    root = state_tree.build(tx, entries)
    before = dict(tx.rows)
    state_tree.apply(tx, root, {key: position})
    # Four bits a level: 700 entries are three levels deep, and a leaf that overflows becomes up to 16.
    assert len(tx.rows) - len(before) <= 3 + 16


def test_nodes_with_the_same_content_are_written_once() -> None:
    tx: Any = Nodes()
    entries = {(7, n): n for n in range(1, 1000)}
    root = state_tree.build(tx, entries)
    count = len(tx.rows)
    assert state_tree.apply(tx, root, {(7, 5): 5}) == root
    assert len(tx.rows) == count


def test_the_empty_state_has_a_root() -> None:
    tx: Any = Nodes()
    assert state_tree.build(tx, {}) == EMPTY_ROOT
    assert state_tree.items(tx, EMPTY_ROOT) == {}
    assert state_tree.children(tx, EMPTY_ROOT) == []
    one = state_tree.apply(tx, EMPTY_ROOT, {(1, 2): 3})
    assert state_tree.apply(tx, one, {(1, 2): None}) == EMPTY_ROOT
    assert state_tree.apply(tx, EMPTY_ROOT, {(1, 2): None}) == EMPTY_ROOT


def test_a_leaf_becomes_a_branch_and_a_leaf_again() -> None:
    tx: Any = Nodes()
    full = state_tree.build(tx, {(7, n): n for n in range(1, LEAF_MAX + 1)})
    assert state_tree.children(tx, full) == []
    more = state_tree.apply(tx, full, {(7, 1000): 1})
    assert state_tree.children(tx, more)
    assert state_tree.apply(tx, more, {(7, 1000): None}) == full


def test_a_missing_node_is_reported() -> None:
    tx: Any = Nodes()
    with pytest.raises(DatabaseDamaged, match="missing"):
        state_tree.get(tx, b"x" * 16, (1, 1))
