"""Listeners: real sockets, TLS, HTTP/2, clients that misbehave, and stopping."""

from __future__ import annotations

import os
import socket
import ssl
import stat
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import h2.config
import h2.connection
import h2.events
import httpx
import pytest
import trio
import trio.testing
import trustme

from homeserver import limits
from homeserver.config import ConfigError, Listener
from homeserver.http.listener import open_doors, renew_certificate, serve
from tests.api.listening import make_app, serving, talk

pytestmark = pytest.mark.sockets


async def test_the_listener_answers_and_returns_its_addresses() -> None:
    async with serving() as server, httpx.AsyncClient(verify=False) as http:
        assert server.url == f"http://127.0.0.1:{server.port}"
        assert (await http.get(server.url + "/_matrix/client/versions")).json() == {"ip": "127.0.0.1"}
        assert (await http.get(server.url + "/_homeserver/health/live")).json() == {"live": True}
        assert (await http.get(server.url + "/_homeserver/health/live")).json() == {"live": True}
        metrics = (await http.get(server.url + "/_homeserver/metrics")).text
        assert 'homeserver_requests_total{operation="versions",status="200"} 1' in metrics
        assert "homeserver_requests_active 1" in metrics


async def test_several_addresses_and_ipv6_are_supported() -> None:
    async with (
        serving(Listener(bind="127.0.0.1:0", serve=("client",)), Listener(bind="[::1]:0", serve=("health",))) as server,
        httpx.AsyncClient(verify=False) as http,
    ):
        first, second = (bound.url for bound in server.bound)
        assert second.startswith("http://[::1]:")
        assert (await http.get(first + "/_matrix/client/versions")).status_code == 200
        assert (await http.get(first + "/_homeserver/health/live")).status_code == 404
        assert (await http.get(second + "/_matrix/client/versions")).status_code == 404
        assert (await http.get(second + "/_homeserver/health/live")).status_code == 200


async def test_forwarded_addresses_are_trusted_on_a_unix_socket(tmp_path: Path) -> None:
    path = tmp_path / "h.sock"
    async with serving(Listener(bind=f"unix:{path}")) as server:
        assert server.bound[0].address == f"unix:{path}"
        assert server.url == ""
        transport = httpx.AsyncHTTPTransport(uds=str(path))
        async with httpx.AsyncClient(transport=transport, base_url="http://x") as http:
            headers = {"x-forwarded-for": "203.0.113.9, 2001:db8::1"}
            assert (await http.get("/_matrix/client/versions", headers=headers)).json() == {"ip": "2001:db8::1"}
            claimed_and_true = [("x-forwarded-for", "203.0.113.9"), ("x-forwarded-for", "2001:db8::1")]
            answer = await http.get("/_matrix/client/versions", headers=claimed_and_true)
            assert answer.json() == {"ip": "2001:db8::1"}
            assert (await http.get("/_matrix/client/versions")).json() == {"ip": ""}
    assert not path.exists()


async def test_the_permissions_of_a_unix_socket_can_be_set(tmp_path: Path) -> None:
    for text, mode in (("0660", 0o660), ("0666", 0o666), ("0600", 0o600)):
        async with serving(Listener(bind=f"unix:{tmp_path / text}", socket_mode=text)):
            assert stat.S_IMODE((tmp_path / text).stat().st_mode) == mode


async def test_a_stale_unix_socket_is_replaced_but_a_live_one_is_not(tmp_path: Path) -> None:
    path = tmp_path / "h.sock"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    async with serving(Listener(bind=f"unix:{path}")):
        with pytest.raises(ConfigError, match="another program is listening there"):
            await serve(make_app()[0], [Listener(bind=f"unix:{path}")], stop=trio.Event())


async def test_an_ending_server_does_not_remove_the_socket_of_its_successor(tmp_path: Path) -> None:
    path = tmp_path / "h.sock"
    async with serving(Listener(bind=f"unix:{path}")):
        path.unlink()
        with socket.socket(socket.AF_UNIX) as successor:
            successor.bind(str(path))
    assert path.is_socket()


async def test_if_one_address_is_taken_none_is_left_open(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        listeners = [Listener(bind=f"unix:{tmp_path}/h.sock"), Listener(bind=f"127.0.0.1:{taken.getsockname()[1]}")]
        with pytest.raises(ConfigError, match="another program is listening there"):
            await serve(make_app()[0], listeners, stop=trio.Event())
    assert list(tmp_path.iterdir()) == []


async def test_tls_is_supported(tls_files: tuple[str, str, ssl.SSLContext]) -> None:
    cert, key, context = tls_files
    async with serving(Listener(bind="127.0.0.1:0", tls_cert=cert, tls_key=key)) as server:
        async with httpx.AsyncClient(verify=context) as http:
            assert server.url.startswith("https://")
            assert (await http.get(server.url + "/_matrix/client/versions")).json() == {"ip": "127.0.0.1"}
        assert await talk(server.port, b"GET / HTTP/1.1\r\nhost: x\r\n\r\n") == b""


async def test_a_renewed_certificate_is_loaded(tls_files: tuple[str, str, ssl.SSLContext], tmp_path: Path) -> None:
    cert, key, _ = tls_files
    (door,) = open_doors([Listener(bind="127.0.0.1:0", tls_cert=cert, tls_key=key)])
    with door.sock:
        Path(cert).write_text("half")
        os.utime(cert, (1, 2_000_000_000))
        renew_certificate(door)
        assert door.certificate_read < 2_000_000_000
        issued = trustme.CA().issue_cert("localhost")
        Path(cert).write_bytes(b"".join(blob.bytes() for blob in issued.cert_chain_pems))
        issued.private_key_pem.write_to_path(key)
        os.utime(cert, (1, 2_000_000_001))
        renew_certificate(door)
        assert door.certificate_read == 2_000_000_001


async def test_a_host_name_binds_all_of_its_addresses() -> None:
    async with serving(Listener(bind="localhost:0")) as server, httpx.AsyncClient(verify=False) as http:
        assert {bound.address.rpartition(":")[0] for bound in server.bound} <= {"127.0.0.1", "[::1]"}
        for bound in server.bound:
            assert (await http.get(bound.url + "/_homeserver/health/live")).status_code == 200


async def test_http2_is_supported(tls_files: tuple[str, str, ssl.SSLContext]) -> None:
    cert, key, context = tls_files
    context.set_alpn_protocols(["h2"])
    async with serving(Listener(bind="127.0.0.1:0", tls_cert=cert, tls_key=key)) as server:
        stream = await trio.open_ssl_over_tcp_stream("127.0.0.1", server.port, ssl_context=context)
        connection = h2.connection.H2Connection(h2.config.H2Configuration())
        connection.initiate_connection()
        for number, path in ((1, "/_matrix/client/versions"), (3, "/_matrix/media/v3/download/8")):
            connection.send_headers(
                number,
                [(":method", "GET"), (":path", path), (":scheme", "https"), (":authority", "x")],
                end_stream=True,
            )
        connection.increment_flow_control_window(1 << 24)
        await stream.send_all(connection.data_to_send())
        bodies = {1: b"", 3: b""}
        ended = 0
        while ended < 2:
            for event in connection.receive_data(await stream.receive_some()):
                if isinstance(event, h2.events.DataReceived):
                    bodies[event.stream_id] += event.data
                    connection.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
                elif isinstance(event, h2.events.StreamEnded):
                    ended += 1
            await stream.send_all(connection.data_to_send())
        assert bodies[1] == b'{"ip":"127.0.0.1"}'
        assert len(bodies[3]) == 8 * 65_536
        await trio.aclose_forcefully(stream)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"bind": "192.0.2.1:0"}, "cannot listen on 192.0.2.1:0: "),
        ({"bind": "no.such.host.invalid:0"}, "cannot listen on no.such.host.invalid:0: "),
        ({"bind": "unix:/no/such/folder/h.sock"}, "cannot listen on unix:/no/such/folder/h.sock: No such file"),
        ({"bind": "127.0.0.1:0", "tls_cert": "/no.pem", "tls_key": "/no.pem"}, "cannot read tls_cert /no.pem: "),
    ],
)
async def test_failures_to_listen_are_explained(change: dict[str, str], said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        await serve(make_app()[0], [Listener(bind="127.0.0.1:0"), Listener(**change)], stop=trio.Event())
    assert said in str(caught.value)


async def test_a_taken_port_is_reported(tmp_path: Path) -> None:
    async with serving() as server:
        with pytest.raises(ConfigError, match="another program is listening there"):
            await serve(make_app()[0], [Listener(bind=server.bound[0].address)], stop=trio.Event())
    (tmp_path / "c.pem").write_text("x")
    with pytest.raises(ConfigError, match="are not a PEM certificate and key"):
        path = str(tmp_path / "c.pem")
        await serve(make_app()[0], [Listener(bind="127.0.0.1:0", tls_cert=path, tls_key=path)], stop=trio.Event())


async def test_a_refused_upload_still_gets_its_answer() -> None:
    """The client sends on after it was refused: it must see the answer, and its connection must end."""
    async with serving() as server:
        stream = await trio.open_tcp_stream("127.0.0.1", server.port)
        size = 8 << 20
        await stream.send_all(b"POST /_matrix/media/v3/upload HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n" % size)
        await stream.send_all(b"x" * size)
        answer = b""
        while not answer.endswith(b"}"):
            answer += await stream.receive_some()
        assert b" 413 " in answer.partition(b"\r\n")[0]
        assert b"M_TOO_LARGE" in answer
        await stream.aclose()


async def test_a_client_that_sends_endlessly_is_cut_off() -> None:
    async with serving() as server:
        stream = await trio.open_tcp_stream("127.0.0.1", server.port)
        head = b"POST /_matrix/media/v3/upload HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n"
        await stream.send_all(head)
        with pytest.raises(trio.BrokenResourceError):
            for _ in range(4 * limits.http.REFUSED_BODY_BYTES_MAX // 65_536):
                await stream.send_all(b"10000\r\n" + b"x" * 65_536 + b"\r\n")


async def test_the_size_of_a_chunked_upload_is_limited() -> None:
    async def pieces(count: int) -> AsyncIterator[bytes]:
        for _ in range(count):
            yield b"x" * 65_536

    async with serving() as server, httpx.AsyncClient(verify=False) as http:
        url = server.url + "/_matrix/media/v3/upload"
        assert (await http.post(url, content=pieces(16))).json() == {"length": 1 << 20}
        assert (await http.post(url, content=pieces(17))).status_code == 413
        assert (await http.post(url, content=b"")).json() == {"length": 0}


async def test_an_answer_does_not_wait_long_for_an_unused_body(autojump_clock: trio.testing.MockClock) -> None:
    async with serving() as server:
        stream = await trio.open_tcp_stream("127.0.0.1", server.port)
        began = trio.current_time()
        await stream.send_all(b"GET /_matrix/client/versions HTTP/1.1\r\nhost: x\r\ncontent-length: 60000\r\n\r\n{")
        assert (await stream.receive_some()).startswith(b"HTTP/1.1 200 ")
        assert trio.current_time() - began < 2 * limits.http.UNREAD_BODY_SECONDS_MAX
        await stream.aclose()


async def test_an_unread_body_does_not_close_the_connection() -> None:
    async with serving() as server:
        stream = await trio.open_tcp_stream("127.0.0.1", server.port)
        for _ in range(3):
            await stream.send_all(b"GET /_matrix/client/versions HTTP/1.1\r\nhost: x\r\ncontent-length: 2\r\n\r\n{}")
            answer = b""
            while not answer.endswith(b'{"ip":"127.0.0.1"}'):
                answer += await stream.receive_some()
        await stream.aclose()


@pytest.mark.parametrize(
    "data",
    [
        b"nonsense\r\n\r\n",
        b"GET /\xff HTTP/1.1\r\nhost: x\r\n\r\n",
        b"GET / HTTP/1.1\r\n\r\n",
        b"GET / HTTP/1.1\r\nhost: x\r\ncontent-length: -1\r\n\r\n",
        b"GET / HTTP/1.1\r\nhost: x\r\n" + b"a: b\r\n" * 20_000,
        b"GET /" + b"a" * 60_000,
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\xff" * 100,
        b"\x16\x03\x01\x00\x00",
    ],
)
async def test_malformed_input_ends_only_its_own_connection(data: bytes) -> None:
    async with serving() as server, httpx.AsyncClient(verify=False) as http:
        answer = b""
        with trio.move_on_after(2):  # what could still become a request is waited for
            try:
                answer = await talk(server.port, data)
            except trio.BrokenResourceError:
                pass
        assert answer == b"" or b" 4" in answer[:13] or b" 505" in answer[:13]
        assert (await http.get(server.url + "/_matrix/client/versions")).status_code == 200


async def test_http2_with_a_path_that_is_not_ascii_ends_only_its_own_connection(
    tls_files: tuple[str, str, ssl.SSLContext],
) -> None:
    cert, key, context = tls_files
    async with serving(Listener(bind="127.0.0.1:0", tls_cert=cert, tls_key=key)) as server:
        context.set_alpn_protocols(["h2"])
        stream = await trio.open_ssl_over_tcp_stream("127.0.0.1", server.port, ssl_context=context)
        connection = h2.connection.H2Connection(h2.config.H2Configuration(validate_outbound_headers=False))
        connection.initiate_connection()
        headers = [(b":method", b"GET"), (b":path", b"/\xff"), (b":scheme", b"https"), (b":authority", b"x")]
        connection.send_headers(1, headers, end_stream=True)
        await stream.send_all(connection.data_to_send())
        with pytest.raises((trio.BrokenResourceError, AssertionError)):
            while True:
                assert await stream.receive_some()
        context.set_alpn_protocols(["http/1.1"])
        async with httpx.AsyncClient(verify=context) as http:
            assert (await http.get(server.url + "/_matrix/client/versions")).status_code == 200


async def test_a_truncated_answer_is_recognisable(caplog: pytest.LogCaptureFixture) -> None:
    async with serving() as server, httpx.AsyncClient(verify=False) as http:
        with pytest.raises(httpx.RemoteProtocolError):
            await http.get(server.url + "/_matrix/media/v3/broken")
        assert (await http.get(server.url + "/_matrix/client/versions")).status_code == 200
    assert "answer broke off" in caplog.text


async def test_a_waiting_request_is_cancelled_when_its_client_disconnects() -> None:
    async with serving() as server:
        stream = await trio.open_tcp_stream("127.0.0.1", server.port)
        await stream.send_all(b"GET /_matrix/client/v3/sync HTTP/1.1\r\nhost: x\r\n\r\n")
        await server.until_active(1)
        await stream.aclose()
        await server.hs.ended.wait()


async def test_stopping_finishes_requests_under_way_and_accepts_no_more() -> None:
    answers: dict[str, bytes] = {}
    async with trio.open_nursery() as clients:
        async with serving() as server:
            idle = await trio.open_tcp_stream("127.0.0.1", server.port)

            async def get(name: str) -> None:
                answers[name] = await talk(
                    server.port, b"GET /_matrix/client/v3/%s HTTP/1.1\r\nhost: x\r\n\r\n" % name.encode()
                )

            clients.start_soon(get, "slow")
            clients.start_soon(get, "sync")
            await server.until_active(2)
            server.stop.set()
            await trio.testing.wait_all_tasks_blocked()
            server.hs.may_end.set()
        assert await idle.receive_some() == b""
    assert answers["slow"].endswith(b'{"waited":true}')
    assert answers["sync"].startswith(b"HTTP/1.1 503 ")
    assert server.hs.is_ready is False
    with pytest.raises(OSError):
        await trio.open_tcp_stream("127.0.0.1", server.port)


async def test_a_pipelining_client_does_not_delay_a_stop() -> None:
    async with trio.open_nursery() as clients:
        async with serving() as server:
            request = b"GET /_matrix/client/v3/slow HTTP/1.1\r\nhost: x\r\n\r\n"
            clients.start_soon(talk, server.port, request + request)
            await server.until_active(1)
            server.stop.set()
            await trio.testing.wait_all_tasks_blocked()
            server.hs.may_end.set()
            with trio.fail_after(limits.http.DRAIN_SECONDS / 2):
                await server.ended.wait()


async def test_a_client_that_stops_reading_does_not_delay_a_stop() -> None:
    async with serving() as server:
        stream = await trio.open_tcp_stream("127.0.0.1", server.port)
        await stream.send_all(b"GET /_matrix/media/v3/download/2000 HTTP/1.1\r\nhost: x\r\n\r\n")
        await stream.receive_some(1)
        server.stop.set()


async def test_the_listener_can_be_cancelled() -> None:
    async with trio.open_nursery() as nursery:
        app, _ = make_app()

        async def run(task_status: Any) -> None:
            await serve(app, [Listener(bind="127.0.0.1:0")], stop=trio.Event(), task_status=task_status)

        bound = await nursery.start(run)
        stream = await trio.open_tcp_stream("127.0.0.1", int(bound[0].address.rpartition(":")[2]))
        await stream.send_all(b"GET /_matrix/media/v3/download/2000 HTTP/1.1\r\nhost: x\r\n\r\n")
        await stream.receive_some(1)
        nursery.cancel_scope.cancel()
