"""HAProxy, configured as docs/scaling.md says, hides from people what happens to nodes."""

from __future__ import annotations

import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from tests.end_to_end.programs import free_port, wait_until
from tests.nodes.cluster import Nodes, running_nodes
from tests.support.postgres import missing_reason

pytestmark = [
    pytest.mark.sockets,
    pytest.mark.postgres,
    pytest.mark.skipif(missing_reason() is not None, reason=str(missing_reason())),
    pytest.mark.skipif(shutil.which("haproxy") is None, reason="HAProxy is not installed"),
]

PAGE = Path(__file__).resolve().parents[2] / "docs" / "scaling.md"


@contextmanager
def balanced(nodes: Nodes) -> Iterator[httpx.Client]:
    """A client of HAProxy, without TLS and with the ports of these nodes, otherwise as on the page."""
    found = re.search(r"```\n(frontend matrix.*?)```", PAGE.read_text(), re.DOTALL)
    assert found is not None
    port = free_port()
    sample = re.sub(r"bind :8448 .*\n", "", found[1])
    sample = re.sub(r"bind :443 .*", f"bind 127.0.0.1:{port}", sample)
    for number, server in enumerate(nodes.servers, 1):
        sample = sample.replace(f"10.0.0.{number}:8008", f"127.0.0.1:{server.client_port}")
    assert "10.0.0." not in sample
    file = nodes.folder / "haproxy.cfg"
    file.write_text(sample)
    with subprocess.Popen(["haproxy", "-f", str(file)], stderr=subprocess.DEVNULL) as haproxy:
        try:
            with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=10, verify=False) as client:
                wait_until("HAProxy is there", lambda: _answers(client))
                yield client
        finally:
            haproxy.kill()


def _answers(client: httpx.Client) -> bool:
    try:
        return client.get("/_matrix/client/versions").status_code == 200
    except httpx.TransportError:
        return False


def test_requests_are_answered_while_nodes_are_killed_stopped_and_started(folder_on_disk: Path) -> None:
    with running_nodes(Path(tempfile.mkdtemp(dir=folder_on_disk))) as nodes, balanced(nodes) as client:
        one, two, _ = nodes.nodes
        steps = [lambda: None, one.kill, two.server.begin_stop, lambda: nodes.start(one)]
        for step in steps:
            step()
            assert [client.get("/_matrix/client/versions").status_code for _ in range(30)] == [200] * 30
