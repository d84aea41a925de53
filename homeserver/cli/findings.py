"""Finds errors and unwise settings in a configuration and on the machine that will serve it.

An error would stop `serve`, or leave the server unreachable. A warning may be intended, but the administrator should
know of it. `serve` logs the findings that need the configuration only.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

import trio

from homeserver.blobs import BlobError, Blobs
from homeserver.config import (
    Config,
    ConfigError,
    Email,
    check_files,
    is_loopback,
    load_application_services,
    parse_bind,
    server_name_of,
)
from homeserver.database import DatabaseError, peek
from homeserver.features.mail import try_mail_server
from homeserver.http.listener import try_listener
from homeserver.remote import identity
from homeserver.rooms.keys import list_needed_masters
from homeserver.rooms.master_keys import check_folder, find_exposed, load_keys
from homeserver.server import all_schemas, blobs_url, database_url


@dataclass(frozen=True, slots=True)
class Finding:
    """One sentence: which setting, what is wrong with it, and what to do."""

    level: Literal["error", "warning"]
    text: str


async def find_all(config: Config) -> list[Finding]:
    """Returns all findings, without changing anything. Takes some seconds if something does not respond."""
    findings = [*find_in_config(config), *(Finding("error", text) for text in check_files(config))]
    findings += _find_in_registrations(config)
    findings += _find_in_folder(config)
    in_database, is_served = await trio.to_thread.run_sync(_find_in_database, config)
    findings += in_database
    findings += _find_in_listeners(config, is_served=is_served)
    findings += await _find_in_store(config)
    findings += await trio.to_thread.run_sync(_find_in_mail_server, config.email)
    return findings


def find_in_config(config: Config) -> Iterator[Finding]:
    """Yields the findings that need the configuration only."""
    if not config.listeners:
        yield Finding("error", "there is no [[listeners]] section, so nobody can reach the server")
    yield from _find_in_addresses(config)
    served = {group for listener in config.listeners for group in listener.serve}
    if config.listeners and "client" not in served:
        yield Finding("warning", 'no listener serves "client", so nobody can log in')
    if config.listeners and config.federation.enabled and "federation" not in served:
        yield Finding(
            "error",
            'federation.enabled is true, but no listener serves "federation", so other servers cannot reach this one:'
            " add it to the serve of a listener, or set federation.enabled to false",
        )
    for listener in config.listeners:
        exposed = {"admin", "metrics"} & set(listener.serve)
        host = parse_bind(listener.bind).host
        if exposed and host and not is_loopback_bind(host):
            names = " and ".join(sorted(exposed))
            yield Finding(
                "warning",
                f"listener {listener.bind} serves {names} to everyone who reaches it: move them to a loopback listener",
            )
    if config.registration.enabled and not config.registration.require_token:
        yield Finding(
            "warning",
            "registration.enabled lets anyone create accounts, which attracts spammers: set registration.require_token"
            " to true and hand out tokens (`homeserver token create`)",
        )
    if not _is_local(config):
        yield from _find_test_settings(config)


def _find_in_addresses(config: Config) -> Iterator[Finding]:
    """Checks the addresses that clients and servers are sent to."""
    if _is_local(config):
        return
    base_url = config.public.base_url
    host = urlsplit(base_url).hostname or ""
    if not base_url:
        yield Finding(
            "warning",
            f"public.base_url is not set, so clients are sent to {config.base_url}: set it if clients reach the server"
            " under another address",
        )
    elif is_loopback(host):
        yield Finding(
            "error",
            f"public.base_url is {base_url}, which every client takes for its own machine: set it to the https URL"
            f" under which clients reach {config.server_name}",
        )
    elif base_url.startswith("http:"):
        yield Finding("warning", f"public.base_url is {base_url}: without https, passwords are sent in clear text")
    address = config.federation_address
    if config.federation.enabled and is_loopback(urlsplit(f"//{address}").hostname or "") and not is_loopback(host):
        yield Finding(
            "error",
            f"public.federation_address is {address}, which every other server takes for itself: set a public address",
        )


def _find_test_settings(config: Config) -> Iterator[Finding]:
    """Warns of settings for test machines, if the domain is real."""
    for is_set, text in (
        (not config.rate_limits.enabled, "rate_limits.enabled is false, so passwords can be guessed without limit"),
        (
            config.passwords.hash_cost == "minimal",
            "passwords.hash_cost is minimal: passwords in a stolen database are easy to crack",
        ),
        (not config.federation.verify_tls, "federation.verify_tls is false, so anyone can pose as another server"),
        (
            config.federation.allow_private_addresses,
            "federation.allow_private_addresses is true, so other servers can make this one call into your network",
        ),
    ):
        if is_set:
            yield Finding("warning", text)


# Names that nobody can have meant. A namespace that has all of them has everybody's.
_PEOPLE = ("alice", "0", "q7-x.z_j")


def _find_in_registrations(config: Config) -> Iterator[Finding]:
    """Checks what the registrations of application services claim, and how secret they are."""
    server_name = server_name_of(config)
    try:
        services = load_application_services(server_name, config.application_services.files)
    except ConfigError:
        return  # `check_files` reports it
    by_sender: dict[str, str] = {}
    for service in services:
        if all(service.users.is_exclusive(f"@{name}:{server_name}") for name in _PEOPLE):
            yield Finding(
                "warning",
                f"the application service {service.id!r} has all usernames for itself, so nobody can register:"
                " set exclusive to false, or choose a narrower regular expression",
            )
        url = urlsplit(service.url or "")
        if url.scheme == "http" and not is_loopback(url.hostname or ""):
            yield Finding(
                "warning",
                f"the application service {service.id!r} gets its messages and its secret over the network without"
                " encryption: use an https URL, unless the network is private",
            )
        if service.sender in by_sender:
            yield Finding(
                "warning",
                f"the application services {by_sender[service.sender]!r} and {service.id!r} have the same"
                " sender_localpart, so each acts as the user of the other",
            )
        by_sender[service.sender] = service.id
    for path in config.application_services.files:
        if Path(path).stat().st_mode & 0o004:
            yield Finding("warning", f"every user of this machine can read the secrets in {path}: `chmod o-r {path}`")


def _find_in_folder(config: Config) -> Iterator[Finding]:
    """Checks that the data folders are writable."""
    folders = {"data_dir": config.data_path("")}
    if blobs_url(config).startswith("file:"):
        folders["blobs.url"] = Path(blobs_url(config).removeprefix("file:"))
    for key, folder in folders.items():
        nearest = folder
        try:
            nearest = next(path for path in (folder, *folder.parents) if path.exists())
            with tempfile.TemporaryFile(dir=nearest):
                pass
        except OSError as error:
            yield Finding("error", f"{key}: cannot write to {nearest}: {error.strerror}")
            return


def _find_in_database(config: Config) -> tuple[list[Finding], bool]:
    """Checks the database, the signing key and the master key. Also returns whether a server has the database open."""
    path = config.data_path(config.federation.signing_key_file)
    findings = [*_find_in_paths(config, path)]
    known, needed, is_served = None, [], False
    try:
        seen = peek(
            database_url(config), all_schemas(), lambda tx: (identity.get_identity(tx), list_needed_masters(tx))
        )
        known, needed = seen.result or (None, [])
        is_served = seen.is_served
    except DatabaseError as error:
        findings.append(Finding("error", f"database.url: {str(error).rstrip('.')}"))
    try:
        key = identity.read_key(path)
        if known is not None:
            identity.check_name(known, config.server_name)
            if key is not None or not identity.may_make_key(known):
                identity.check_key(known, key, path)
    except ConfigError as error:
        findings.append(Finding("error", str(error)))
    findings += _find_in_master_key(config, needed)
    return findings, is_served


def _find_in_master_key(config: Config, needed: Collection[str]) -> Iterator[Finding]:
    """Checks that the master key is the one of this database, and who can read it. needed: see `load_keys`."""
    try:
        check_folder(config)
        load_keys(config, needed)
        exposed = find_exposed(config)
    except ConfigError as error:
        yield Finding("error", str(error))
    except OSError as error:
        yield Finding("error", f"at_rest.master_key_file: cannot read it: {error.strerror}")
    else:
        if exposed is not None:
            yield Finding(
                "warning",
                "every user of this machine can read the master key, and with it whatever is sealed:"
                f" `chmod 600 {exposed}`",
            )


def _find_in_paths(config: Config, key: Path) -> Iterator[Finding]:
    """Checks that the database's folder exists, unless we would create it, and who can read the signing key."""
    folder = Path(database_url(config).removeprefix("sqlite:")).parent
    if database_url(config).startswith("sqlite:") and folder not in (config.data_path(""), Path(".")):
        if not os.path.exists(folder):
            yield Finding(
                "error", f"database.url: the folder {folder} does not exist: create it, or configure another one"
            )
    if os.path.exists(key) and key.stat().st_mode & 0o007:
        yield Finding("warning", f"every user of this machine can read the signing key: `chmod 600 {key}`")


def _find_in_listeners(config: Config, *, is_served: bool) -> Iterator[Finding]:
    for listener in config.listeners:
        try:
            try_listener(listener)
        except ConfigError as error:
            is_taken = "another program is listening there" in str(error)
            if is_served and is_taken:
                yield Finding("warning", f"{listener.bind} is in use, probably by a running server")
            else:
                yield Finding("error", str(error))


async def _find_in_store(config: Config) -> list[Finding]:
    """Checks that an object store responds with the present credentials."""
    url = config.blobs.url
    if url.startswith(("file:", "memory:")):
        return []
    try:
        await Blobs(url).exists("check")
    except BlobError as error:
        names = {"s3": "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY", "gs": "GOOGLE_APPLICATION_CREDENTIALS"}
        wanted = names.get(url.partition(":")[0], "AZURE_STORAGE_ACCOUNT_NAME and AZURE_STORAGE_ACCOUNT_KEY")
        return [
            Finding(
                "error", f"blobs.url: {url} cannot be used: are {wanted} set in the environment of the server? {error}"
            )
        ]
    return []


def _find_in_mail_server(settings: Email) -> list[Finding]:
    if not settings.smtp_host or not (reason := try_mail_server(settings)):
        return []
    where = f"{settings.smtp_host}:{settings.smtp_port}"
    return [
        Finding("warning", f"email.smtp_host: {where} takes no email ({reason}): correct the settings under [email]")
    ]


def is_loopback_bind(host: str) -> bool:
    """Returns whether only this machine can reach a listener with that host. 0.0.0.0 and :: mean every address."""
    return is_loopback(host) and host not in ("0.0.0.0", "::")


def _is_local(config: Config) -> bool:
    """Returns whether the server is for this machine only, judged by its name."""
    return is_loopback(urlsplit(f"//{config.server_name}").hostname or "")
