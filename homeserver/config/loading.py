"""Reads the configuration file: parses TOML, makes paths absolute, reports mistakes in one sentence."""

from __future__ import annotations

import ssl
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec

from homeserver.config.application_services import load_application_services
from homeserver.config.sections import Config, server_name_of
from homeserver.config.shape import check_table
from homeserver.config.values import ConfigError


def load_config(path: str | Path) -> Config:
    """Returns the configuration in a TOML file. Raises ConfigError with a sentence that names the key."""
    path = Path(path)
    try:
        table = tomllib.loads(path.read_text("utf-8"))
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not valid TOML: {error}") from error
    try:
        return config_from_table(table, path.parent)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error


def config_from_table(table: dict[str, Any], folder: Path) -> Config:
    """Returns the configuration in a parsed TOML table. Relative paths in it are relative to `folder`.

    Raises ConfigError.
    """
    check_table(Config, table)
    try:
        return msgspec.convert(_absolute_paths(table, folder.absolute()), Config)
    except msgspec.ValidationError as error:  # from a section's own checks: the shape is right
        raise ConfigError(str(error.__cause__ or error)) from error


def read_secret(name: str, path: str) -> str:
    """Returns the secret in a file, without surrounding whitespace. `name`: its key. Raises ConfigError."""
    try:
        secret = Path(path).read_text("utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{name}: cannot read {path}: {getattr(error, 'strerror', error)}") from error
    if not secret:
        raise ConfigError(f"{name}: {path} is empty")
    return secret


def check_files(config: Config) -> Iterator[str]:
    """Yields what is wrong with the files named in the configuration, except certificates and the signing key."""
    for section, key in SECRET_FILES:
        path = getattr(getattr(config, section), key)
        try:
            if path:
                read_secret(f"{section}.{key}", path)
        except ConfigError as error:
            yield str(error)
    for provider in config.sso:
        try:
            if provider.client_secret_file:
                read_secret(f"sso.client_secret_file of {provider.id!r}", provider.client_secret_file)
        except ConfigError as error:
            yield str(error)
    named = {
        "federation.ca_file": config.federation.ca_file,
        "outbound_http.ca_file": config.outbound_http.ca_file,
    }
    for key, path in named.items():
        try:
            if path and key.endswith("ca_file"):
                ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(path)
        except ssl.SSLError:
            yield f"{key}: {path} contains no PEM certificate"
        except OSError as error:
            yield f"{key}: cannot read {path}: {error.strerror}"
    try:
        load_application_services(server_name_of(config), config.application_services.files)
    except ConfigError as error:
        yield str(error)


# Keys that name a file with a secret.
SECRET_FILES: tuple[tuple[str, str], ...] = (
    ("registration", "shared_secret_file"),
    ("email", "smtp_password_file"),
    ("turn", "shared_secret_file"),
    ("rtc", "livekit_secret_file"),
)
# Keys whose paths are relative to the configuration file; "data_dir" keys are resolved by Config.data_path instead.
FILE_KEYS: tuple[tuple[str, ...], ...] = (
    ("data_dir",),
    *SECRET_FILES,
    ("federation", "ca_file"),
    ("outbound_http", "ca_file"),
)


def _absolute_paths(table: dict[str, Any], folder: Path) -> dict[str, Any]:
    table = {key: dict(value) if isinstance(value, dict) else value for key, value in table.items()}

    def absolute(value: object) -> object:
        return str(folder / value) if isinstance(value, str) and value else value

    table.setdefault("data_dir", "data")
    for *section, key in FILE_KEYS:
        holder = table.get(section[0], {}) if section else table
        if isinstance(holder, dict) and key in holder:
            holder[key] = absolute(holder[key])

    def with_absolute_paths(listener: dict[str, Any]) -> dict[str, Any]:
        changed = dict(listener)
        for key in ("tls_cert", "tls_key"):
            if key in listener:
                changed[key] = absolute(listener[key])
        bind = listener.get("bind")
        if isinstance(bind, str) and bind.startswith("unix:"):
            changed["bind"] = f"unix:{absolute(bind[5:])}"
        return changed

    if isinstance(table.get("listeners"), list):
        table["listeners"] = [
            with_absolute_paths(each) if isinstance(each, dict) else each for each in table["listeners"]
        ]
    if isinstance(table.get("sso"), list):
        table["sso"] = [
            {key: absolute(value) if key == "client_secret_file" else value for key, value in each.items()}
            if isinstance(each, dict)
            else each
            for each in table["sso"]
        ]
    services = table.get("application_services")
    if isinstance(services, dict) and isinstance(services.get("files"), list):
        services["files"] = [absolute(name) for name in services["files"]]
    return table
