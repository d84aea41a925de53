"""The shape of a configuration: which keys exist, in which section, and which values they may have.

The shape is derived from the annotations of the sections, so that a message can say what would have been right: the
closest key, the section a key belongs to, or the possible values. This runs on the parsed file, before any section is
created, because only here is it known how the operator has written a key. What programs pass is checked by the sections
themselves (`values.py`), in the words of Python.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal, get_args, get_origin

from homeserver.config.listeners import Listener
from homeserver.config.sections import Config
from homeserver.config.values import ConfigError, Section, check_text, fields_of, list_choices, suggest


def check_table(kind: type[Section], table: dict[str, Any], section: str = "") -> None:
    """Raises ConfigError unless every key of the table belongs to `kind` and has a value of the right type.

    section: the name of the table as written, such as "[log]"; "" for the whole file.
    """
    kinds = _kinds(kind)
    for key, value in table.items():
        if key not in kinds:
            raise ConfigError(_unknown_key(kind, key, section))
        _check_value(kinds[key], value, f"{section.strip('[]')}.{key}" if section else key)
    missing = [field.encode_name for field in fields_of(kind) if field.required and field.encode_name not in table]
    if kind is not Config and missing:
        raise ConfigError(f"{section} needs the key {missing[0]!r}")
    if kind is Config and not table.get("server_name"):
        raise ConfigError(
            'server_name is missing: it is the domain of your users, as in server_name = "example.org", '
            "and stands at the top of the file"
        )


def _check_value(kind: Any, value: object, where: str) -> None:
    if isinstance(kind, type) and issubclass(kind, Section):
        if not isinstance(value, dict):
            raise ConfigError(f"{where} is a section: write [{where}], once, and its keys below")
        check_table(kind, value, f"[{where}]")
    elif get_origin(kind) is tuple:
        _check_list(get_args(kind)[0], value, where)
    elif get_origin(kind) is Literal:
        if value not in get_args(kind):
            raise ConfigError(f"{where} must be {list_choices(get_args(kind))}, not {_shown(value)}")
    elif type(value) is not kind:
        wanted = {bool: "true or false, without quotes", int: "a whole number, without quotes", str: 'text in "quotes"'}
        raise ConfigError(f"{where} must be {wanted[kind]}, not {_shown(value)}")
    elif isinstance(value, str):
        check_text(where, value)


def _check_list(kind: Any, value: object, where: str) -> None:
    if isinstance(kind, type) and issubclass(kind, Section):
        if not isinstance(value, list) or not all(isinstance(each, dict) for each in value):
            what = "listener" if kind is Listener else "provider"
            raise ConfigError(f"{where}: write [[{where}]], with two brackets on each side, once for each {what}")
        for each in value:
            check_table(kind, each, f"[[{where}]]")
        return
    if not isinstance(value, list):
        raise ConfigError(f'{where} must be a list, as in ["…", "…"], not {_shown(value)}')
    for each in value:
        _check_value(kind, each, where)


def _unknown_key(kind: type[Section], key: str, section: str) -> str:
    """Returns the sentence about an unknown key of a section: where it belongs, or which key may be meant."""
    said = f"unknown key {key!r} {f'in {section}' if section else 'at the top'}"
    homes = [name for name, keys in _sections() if key in keys and name != section]
    if "" in homes:
        return f"{said}; it belongs at the top of the file, above the first section"
    if homes:
        return f"{said}; it belongs in {' or '.join(homes)}"
    return said + suggest(key, _kinds(kind))


def _sections() -> Iterator[tuple[str, dict[str, Any]]]:
    """Yields every section's name as written ("" for the top level), with its keys and their types."""
    yield "", _kinds(Config)
    for name, kind in _kinds(Config).items():
        if isinstance(kind, type) and issubclass(kind, Section):
            yield f"[{name}]", _kinds(kind)
        elif get_origin(kind) is tuple and isinstance(inner := get_args(kind)[0], type) and issubclass(inner, Section):
            yield f"[[{name}]]", _kinds(inner)


def _kinds(kind: type[Section]) -> dict[str, Any]:
    return {field.encode_name: field.type for field in fields_of(kind)}


def _shown(value: object) -> str:
    """Returns a value as TOML writes it, short enough for a sentence."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return f'"{value}"' if value.isprintable() and len(value) <= 60 else "this text"
    if isinstance(value, dict):
        return "a section"
    return "a list" if isinstance(value, list) else str(value)
