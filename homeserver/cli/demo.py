"""`homeserver demo`: two organisations on this machine, each with a server, and a conversation between their users.

Everything is real: sockets, TLS with a certificate authority made for the demo, federation, HTTP clients. Nothing is
kept afterwards.
"""

from __future__ import annotations

import argparse
import signal
import socket
import tempfile
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from homeserver.cli.output import CommandError, add_json_argument, run_trio, tell

PASSWORD = "o-happy-dagger"


@dataclass(frozen=True, slots=True)
class Organisation:
    """One of the two organisations: its server's name, and the addresses for clients and for other servers."""

    name: str
    server_name: str
    client_port: int
    federation_port: int
    folder: Path

    @property
    def base_url(self) -> str:
        return f"http://127.0.0.1:{self.client_port}"


def add_commands(commands: Any) -> None:
    """Adds `demo`."""
    demo = commands.add_parser("demo", help="two servers on this machine, and a conversation between them")
    demo.add_argument("--exit", action="store_true", help="end after the conversation instead of at Ctrl-C")
    add_json_argument(demo)
    demo.set_defaults(run=run_demo)


def run_demo(args: argparse.Namespace) -> int:
    """Runs the demo. Exits 0 once the conversation is complete and, without --exit, Ctrl-C was pressed."""

    async def main() -> int:
        with tempfile.TemporaryDirectory(prefix="homeserver-demo-") as folder:
            await _demo(args, Path(folder))
        return 0

    return run_trio(main)


async def _demo(args: argparse.Namespace, folder: Path) -> None:
    import trio

    from homeserver.cli.demo_story import Stage, play
    from homeserver.server import Homeserver

    ports = _free_ports((8008, 8448, 8009, 8449))
    organisations = [
        Organisation("Montague", f"localhost:{ports[1]}", ports[0], ports[1], folder / "montague"),
        Organisation("Capulet", f"localhost:{ports[3]}", ports[2], ports[3], folder / "capulet"),
    ]
    _make_certificates(folder, organisations)
    with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
        async with trio.open_nursery() as nursery:
            servers = []
            for organisation in organisations:
                server = await nursery.start(_run, Homeserver, _config(organisation, folder))
                servers.append(server)
                tell(
                    args,
                    f"{organisation.name}: {organisation.server_name} answers clients on {organisation.base_url}"
                    f" and servers on https://{organisation.server_name}",
                    organisation=organisation.name,
                    server_name=organisation.server_name,
                    clients=organisation.base_url,
                    servers=f"https://{organisation.server_name}",
                )
            addresses = [organisation.base_url for organisation in organisations]
            people = await play(Stage(args), addresses, PASSWORD, partial(_archive, servers[0]))
            if not args.exit:
                await _tell_log_ins(args, people)
                await anext(signals)
                tell(args, "\nBoth servers stop. Nothing is kept.", stopped=True)
            for server in servers:
                server.stop()


async def _archive(server: Any, room_id: str) -> tuple[int, int]:
    """Archives everything of a room that is not needed to go on in it, as `homeserver archive run` does.

    Returns how many events are in the archive, and the bytes of their blocks.
    """
    from homeserver.rooms.archive.blocks import list_blocks
    from homeserver.rooms.archiving import Wanted, archive
    from homeserver.rooms.heads import find_head

    hs = server.resources
    room_nid = (await hs.database.read(find_head, room_id)).room_nid
    await archive(hs, [room_nid], Wanted(hs.now_ms()))
    blocks = await hs.database.read(list_blocks, room_nid)
    return sum(block.events for block in blocks), sum(block.size_bytes for block in blocks)


async def _run(homeserver: Any, config: Any, *, task_status: Any) -> None:
    """Runs one server until it is stopped. Reports `started` once it listens."""
    import trio

    async with homeserver(config) as server, trio.open_nursery() as nursery:
        await nursery.start(server.serve)
        task_status.started(server)


async def _tell_log_ins(args: argparse.Namespace, people: list[Any]) -> None:
    """Prints a link for one person of each organisation, and what other clients need."""
    tell(args, "\nBoth servers keep running. Talk in two windows of a browser; each link logs in once:\n", running=True)
    shown: set[str] = set()
    for person in people:
        if person.base_url not in shown:
            shown.add(person.base_url)
            link = await person.link(PASSWORD)
            tell(args, f"  {person.name.title():<8} {link}", chat=link, user_id=person.user_id)
    tell(args, "\nOr log in there, or with any Matrix client, as one of:\n", others=True)
    for person in people:
        tell(
            args,
            f"  homeserver {person.base_url}   user {person.user_id}   password {PASSWORD}",
            homeserver=person.base_url,
            user_id=person.user_id,
            password=PASSWORD,
        )
    tell(args, "\nCtrl-C stops both servers.", ends="SIGINT")


def _config(organisation: Organisation, folder: Path) -> Any:
    from homeserver.config import Config, FederationSection, Listener, Public, RateLimitsSection, Registration

    return Config(
        server_name=organisation.server_name,
        data_dir=str(organisation.folder),
        listeners=(
            Listener(bind=f"127.0.0.1:{organisation.client_port}", serve=("client", "media", "health")),
            Listener(
                bind=f"127.0.0.1:{organisation.federation_port}",
                serve=("federation", "media"),
                tls_cert=str(organisation.folder / "tls.crt"),
                tls_key=str(organisation.folder / "tls.key"),
            ),
        ),
        public=Public(base_url=organisation.base_url),
        registration=Registration(enabled=True),
        rate_limits=RateLimitsSection(enabled=False),
        federation=FederationSection(ca_file=str(folder / "ca.crt"), allow_private_addresses=True),
    )


def _make_certificates(folder: Path, organisations: list[Organisation]) -> None:
    """Makes a certificate authority for these two servers and a certificate for each."""
    import trustme

    authority = trustme.CA(organization_name="homeserver demo")
    authority.cert_pem.write_to_path(str(folder / "ca.crt"))
    for organisation in organisations:
        organisation.folder.mkdir()
        certificate = authority.issue_cert("localhost", "127.0.0.1")
        certificate.private_key_pem.write_to_path(str(organisation.folder / "tls.key"))
        for blob in certificate.cert_chain_pems:
            blob.write_to_path(str(organisation.folder / "tls.crt"), append=True)


def _free_ports(wanted: tuple[int, ...]) -> list[int]:
    """Returns the given ports of the loopback interface, each replaced by any free one if it is taken."""
    sockets: list[socket.socket] = []
    try:
        for port in wanted:
            sock = socket.socket()
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sockets.append(sock)
            try:
                sock.bind(("127.0.0.1", port))
            except OSError:
                sock.bind(("127.0.0.1", 0))
        return [sock.getsockname()[1] for sock in sockets]
    except OSError as error:
        raise CommandError(f"No free port on 127.0.0.1: {error}.") from error
    finally:
        for sock in sockets:
            sock.close()
