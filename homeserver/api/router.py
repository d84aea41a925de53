"""Router: finds the operation for a method and a path.

Literals take precedence over parameters. An encoded slash stays within its segment.

The fixed parts of a path have only their plain spelling, and a path is never normalised: a reverse proxy's rule for
`/_synapse/admin/` must not be bypassed by `/_synapse/%61dmin/`, `//_synapse/admin/` or `/_matrix/../_synapse/admin/`.
For the same reason a parameter must not be the encoded spelling of a fixed part that could be in its place. Nor may it
contain a segment `.` or `..`, encoded or not, because a proxy would resolve it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import lru_cache

import msgspec

from homeserver.api.arguments import decode_segment
from homeserver.api.routes import Operation

# Parameters that may be empty: a state event's key (`…/state/m.room.name/`). Any other empty segment makes a different
# path, for which there is no operation.
MAY_BE_EMPTY = frozenset({"state_key"})


class _Node(msgspec.Struct):
    literals: dict[str, _Node] = msgspec.field(default_factory=dict)
    parameter: _Node | None = None
    parameter_may_be_empty: bool = False
    operations: dict[str, int] = msgspec.field(default_factory=dict)  # by method, their places among all operations


class Match(msgspec.Struct, frozen=True):
    """The operations of a path by method, and the percent-encoded text of its parameters."""

    operations: Mapping[str, Operation]
    parameters: list[str]


class Router(msgspec.Struct):
    """Built once from all operations, and only read after that. Servers with the same paths share the tree of these."""

    _operations: tuple[Operation, ...] = ()
    _root: _Node = msgspec.field(default_factory=_Node)
    _found: dict[int, Mapping[str, Operation]] = msgspec.field(default_factory=dict)  # by the identity of a node
    _whole: dict[str, Match] = msgspec.field(default_factory=dict)  # the paths that have no parameters

    def add(self, operations: Iterable[Operation]) -> None:
        """Adds operations. Raises ValueError if two of them have the same method and path."""
        self._operations += tuple(operations)
        self._root = _lay_out(tuple((each.method, each.path, each.name) for each in self._operations))
        self._found.clear()
        self._whole.clear()

    def match(self, path: str) -> Match | None:
        """Returns the operations for a path as sent, percent-encoded. Returns None if there are none."""
        whole = self._whole.get(path)
        if whole is not None:
            return whole
        parameters: list[str] = []
        node = _walk(self._root, path.split("/"), parameters)
        if node is None:
            return None
        found = self._found.get(id(node))
        if found is None:
            found = {method: self._operations[at] for method, at in node.operations.items()}
            self._found[id(node)] = found
        match = Match(found, parameters)
        if not parameters:
            self._whole[path] = match
        return match


@lru_cache(maxsize=8)
def _lay_out(routes: tuple[tuple[str, str, str], ...]) -> _Node:
    """Returns the tree of the paths of operations: of their methods, paths and names."""
    root = _Node()
    for at, (method, path, name) in enumerate(routes):
        node = root
        for segment in path.split("/")[1:]:
            if segment.startswith("{"):
                node.parameter = node.parameter or _Node()
                node.parameter_may_be_empty = node.parameter_may_be_empty or segment[1:-1] in MAY_BE_EMPTY
                node = node.parameter
            else:
                child = node.literals.get(segment)
                if child is None:
                    child = node.literals[segment] = _Node()
                node = child
        if method in node.operations:
            other = routes[node.operations[method]][2]
            raise ValueError(f"{name} and {other} both answer {method} {path}")
        node.operations[method] = at
    # Before v1.1 of the spec v3 was called r0. Some tools still use r0, e.g. matrix-commander when it logs in.
    for api in root.literals.get("_matrix", _Node()).literals.values():
        if "v3" in api.literals:
            api.literals["r0"] = api.literals["v3"]
    return root


def _walk(root: _Node, segments: list[str], parameters: list[str]) -> _Node | None:
    """Returns the node at the end of the segments, and adds the parameters to `parameters`. Tries literals first."""
    node = root
    at, end = 1, len(segments)
    left: list[tuple[_Node, int, int]] = []  # where to try the parameter later: node, segment, number of parameters
    while True:
        child = None
        if at < end:
            segment = segments[at]
            child = node.literals.get(segment)
            if node.parameter is not None and (segment or node.parameter_may_be_empty):
                if child is not None:
                    left.append((node.parameter, at, len(parameters)))
                elif not _is_disguised(segment, node.literals):
                    parameters.append(segment)
                    child = node.parameter
        elif node.operations:
            return node
        if child is None:
            if not left:
                return None
            child, at, count = left.pop()
            parameters[count:] = [segments[at]]
        node = child
        at += 1


def _is_disguised(segment: str, literals: Mapping[str, _Node]) -> bool:
    """Returns whether a segment is not a real parameter: a disguised literal, or `.` or `..`."""
    if "%" not in segment:
        return segment in _DOTS
    try:
        decoded = decode_segment(segment)
    except ValueError:
        return False  # the parameter cannot be decoded, which is reported to the client later
    return decoded in literals or ("." in decoded and not _DOTS.isdisjoint(decoded.split("/")))


_DOTS = frozenset({".", ".."})
