"""Router: which operation answers a method and a path.

Literals win over parameters; an encoded slash stays in its segment.

The fixed parts of a path have one spelling each, the plain one, and a path is never tidied up: a reverse proxy's rule
for `/_synapse/admin/` must not be bypassed by `/_synapse/%61dmin/`, `//_synapse/admin/` or
`/_matrix/../_synapse/admin/`. For the same reason a parameter is neither the encoded spelling of a fixed part that
could stand in its place, nor does it hold a segment `.` or `..`, encoded or not, which a proxy would resolve.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from homeserver.api.arguments import decode_segment
from homeserver.api.routes import Operation

# Parameters that may be the empty string: a state event's key (`…/state/m.room.name/`). Any other empty segment makes
# another path, which nobody answers.
MAY_BE_EMPTY = frozenset({"state_key"})


@dataclass(slots=True)
class _Node:
    literals: dict[str, _Node] = field(default_factory=dict)
    parameter: _Node | None = None
    parameter_may_be_empty: bool = False
    operations: dict[str, Operation] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Match:
    """The operations of a path by method, and the percent-encoded text of its parameters."""

    operations: Mapping[str, Operation]
    parameters: list[str]


@dataclass(slots=True)
class Router:
    """Built once from all operations; only read after that."""

    _root: _Node = field(default_factory=_Node)
    _whole: dict[str, Match] = field(default_factory=dict)  # the paths without parameters

    def add(self, operations: Iterable[Operation]) -> None:
        """Raises ValueError where two operations claim one method and path."""
        for operation in operations:
            node = self._root
            for segment in operation.path.split("/")[1:]:
                if segment.startswith("{"):
                    node.parameter = node.parameter or _Node()
                    node.parameter_may_be_empty = node.parameter_may_be_empty or segment[1:-1] in MAY_BE_EMPTY
                    node = node.parameter
                else:
                    node = node.literals.setdefault(segment, _Node())
            if operation.method in node.operations:
                other = node.operations[operation.method].name
                raise ValueError(f"{operation.name} and {other} both answer {operation.method} {operation.path}")
            node.operations[operation.method] = operation
            if "{" not in operation.path:
                self._whole[operation.path] = Match(node.operations, [])
        # What is v3 was called r0 before v1.1 of the spec, and tools still say so: matrix-commander when it logs in.
        for api in self._root.literals.get("_matrix", _Node()).literals.values():
            if "v3" in api.literals:
                api.literals["r0"] = api.literals["v3"]

    def match(self, path: str) -> Match | None:
        """The operations at a path as it was sent, percent-encoded. None where there are none."""
        whole = self._whole.get(path)
        if whole is not None:
            return whole
        parameters: list[str] = []
        node = _walk(self._root, path.split("/"), parameters)
        return Match(node.operations, parameters) if node is not None else None


def _walk(root: _Node, segments: list[str], parameters: list[str]) -> _Node | None:
    """The node at the end of the segments, whose parameters are added to `parameters`. Literals are tried first."""
    node = root
    at, end = 1, len(segments)
    left: list[tuple[_Node, int, int]] = []  # where the parameter is still to be tried: its node, segment, parameters
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
    """Whether a segment is something else than a parameter: one of the literals, or a step up or to itself."""
    if "%" not in segment:
        return segment in _DOTS
    try:
        decoded = decode_segment(segment)
    except ValueError:
        return False  # a parameter that cannot be read, and the client is told so
    return decoded in literals or ("." in decoded and not _DOTS.isdisjoint(decoded.split("/")))


_DOTS = frozenset({".", ".."})
