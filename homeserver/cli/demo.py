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
from pathlib import Path
from typing import Any

from homeserver.cli.output import CommandError, add_json_argument, run_trio, tell

PASSWORD = "o-happy-dagger"
DIALOGUE = (
    ("romeo", "But soft, what light through yonder window breaks?"),
    ("juliet", "Three words, dear Romeo, and good night indeed."),
    ("romeo", "O, wilt thou leave me so unsatisfied?"),
    ("mercutio", "A plague o’ both your houses! (Though both servers are up.)"),
    ("juliet", "Parting is such sweet sorrow, that I shall say good night till it be morrow."),
)


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
            people = await _converse(Stage(args), organisations)
            if not args.exit:
                _tell_credentials(args, people)
                await anext(signals)
                tell(args, "\nBoth servers stop. Nothing is kept.", stopped=True)
            for server in servers:
                server.stop()


async def _run(homeserver: Any, config: Any, *, task_status: Any) -> None:
    """Runs one server until it is stopped. Reports `started` once it listens."""
    import trio

    async with homeserver(config) as server, trio.open_nursery() as nursery:
        await nursery.start(server.serve)
        task_status.started(server)


class Stage:
    """Prints what happens as it happens."""

    def __init__(self, args: argparse.Namespace) -> None:
        self._args = args

    def scene(self, title: str) -> None:
        tell(self._args, f"\n{title}", scene=title)

    def step(self, text: str, took_ms: float) -> None:
        tell(self._args, f"  {text:<86} {took_ms:7.1f} ms", step=text.strip(), took_ms=round(took_ms, 1))


async def _converse(stage: Stage, organisations: list[Organisation]) -> list[Any]:
    """Plays the conversation step by step. Returns when every client has received everything."""
    import trio

    from homeserver.cli.demo_people import Person, picture

    montague, capulet = organisations
    romeo = Person("romeo", montague.base_url)
    mercutio = Person("mercutio", montague.base_url)
    juliet = Person("juliet", capulet.base_url)
    everyone = {person.name: person for person in (romeo, mercutio, juliet)}
    stage.scene("They register and log in")
    for person in everyone.values():
        await person.register(PASSWORD)
        stage.step(f"{person.name} registers", person.took_ms)
        await person.log_in(PASSWORD)
        stage.step(f"{person.user_id} is logged in", person.took_ms)
    async with trio.open_nursery() as nursery:
        for person in everyone.values():
            nursery.start_soon(person.listen)
        stage.scene("Romeo creates a room and invites people of both organisations (time until they see the invite)")
        room_id = await romeo.create_room("The balcony")
        stage.step(f"room {room_id}", romeo.took_ms)
        for person in (mercutio, juliet):
            started = trio.current_time()
            await romeo.invite(room_id, person.user_id)
            stage.step(f"{person.name} is invited", await person.wait_invited(room_id, started))
            await person.join(room_id)
            stage.step(f"{person.name} joins", person.took_ms)
        for person in everyone.values():
            await person.wait_members(room_id, len(everyone))
        stage.scene("They talk (time until everyone else has received the message)")
        for name, text in DIALOGUE:
            event_id, sent_at = await everyone[name].send_text(room_id, text)
            others = [person for person in everyone.values() if person.name != name]
            waited_ms = max([await person.wait_event(event_id, sent_at) for person in others])
            stage.step(f"{name:>8}: {text}", waited_ms)
        stage.scene("Juliet sends a picture and reads the messages")
        event_id, sent_at, mxc = await juliet.send_picture(room_id, picture(640, 480))
        await romeo.wait_event(event_id, sent_at)
        size = await romeo.download(mxc)
        stage.step(f"romeo has the picture: {size} bytes of {mxc}", romeo.took_ms)
        started = trio.current_time()
        await romeo.read(room_id, event_id)
        waited_ms = await juliet.wait_receipt(romeo.user_id, event_id, started)
        stage.step("juliet sees that romeo has read it", waited_ms)
        nursery.cancel_scope.cancel()
    stage.scene("Everything has arrived on both servers.")
    return list(everyone.values())


def _tell_credentials(args: argparse.Namespace, people: list[Any]) -> None:
    tell(args, "\nBoth servers keep running. Log in with any Matrix client, as one of:\n", running=True)
    for person in people:
        tell(
            args,
            f"  homeserver {person.base_url}   user {person.user_id}   password {PASSWORD}",
            homeserver=person.base_url,
            user_id=person.user_id,
            password=PASSWORD,
        )
    tell(
        args,
        "\nIf your client encrypts new rooms by default, switch that off. Ctrl-C stops both servers.",
        ends="SIGINT",
    )


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
