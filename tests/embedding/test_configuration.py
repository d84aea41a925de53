"""A configuration that a program makes: converted where that is meant, else refused with a sentence."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from homeserver import Config, ConfigError, Listener
from homeserver.config import Registration


def test_mappings_lists_and_paths_are_converted() -> None:
    config = Config(
        server_name="example.org",
        data_dir=Path("data") / "of-a-test",  # type: ignore[arg-type]
        registration={"enabled": True},  # type: ignore[arg-type]
        listeners=[{"bind": "127.0.0.1:0", "serve": ["client"]}, Listener(bind="127.0.0.1:9")],  # type: ignore[arg-type]
        email={"smtp_host": "mail.example.org", "from": "server@example.org"},  # type: ignore[arg-type]
    )
    assert config.registration == Registration(enabled=True)
    assert config.listeners == (Listener(bind="127.0.0.1:0", serve=("client",)), Listener(bind="127.0.0.1:9"))
    assert config.email.from_address == "server@example.org"
    assert config.data_dir == "data/of-a-test"


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"registration": {"enabeld": True}}, r"registration: unknown key 'enabeld'; did you mean 'enabled'\?"),
        ({"registration": {"enabled": "yes"}}, "Registration.enabled must be True or False, not 'yes'"),
        ({"registration": True}, "registration must be a Registration or a mapping, not True"),
        ({"registration": Listener()}, "registration must be a Registration or a mapping, not Listener"),
        ({"listeners": {"bind": "127.0.0.1:8008"}}, "listeners must be a list or a tuple"),
        ({"listeners": ["127.0.0.1:8008"]}, "listeners must be a Listener or a mapping, not '127.0.0.1:8008'"),
        ({"listeners": [{"bind": 8008}]}, "Listener.bind must be a str, not 8008"),
        ({"listeners": [{"serve": ["clients"]}]}, "Listener.serve must be \"client\", .* not 'clients'"),
        ({"data_dir": None}, "data_dir must be a str, not None"),
        ({"data_dir": ""}, "data_dir must name a folder"),
        ({"server_name": 7}, "server_name must be a str, not 7"),
        ({"server_name": "not a name"}, "not a server name"),
        ({"log": {"level": "loud"}}, 'Log.level must be "debug", "info", "warning" or "error", not \'loud\''),
    ],
)
def test_impossible_values_are_refused_with_an_explanation(given: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        Config(**{"server_name": "example.org", **given})


def test_a_key_that_does_not_exist_is_an_error_of_the_call() -> None:
    with pytest.raises(TypeError, match="registrations"):
        Config(server_name="example.org", registrations={})  # type: ignore[call-arg]
