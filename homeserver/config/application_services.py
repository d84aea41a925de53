"""Registrations of application services: bridges and bots that act for many users. Spec: application-service-api/

The operator lists their files in `[application_services] files`. They are read once, at the start.

Namespaces are regular expressions, matched from the start of an ID, as other servers do. They are matched by RE2, whose
time grows only with the length of the ID, so no ID can keep the server busy. It knows neither look-ahead nor
back-references; a registration that uses them is refused with that reason.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import msgspec
import re2

from homeserver.config.values import ConfigError
from homeserver.federation.identifiers import ServerName, UserID, fits, is_valid_localpart, server_name_of

_FILE_BYTES_MAX = 1 << 20


class NamespaceRule(msgspec.Struct, frozen=True):
    """One entry of a namespace in a registration file."""

    regex: str
    exclusive: bool


class NamespaceRules(msgspec.Struct, frozen=True):
    """The namespaces of a registration file."""

    users: tuple[NamespaceRule, ...] = ()
    aliases: tuple[NamespaceRule, ...] = ()
    rooms: tuple[NamespaceRule, ...] = ()


class Registration(msgspec.Struct, frozen=True):
    """A registration file. Unknown fields are ignored. Spec: application-service-api/#registration"""

    id: str
    url: str | None
    as_token: str
    hs_token: str
    sender_localpart: str
    namespaces: NamespaceRules = NamespaceRules()
    rate_limited: bool = False
    protocols: tuple[str, ...] | None = None
    receive_ephemeral: bool = False
    push_ephemeral: bool = msgspec.field(default=False, name="de.sorunome.msc2409.push_ephemeral")
    has_encryption: bool = msgspec.field(default=False, name="org.matrix.msc3202")


class Namespace:
    """Which IDs belong to an application service, and which of them to nobody else."""

    __slots__ = ("_exclusive", "_shared")

    def __init__(self, where: str, rules: Sequence[NamespaceRule]) -> None:
        self._exclusive = [_compile(where, rule.regex) for rule in rules if rule.exclusive]
        self._shared = [_compile(where, rule.regex) for rule in rules if not rule.exclusive]

    def __bool__(self) -> bool:
        return bool(self._exclusive or self._shared)

    def __contains__(self, name: object) -> bool:
        return self.is_exclusive(name) or any(each.match(name) for each in self._shared)

    def is_exclusive(self, name: object) -> bool:
        """Returns whether the ID may be used by this application service only."""
        return any(each.match(name) for each in self._exclusive)


def _compile(where: str, regex: str) -> Any:
    options = re2.Options()
    options.log_errors = False
    try:
        return re2.compile(regex, options)
    except re2.error as error:
        reason = error.args[0].decode() if isinstance(error.args[0], bytes) else error.args[0]
        raise ConfigError(f"{where}: {regex!r} is not a regular expression that RE2 knows: {reason}") from error


class ApplicationService(msgspec.Struct, frozen=True):
    """One application service. `sender` is the user that it acts as unless it says otherwise.

    url: without a trailing slash; None if nothing is sent to it. has_encryption: it takes the to-device messages of its
    users from transactions only, so these are deleted once it has them.
    """

    id: str
    url: str | None
    hs_token: str
    sender: UserID
    users: Namespace
    aliases: Namespace
    rooms: Namespace
    rate_limited: bool
    protocols: tuple[str, ...]
    receives_ephemeral: bool
    has_encryption: bool

    @property
    def receives_to_device(self) -> bool:
        """Whether transactions have what its users' devices need for encryption."""
        return self.has_encryption or self.receives_ephemeral

    def covers(self, user_id: UserID) -> bool:
        """Returns whether it may act as this user: its own, or a local one of its namespace."""
        return user_id == self.sender or (
            server_name_of(user_id) == server_name_of(self.sender) and user_id in self.users
        )


class RegisteredServices(msgspec.Struct, frozen=True):
    """All application services of a server, by ID."""

    by_id: Mapping[str, ApplicationService] = msgspec.field(default_factory=dict)
    _by_token: Mapping[bytes, ApplicationService] = msgspec.field(default_factory=dict)

    def __iter__(self) -> Iterator[ApplicationService]:
        return iter(self.by_id.values())

    def __bool__(self) -> bool:
        return bool(self.by_id)

    def find_by_token(self, as_token: str) -> ApplicationService | None:
        """Returns whose token it is. It is looked up by its hash, so the time that takes tells nothing about others."""
        return self._by_token.get(_hash(as_token)) if self._by_token else None

    def find(self, appservice: str | None) -> ApplicationService | None:
        """Returns the application service with this ID; None if there is none."""
        return None if appservice is None else self.by_id.get(appservice)

    def may_use(self, user_id: UserID, appservice: str | None) -> bool:
        """Returns whether an account of this name may be created, by an application service or (None) anybody else."""
        service = self.find(appservice)
        if service is not None and not service.covers(user_id):
            return False
        if service is not None and user_id == service.sender:
            return True
        others = [each for each in self if each is not service]
        return not any(user_id == each.sender or each.users.is_exclusive(user_id) for each in others)

    def may_use_alias(self, alias: str, appservice: str | None) -> bool:
        """Returns whether an alias may be created, by an application service or (None) anybody else."""
        service = self.find(appservice)
        if service is not None and alias not in service.aliases:
            return False
        return not self.is_alias_of_others(alias, appservice)

    def is_alias_of_others(self, alias: str, appservice: str | None) -> bool:
        """Returns whether an alias belongs to application services other than this one, and to nobody else."""
        service = self.find(appservice)
        return any(each.aliases.is_exclusive(alias) for each in self if each is not service)

    def owns_alias(self, alias: str, appservice: str | None) -> bool:
        """Returns whether an alias belongs to this application service, and to nobody else."""
        service = self.find(appservice)
        return service is not None and service.aliases.is_exclusive(alias)


def load_application_services(server_name: ServerName, files: Iterable[str]) -> RegisteredServices:
    """Reads the registrations. Raises ConfigError with one sentence about the first file that is wrong."""
    by_id: dict[str, ApplicationService] = {}
    by_token: dict[bytes, ApplicationService] = {}
    for path in files:
        registration = _read(path)
        service = _service(server_name, path, registration)
        if service.id in by_id:
            raise ConfigError(f"{path}: another registration has the id {service.id!r} as well")
        if _hash(registration.as_token) in by_token:
            raise ConfigError(f"{path}: another registration has the same as_token; each needs its own")
        by_id[service.id] = by_token[_hash(registration.as_token)] = service
    return RegisteredServices(by_id, by_token)


def _read(path: str) -> Registration:
    try:
        with Path(path).open("rb") as file:
            data = file.read(_FILE_BYTES_MAX + 1)
    except OSError as error:
        raise ConfigError(f"application_services.files: cannot read {path}: {error.strerror}") from error
    if len(data) > _FILE_BYTES_MAX:
        raise ConfigError(f"{path}: a registration has at most {_FILE_BYTES_MAX >> 20} MiB")
    try:
        return msgspec.yaml.decode(data, type=Registration)
    except msgspec.DecodeError as error:
        raise ConfigError(f"{path}: not a registration of an application service: {error}") from error


def _service(server_name: ServerName, path: str, registration: Registration) -> ApplicationService:
    localpart = registration.sender_localpart
    sender = UserID(f"@{localpart}:{server_name}")
    if not is_valid_localpart(localpart) or not fits(sender):
        raise ConfigError(f"{path}: sender_localpart {localpart!r} must be lower-case letters, digits and . _ = - / +")
    for key in ("id", "as_token", "hs_token"):
        if not getattr(registration, key):
            raise ConfigError(f"{path}: {key} is empty")
    url = registration.url or None
    if url is not None and (urlsplit(url).scheme not in ("http", "https") or not urlsplit(url).hostname):
        raise ConfigError(f"{path}: url must be an http or https URL, or null if nothing is to be sent, not {url!r}")
    rules = registration.namespaces
    return ApplicationService(
        id=registration.id,
        url=None if url is None else url.rstrip("/"),
        hs_token=registration.hs_token,
        sender=sender,
        users=Namespace(f"{path}: namespaces.users", rules.users),
        aliases=Namespace(f"{path}: namespaces.aliases", rules.aliases),
        rooms=Namespace(f"{path}: namespaces.rooms", rules.rooms),
        rate_limited=registration.rate_limited,
        protocols=registration.protocols or (),
        receives_ephemeral=registration.receive_ephemeral or registration.push_ephemeral,
        has_encryption=registration.has_encryption,
    )


def _hash(token: str) -> bytes:
    return hashlib.sha256(token.encode("utf-8", "surrogatepass")).digest()
