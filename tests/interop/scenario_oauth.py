"""Logging in as Element X does: discovery, registration, codes with PKCE, device codes, and the server's pages."""

from __future__ import annotations

from tests.interop.clients import Client
from tests.interop.programs import run_js_sdk_oauth
from tests.interop.servers import Server


def test_a_client_logs_in_by_the_pages_of_the_server(organisations: tuple[Server, Server]) -> None:
    """Plays oauth.mjs, which fails at the first step that does not go as the specification has it."""
    here, _ = organisations
    assert run_js_sdk_oauth("oauth.mjs", Client(here, "juliet")) == set()
