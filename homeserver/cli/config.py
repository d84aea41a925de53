"""`homeserver config check`: whether a configuration can be served, without opening its database."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from homeserver.cli.output import CommandError, add_shared_arguments, read_config, tell


def add_commands(commands: Any) -> None:
    """`config check`."""
    group = commands.add_parser("config", help="look at a configuration")
    actions = group.add_subparsers(metavar="ACTION", required=True)
    check = actions.add_parser("check", help="say whether a configuration is good, and what is wrong with it")
    add_shared_arguments(check, run_check)


def run_check(args: argparse.Namespace) -> int:
    """Reads the file, and everything that it names."""
    from homeserver.config import ConfigError
    from homeserver.listener import tls_context

    config = read_config(args)
    try:
        for listener in config.listeners:
            tls_context(listener)
    except ConfigError as error:
        raise CommandError(f"{args.config}: {error}") from error
    named = {
        "registration.shared_secret_file": config.registration.shared_secret_file,
        "email.smtp_password_file": config.email.smtp_password_file,
        "federation.ca_file": config.federation.ca_file,
        "outbound_http.ca_file": config.outbound_http.ca_file,
        **{f"application_services.files[{n}]": name for n, name in enumerate(config.application_services.files)},
    }
    for key, name in named.items():
        if name and not Path(name).is_file():
            raise CommandError(f"{args.config}: {key}: there is no file {name}")
    tell(args, f"{args.config} is good: it serves {config.server_name}.", ok=True, server_name=config.server_name)
    return 0
