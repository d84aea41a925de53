"""`stats`: figures in the terminal, as JSON, and in files."""

from __future__ import annotations

import csv
import json
import sys
from pathlib import Path

import pyarrow.parquet
import pytest

from homeserver.cli.stats import sparkline
from homeserver.features.analytics.report import to_csv
from tests.cli.programs import run, write_config
from tests.cli.test_accounts import add, ran


def test_stats_are_shown_and_exported_while_no_server_is_running(tmp_path: Path) -> None:
    config = write_config(tmp_path)
    add(config, "alice")
    add(config, "bob")
    shown = run("stats", "--config", str(config))
    assert shown.returncode == 0, shown.stderr
    assert ("active people" in shown.stdout and "▇" in shown.stdout) or "█" in shown.stdout
    told = ran(config, "stats", "--granularity", "hour")
    assert len(told["periods"]) == 48
    assert sum(period["new_people"] for period in told["periods"]) == 2
    assert ran(config, "stats", "--export", str(tmp_path / "figures.csv"))["rows"] == 30
    rows = list(csv.DictReader((tmp_path / "figures.csv").read_text().splitlines()))
    assert sum(int(row["new_people"]) for row in rows) == 2
    assert ran(config, "stats", "--export", str(tmp_path / "figures.parquet"))["rows"] == 30
    table = pyarrow.parquet.read_table(tmp_path / "figures.parquet").to_pylist()
    assert [row["start"] for row in table] == [row["start"] for row in rows]
    assert sum(row["new_people"] for row in table) == 2


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--export", "figures.xls"], "the name of the file must end with .csv or .parquet, not '.xls'"),
        (["--export", "nowhere/figures.csv"], "cannot write nowhere/figures.csv: No such file or directory"),
        (["--from", "tomorrow"], "`from` must be a date such as 2026-11-01, a time, or milliseconds."),
    ],
)
def test_stats_refuse_what_they_cannot_do_with_a_sentence(tmp_path: Path, arguments: list[str], sentence: str) -> None:
    config = write_config(tmp_path)
    ended = run("stats", *arguments, "--config", str(config), "--json")
    assert ended.returncode == 1
    assert json.loads(ended.stdout) == {"error": sentence}


def test_stats_say_what_is_missing_for_parquet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = write_config(tmp_path)
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    ended = run("stats", "--export", "figures.parquet", "--config", str(config))
    assert (ended.returncode, "pip install 'homeserver[parquet]'" in ended.stderr) == (1, True)


def test_a_sparkline_has_a_bar_for_each_value() -> None:
    assert sparkline([0, 1, 4, 8]) == " ▁▄█"
    assert sparkline([0, 0]) == "  "


@pytest.mark.parametrize("value", ["=1+1", "+1", "-1", "@SUM(A1)", "\t=1", "\r=1", " =1", "|calc"])
def test_no_field_of_a_csv_file_is_taken_for_a_formula(value: str) -> None:
    line = to_csv([{"room_id": value}]).split("\r\n", 1)[1]
    assert next(csv.reader([line.rstrip("\n")], strict=False))[0].startswith("'")
