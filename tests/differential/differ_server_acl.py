"""Random server ACLs and server names: who may take part in a room, by us and by Synapse."""

from __future__ import annotations

import random
from typing import Any

import pytest

from homeserver.federation.room_versions import ROOM_VERSIONS
from homeserver.federation.server_acl import compile_acl
from tests.differential.cases import CREATOR, Maker
from tests.differential.conftest import Effort
from tests.differential.differences import Deviation, Difference, Report
from tests.differential.oracle_client import Oracle
from tests.differential.values import chance, odd, pick

SERVER_NAMES = (
    "example.org", "EXAMPLE.org", "example.org:8448", "a.example.org", "a.b.example.org", "evilexample.org",
    "example.org.evil", "x", "localhost:1",
    "1.2.3.4", "1.2.3.4:80", "255.255.255.255", "1.2.3.4.5", "1.2.3", "[::1]", "[::1]:8448", "[1:2::3]", "a-b.c",
    "xn--e1afmkfd.org",
)  # fmt: skip
PATTERNS = (
    "*", "", "?", "*.org", "*.example.org", "*example.org", "example.*", "e*g", "exam?le.org", "example.org",
    "Example.ORG", "example.org:8448",
    "1.2.3.*", "[::1]", "[*", "*:*", "**", "*.*", "a.example.org", "a.*.org", "[a-z]*", "example\\.org", "(x)",
    "x|localhost", "^x$",
)  # fmt: skip


def acl_content(rng: random.Random) -> dict[str, Any]:
    content: dict[str, Any] = {}
    for name, often in (("allow", 0.9), ("deny", 0.7)):
        if chance(rng, often):
            content[name] = rng.sample(PATTERNS, rng.randrange(4)) + (
                ["*"] if name == "allow" and chance(rng, 0.5) else []
            )
        if chance(rng, 0.1):
            content[name] = odd(rng, strict=True)
        if isinstance(content.get(name), list) and chance(rng, 0.1):
            content[name] = [*content[name], odd(rng, strict=True)]
    if chance(rng, 0.5):
        content["allow_ip_literals"] = pick(rng, (2, True), (4, False), (1, odd(rng, strict=True)))
    return content


ACL_DEVIATIONS = (
    Deviation(
        "port",
        "client-server-api/#mroomserver_acl: the name is matched without its port; Synapse matches it with the port",
        lambda it: it.material["server_name"].rpartition(":")[2].isdigit(),
    ),
)


@pytest.mark.parametrize("version", [ROOM_VERSIONS["12"]], ids=lambda version: version.id)
def test_server_acl(oracle: Oracle, effort: Effort, version: Any) -> None:
    report = Report(ACL_DEVIATIONS)
    for seed in effort.seeds(500):
        rng = random.Random(f"acl {seed}")
        content = acl_content(rng)
        maker = Maker(rng, version)
        maker.create()
        events = {"acl": maker.pdu("m.room.server_acl", CREATOR, content, "")}
        (theirs,) = oracle.ask(version.id, events, [{"op": "server_acl", "event": "acl", "server_names": SERVER_NAMES}])
        acl = compile_acl(content)
        for number, server_name in enumerate(SERVER_NAMES):
            ours = acl.is_allowed(server_name)
            answer = theirs[number] if isinstance(theirs, list) else theirs
            material = {"content": content, "server_name": server_name}
            report.compare(Difference("server ACL", version.id, seed, ours, answer, material), same=ours == answer)
    report.conclude()
