"""The servers themselves: keys, versions, and TLS as others see it."""

from __future__ import annotations

import ssl
import time

import httpx

from homeserver.federation.server_keys import parse_key_response
from tests.interop.servers import Server, World


def test_keys_and_version(world: World) -> None:
    for server in (world.ours, world.synapse):
        trust = ssl.create_default_context(cafile=str(server.folder / "ca.pem"))
        with httpx.Client(base_url=f"https://{server.server_name}", verify=trust) as client:
            keys = client.get("/_matrix/key/v2/server")
            assert keys.status_code == 200
            parse_key_response(keys.json(), server.server_name, time.time_ns() // 10**6)
            version = client.get("/_matrix/federation/v1/version").json()["server"]
            print(f"{server.kind}: {version['name']} {version['version']}")
            unsigned = client.get("/_matrix/federation/v1/publicRooms")
            assert unsigned.status_code == 401
            missing = client.get("/_matrix/federation/v1/nothing/of/the/kind")
            assert (missing.status_code, missing.json()["errcode"]) == (404, "M_UNRECOGNIZED")


def test_client_port_is_not_the_federation(world: World) -> None:
    """A listener answers only what it is for."""

    def status(server: Server) -> int:
        return httpx.get(f"{server.url}/_matrix/federation/v1/publicRooms").status_code

    assert status(world.ours) == 404
