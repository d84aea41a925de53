"""Spec: client-server-api/#server-discovery, #capabilities-negotiation"""

from __future__ import annotations

import pytest

from homeserver.config import Public, Registration
from tests.support.homeservers import Homeservers, Server


async def test_supported_versions_are_listed(homeserver: Server) -> None:
    answer = await homeserver.anonymous.ok("GET", "/_matrix/client/versions")
    assert answer["versions"][0] == "v1.1"
    assert answer["versions"][-1] == "v1.19"
    assert len(answer["versions"]) == 19


@pytest.mark.parametrize(
    ("base_url", "server"),
    [
        ("https://matrix.example.org", "matrix.example.org:443"),
        ("https://matrix.example.org:8448/", "matrix.example.org:8448"),
        ("http://127.0.0.1:8008", "127.0.0.1:443"),
        ("https://[::1]", "[::1]:443"),
    ],
)
async def test_well_known_files_point_to_the_server(homeservers: Homeservers, base_url: str, server: str) -> None:
    running = await homeservers.start(public=Public(base_url=base_url))
    client = await running.anonymous.ok("GET", "/.well-known/matrix/client")
    assert client["m.homeserver"] == {"base_url": base_url.rstrip("/")}
    assert await running.anonymous.ok("GET", "/.well-known/matrix/server") == {"m.server": server}
    assert (await running.anonymous.get("/.well-known/matrix/client")).headers["access-control-allow-origin"] == "*"


async def test_clients_may_create_encrypted_rooms(homeserver: Server) -> None:
    assert "io.element.e2ee" not in await homeserver.anonymous.ok("GET", "/.well-known/matrix/client")


async def test_well_known_is_not_served_if_it_is_disabled(homeservers: Homeservers) -> None:
    server = await homeservers.start(public=Public(serve_well_known=False))
    for name in ("client", "server"):
        assert await server.anonymous.refused("GET", f"/.well-known/matrix/{name}") == (404, "M_NOT_FOUND")


async def test_capabilities_are_listed(homeserver: Server) -> None:
    alice = await homeserver.register("alice")
    capabilities = (await alice.ok("GET", "capabilities"))["capabilities"]
    assert capabilities["m.room_versions"]["default"] == "12"
    assert set(capabilities["m.room_versions"]["available"]) == {str(number) for number in range(1, 13)}
    assert capabilities["m.change_password"] == {"enabled": True}
    assert capabilities["m.profile_fields"] == {"enabled": True}
    assert await homeserver.anonymous.refused("GET", "capabilities") == (401, "M_MISSING_TOKEN")


async def test_guests_get_the_capabilities_of_guests(homeservers: Homeservers) -> None:
    server = await homeservers.start(registration=Registration(enabled=True, guests=True))
    token = (await server.anonymous.ok("POST", "register?kind=guest", json={}))["access_token"]
    capabilities = (await server.with_token(token).ok("GET", "capabilities"))["capabilities"]
    assert capabilities["m.change_password"] == {"enabled": False}
    assert capabilities["m.profile_fields"] == {"enabled": True, "allowed": ["displayname"]}


async def test_contacts_are_published_if_there_are_any(homeservers: Homeservers) -> None:
    server = await homeservers.start()
    client = server.anonymous
    assert await client.refused("GET", "/.well-known/matrix/support") == (404, "M_NOT_FOUND")
    assert await client.refused("GET", "/.well-known/matrix/policy_server") == (404, "M_NOT_FOUND")


async def test_contacts_and_the_policy_key_are_published_as_the_settings_say(homeservers: Homeservers) -> None:
    key = "6yhHGKhCiXTSEN2ksjV7kX/N6rBQZ3Xb+M7LlC6NS+s"
    public = Public(
        support_page="https://example.org/help",
        support_user="@admin:example.org",
        security_email="security@example.org",
        policy_server_key=key,
    )
    server = await homeservers.start(public=public)
    client = server.anonymous
    assert await client.ok("GET", "/.well-known/matrix/support") == {
        "contacts": [
            {"role": "m.role.admin", "matrix_id": "@admin:example.org"},
            {"role": "m.role.security", "email_address": "security@example.org"},
        ],
        "support_page": "https://example.org/help",
    }
    assert await client.ok("GET", "/.well-known/matrix/policy_server") == {"public_keys": {"ed25519": key}}
