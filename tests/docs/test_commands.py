"""Every command, file and target that the README and the pages of docs/ name exists, and the README's example runs."""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from homeserver.cli import make_parser

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
# A line of its own in a block, or words in the text.
COMMAND = re.compile(r"(?:^    |`)((?:make|cp|(?:\.venv/bin/)?homeserver) [^`#\n]+)", re.MULTILINE)
LINK = re.compile(r"\]\(([^)#:]+)(?:#[^)]*)?\)")
PATH = re.compile(r"`((?:homeserver|federation|search|tests|docs)/[\w/.]*\w\.\w+)")
URL_PATH = re.compile(r"(?<![\w.])/_homeserver/[\w/]+")


def commands(program: str) -> Iterator[tuple[Path, list[str]]]:
    for page in PAGES:
        for line in COMMAND.findall(page.read_text()):
            words = line.split()
            if words[0].removeprefix(".venv/bin/") == program and words[1] != "…":
                yield page, words[1:]


def unknown_words(parser: argparse.ArgumentParser, words: list[str]) -> list[str]:
    """Returns the words that are not a command, an option, or an option's argument."""
    unknown = []
    for word in words:
        groups = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
        if word.startswith("-"):
            unknown += [word] if word.partition("=")[0] not in parser._option_string_actions else []
        elif groups:
            if word not in groups[0].choices:
                return [word]
            parser = groups[0].choices[word]
    return unknown


def test_commands_of_the_program_exist() -> None:
    named = list(commands("homeserver"))
    assert len(named) >= 4
    parser = make_parser()
    assert [(page.name, words) for page, words in named if unknown_words(parser, words)] == []


def test_targets_of_make_exist() -> None:
    rules = re.findall(r"^([\w -]+):(?!=)", (ROOT / "Makefile").read_text(), re.MULTILINE)
    targets = {target for rule in rules for target in rule.split()}
    named = list(commands("make"))
    assert len(named) >= 4
    goals = [(page.name, words[2] if words[0] == "-C" else words[0]) for page, words in named]
    assert [(page, goal) for page, goal in goals if goal not in targets] == []


def test_files_exist() -> None:
    copied = [(page, ROOT / words[0]) for page, words in commands("cp") if not words[0].startswith(("-", "/"))]
    linked = [(page, page.parent / name) for page in PAGES for name in LINK.findall(page.read_text())]
    mentioned = [(page, ROOT / name) for page in PAGES for name in PATH.findall(page.read_text())]
    assert copied and linked and mentioned
    missing = {(page.name, str(path)) for page, path in [*copied, *linked, *mentioned] if not path.exists()}
    assert missing == set()


def test_keys_of_the_configuration_exist() -> None:
    """A page that shows `key = …` or names a `[section]` shows one of the sample's."""
    sample = (ROOT / "sample_config.toml").read_text()
    keys = set(re.findall(r"^(\w+) =", sample, re.MULTILINE))
    sections = set(re.findall(r"^\[+([\w.]+)\]+", sample, re.MULTILINE))
    text = (ROOT / "docs" / "running.md").read_text()
    named_keys = set(re.findall(r"`(\w+) = ", text))
    named_sections = set(re.findall(r"`\[+([\w.]+)\]+`", text))
    assert named_keys and named_keys <= keys
    assert named_sections and named_sections <= sections


def test_the_example_of_the_readme_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All of it but the last line, which serves until it is told to stop. It runs again on what it has left behind."""
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    served: list[str] = []
    last = "await hs.serve()"
    assert last in code
    monkeypatch.chdir(tmp_path)
    for _ in range(2):
        exec(code.replace(last, "served.append(room)"), {"served": served})
    assert [room[0] for room in served] == ["!", "!"]
