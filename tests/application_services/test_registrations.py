"""Registration files, and what is said of wrong ones. Spec: application-service-api/#registration"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from homeserver.config import ConfigError, RegisteredServices, load_application_services
from homeserver.federation.identifiers import ServerName, UserID
from tests.support.application_services import register, registration

HERE = ServerName("test.example")


def load(folder: Path, *registrations: dict[str, Any]) -> RegisteredServices:
    return load_application_services(HERE, register(folder, *registrations).files)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"as_token": ""}, "as_token is empty"),
        ({"url": "bridge:9000"}, "url must be an http or https URL"),
        ({"url": 7}, "Expected `str | null`, got `int` - at `$.url`"),
        ({"sender_localpart": "IRC Bot"}, "must be lower-case letters"),
        ({"namespaces": {"users": [{"regex": "(", "exclusive": True}]}}, "not a regular expression that RE2 knows"),
        ({"namespaces": {"users": [{"regex": "@(?!a).*", "exclusive": True}]}}, "not a regular expression that RE2"),
        ({"namespaces": {"users": [{"regex": "@irc_.*"}]}}, "missing required field `exclusive`"),
    ],
)
def test_a_wrong_registration_is_refused_with_the_reason(tmp_path: Path, changed: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(said)):
        load(tmp_path, registration(**changed))


def test_a_file_that_is_not_there_or_not_yaml_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot read"):
        load_application_services(HERE, [str(tmp_path / "none.yaml")])
    (tmp_path / "odd.yaml").write_text("a: [")
    with pytest.raises(ConfigError, match="not a registration"):
        load_application_services(HERE, [str(tmp_path / "odd.yaml")])


def test_each_registration_has_its_own_id_and_token(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="the id 'irc'"):
        load(tmp_path, registration(), registration(as_token="another"))
    with pytest.raises(ConfigError, match="the same as_token"):
        load(tmp_path, registration(), registration(id="another"))


def test_hostile_names_take_bounded_time_in_any_expression(tmp_path: Path) -> None:
    rules = {"users": [{"regex": "@(a|a|aa)*b", "exclusive": True}]}
    services = load(tmp_path, registration(namespaces=rules))
    assert services.may_use(UserID(f"@{'a' * 240}:{HERE}"), None)


def test_only_users_of_this_server_are_in_a_namespace(tmp_path: Path) -> None:
    (service,) = load(tmp_path, registration())
    assert service.covers(UserID("@irc_x:test.example"))
    assert not service.covers(UserID("@irc_x:elsewhere.example"))
