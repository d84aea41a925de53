"""Room state as a persistent tree: an immutable map `(type_nid, state_key_nid) → event position`.

Theory of operation. A state is identified by its root node, and a node by the hash of its content. So equal states have
equal roots, a state event writes only the nodes on its path, and two states are compared by visiting only the nodes
that differ. A node is either a leaf of at most LEAF_MAX entries, or a branch of FANOUT children chosen by four bits of
the key's hash.

Invariants: the shape depends only on the entries, never on the order in which they were added. So a branch whose
entries would fit in one leaf becomes a leaf again. Trees contain only positions of stored events. Nodes never change,
so they are cached without limit in time; a node whose hash does not match its ID is damage.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from hashlib import blake2b
from typing import TypeVar

import msgspec

from homeserver.database import DatabaseDamaged, Transaction

Key = tuple[int, int]
Root = bytes

LEAF_MAX = 24  # entries in a leaf; measured to need the fewest bytes per change in rooms of 10 to 1,000 members
FANOUT_BITS = 4
FANOUT = 1 << FANOUT_BITS
NODE_CACHE_MAX = 20_000
_MASK = (1 << 64) - 1


class _Leaf(msgspec.Struct, array_like=True, tag=0, frozen=True):
    """Sorted (type_nid, state_key_nid, position) triples, flat."""

    entries: list[int]


class _Branch(msgspec.Struct, array_like=True, tag=1, frozen=True):
    """FANOUT node IDs in order; b"" if nothing is below."""

    children: list[bytes]


P = TypeVar("P", int, int | None)


class _LeafMap(dict[Key, int]):
    """A leaf in its decoded form: key → position."""


_Node = _LeafMap | tuple[bytes, ...]
_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(_Leaf | _Branch).decode


def find_key(tx: Transaction, event_type: str, state_key: str) -> Key | None:
    """Returns the key of a type and a state key; None if one of them was never stored, so that no state has it."""
    type_nid, key_nid = tx.find(event_type), tx.find(state_key)
    return None if type_nid is None or key_nid is None else (type_nid, key_nid)


def get_key(tx: Transaction, event_type: str, state_key: str) -> Key:
    """Returns the key of a stored state event. Raises DatabaseDamaged if its type or state key is not stored."""
    key = find_key(tx, event_type, state_key)
    if key is None:
        raise DatabaseDamaged(f"The type {event_type} or the state key {state_key!r} of a stored event is missing.")
    return key


def _node_id(content: bytes) -> bytes:
    return blake2b(content, digest_size=16).digest()


def _encode_leaf(entries: Mapping[Key, int]) -> bytes:
    return _encode(_Leaf([number for key in sorted(entries) for number in (*key, entries[key])]))


EMPTY_ROOT: Root = _node_id(_encode_leaf({}))


def _mix(key: Key) -> int:
    """Mixes the numbers of a key. The lowest four bits choose the child of the root, the next four its child, …"""
    mixed = (key[0] * 0x9E3779B97F4A7C15 + key[1] * 0xC2B2AE3D27D4EB4F + 0x165667B19E3779F9) & _MASK
    mixed = ((mixed ^ (mixed >> 29)) * 0xBF58476D1CE4E5B9) & _MASK
    return mixed ^ (mixed >> 32)


def _slot(key: Key, depth: int) -> int:
    """Returns which child of a branch at `depth` (0 at the root) contains `key`."""
    return (_mix(key) >> (FANOUT_BITS * depth)) & (FANOUT - 1)


def _get_node(tx: Transaction, node_id: bytes) -> _Node:
    """Returns the node, from the cache (nodes never change) or the table."""
    cache = tx.cache("state_nodes", NODE_CACHE_MAX)
    node = cache.get(node_id)
    if node is None:
        if node_id == EMPTY_ROOT:
            return _LeafMap()
        row = tx.one("SELECT content FROM state_nodes WHERE node_id = ?", node_id)
        if row is None:
            raise DatabaseDamaged(f"The state node {node_id.hex()} is missing.")
        if _node_id(row[0]) != node_id:
            raise DatabaseDamaged(f"The state node {node_id.hex()} is not what was stored.")
        node = cache.put(node_id, _parse(row[0]))
    return node


def _parse(content: bytes) -> _Node:
    decoded = _decode(content)
    if isinstance(decoded, _Branch):
        return tuple(decoded.children)
    flat = iter(decoded.entries)
    triples = zip(flat, flat, flat, strict=True)
    return _LeafMap({(type_nid, key_nid): position for type_nid, key_nid, position in triples})


def get(tx: Transaction, root: Root, key: Key) -> int | None:
    """Returns the position of the event at `key`, or None."""
    known = tx.cache("state_nodes", NODE_CACHE_MAX).get
    node = known(root)
    if node is None:
        node = _get_node(tx, root)
    mixed = -1
    while isinstance(node, tuple):
        mixed = _mix(key) if mixed < 0 else mixed >> FANOUT_BITS
        child = node[mixed & (FANOUT - 1)]
        if not child:
            return None
        node = known(child)
        if node is None:
            node = _get_node(tx, child)
    position: int | None = node.get(key)
    return position


class Finder:
    """Finds one key in many states. It remembers the nodes below the roots, which related states have in common."""

    __slots__ = ("_found", "_key", "_known", "_mixed", "_tx")

    def __init__(self, tx: Transaction, key: Key) -> None:
        self._tx = tx
        self._key = key
        self._mixed = _mix(key)
        self._known = tx.cache("state_nodes", NODE_CACHE_MAX).get
        self._found: dict[bytes, int | None] = {b"": None}

    def find(self, root: Root) -> int | None:
        """Returns the position of the event at the key, or None."""
        node = self._known(root) or _get_node(self._tx, root)
        if not isinstance(node, tuple):
            return node.get(self._key)
        child = node[self._mixed & (FANOUT - 1)]
        found = self._found
        if child not in found:
            found[child] = self._find_below(child, self._mixed >> FANOUT_BITS)
        return found[child]

    def _find_below(self, node_id: bytes, mixed: int) -> int | None:
        node = _get_node(self._tx, node_id)
        while isinstance(node, tuple):
            child = node[mixed & (FANOUT - 1)]
            if not child:
                return None
            node, mixed = _get_node(self._tx, child), mixed >> FANOUT_BITS
        return node.get(self._key)


def children(tx: Transaction, node_id: bytes) -> list[bytes]:
    """Returns the IDs of the nodes just below a node; none below a leaf."""
    node = _get_node(tx, node_id)
    return [child for child in node if child] if isinstance(node, tuple) else []


def items(tx: Transaction, root: Root) -> dict[Key, int]:
    """Returns the whole state, in no particular order."""
    found: dict[Key, int] = {}
    waiting = [root]
    while waiting:
        node = _get_node(tx, waiting.pop())
        if isinstance(node, tuple):
            waiting.extend(child for child in node if child)
        else:
            found.update(node)
    return found


def delete_tree(tx: Transaction, root: Root) -> None:
    """Deletes the nodes of a state whose room is deleted. Nodes that are gone already had nothing below them left."""
    waiting = [root]
    while waiting:
        node_id = waiting.pop()
        row = tx.one("SELECT content FROM state_nodes WHERE node_id = ?", node_id)
        if row is None:
            continue
        node = _parse(bytes(row[0]))
        if isinstance(node, tuple):
            waiting.extend(child for child in node if child)
        tx.run("DELETE FROM state_nodes WHERE node_id = ?", node_id)


def changed(tx: Transaction, old: Root, new: Root) -> dict[Key, tuple[int | None, int | None]]:
    """Returns the differences of two states: key → (position in old, position in new)."""
    before: dict[Key, int] = {}
    after: dict[Key, int] = {}
    waiting = [(old, new)]
    while waiting:
        old_id, new_id = waiting.pop()
        if old_id == new_id:
            continue
        old_node = _get_node(tx, old_id) if old_id else _LeafMap()
        new_node = _get_node(tx, new_id) if new_id else _LeafMap()
        if isinstance(old_node, tuple) and isinstance(new_node, tuple):
            waiting.extend(zip(old_node, new_node, strict=True))
        else:
            before.update(items(tx, old_id) if old_id else {})
            after.update(items(tx, new_id) if new_id else {})
    return {
        key: (before.get(key), after.get(key))
        for key in before.keys() | after.keys()
        if before.get(key) != after.get(key)
    }


def apply(tx: Transaction, root: Root, changes: Mapping[Key, int | None]) -> Root:
    """Returns the root after `changes` (None removes an entry). Writes the new nodes."""
    if not changes:
        return root
    written: dict[bytes, bytes] = {}
    new_root = _apply(tx, root, list(changes.items()), 0, written) or _write(_encode_leaf({}), written)
    if written:
        _store_nodes(tx, written)
    return new_root


def _store_nodes(tx: Transaction, nodes: Mapping[bytes, bytes]) -> None:
    rows = list(nodes.items())
    tx.many("INSERT INTO state_nodes (node_id, content) VALUES (?, ?) ON CONFLICT (node_id) DO NOTHING", rows)


def build(tx: Transaction, entries: Mapping[Key, int]) -> Root:
    """Returns the root of a complete state. Writes the new nodes."""
    return apply(tx, EMPTY_ROOT, dict(entries))


def _apply(
    tx: Transaction, node_id: bytes, changes: list[tuple[Key, int | None]], depth: int, written: dict[bytes, bytes]
) -> bytes:
    """Returns the ID of the changed node, b"" if it became empty."""
    node = _get_node(tx, node_id) if node_id else _LeafMap()
    if not isinstance(node, tuple):
        entries = dict(node)
        for key, position in changes:
            if position is None:
                entries.pop(key, None)
            else:
                entries[key] = position
        return _write_entries(entries, depth, written)
    below = list(node)
    for slot, group in _by_slot(changes, depth).items():
        below[slot] = _apply(tx, below[slot], group, depth + 1, written)
    if any(position is None for _, position in changes):
        remaining = _few_entries(tx, below, written)
        if remaining is not None:
            return _write_entries(remaining, depth, written)
    return _write(_encode(_Branch(below)), written)


def _few_entries(tx: Transaction, below: Iterable[bytes], written: dict[bytes, bytes]) -> dict[Key, int] | None:
    """Returns all entries below if they fit in one leaf, so that a state that shrank has the shape it had before."""
    found: dict[Key, int] = {}
    for child in below:
        if child:
            node = _parse(written[child]) if child in written else _get_node(tx, child)
            if isinstance(node, tuple) or len(found) + len(node) > LEAF_MAX:
                return None
            found.update(node)
    return found


def _write_entries(entries: dict[Key, int], depth: int, written: dict[bytes, bytes]) -> bytes:
    if not entries:
        return b""
    if len(entries) <= LEAF_MAX or depth * FANOUT_BITS >= 64:
        return _write(_encode_leaf(entries), written)
    below = [b""] * FANOUT
    for slot, group in _by_slot(list(entries.items()), depth).items():
        below[slot] = _write_entries(dict(group), depth + 1, written)
    return _write(_encode(_Branch(below)), written)


def _by_slot(changes: list[tuple[Key, P]], depth: int) -> dict[int, list[tuple[Key, P]]]:
    groups: dict[int, list[tuple[Key, P]]] = {}
    for change in changes:
        groups.setdefault(_slot(change[0], depth), []).append(change)
    return groups


def _write(content: bytes, written: dict[bytes, bytes]) -> bytes:
    node_id = _node_id(content)
    written[node_id] = content
    return node_id
