"""`make bench`: the load generator against this server, and our figures beside Synapse's recorded ones.

The generator lies in the folder that HSBENCH_DIR names, else in `../shared/bench` beside the repository; arguments are
its options (`--runs 3`, `--only send,messages`, `--federation`). On a shared machine trust CPU per operation.
"""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
REPOSITORY = HERE.parents[1]
sys.path.insert(0, str(REPOSITORY / ".ci"))

from environment import ensure_environment  # noqa: E402 (found only now)


@dataclass(frozen=True, slots=True)
class Figure:
    """One line of the table; lower is better. `ratio_min`: how many times less than Synapse; `most`: the bound."""

    scenario: str
    metric: str
    ratio_min: float | None = None
    most: float | None = None


FIGURES = (
    Figure("start", "start_s"),
    Figure("start_loaded", "start_s", most=1.0),
    Figure("start", "idle_rss_mb", most=90),
    Figure("register", "cpu_ms_per_op"),
    Figure("send", "cpu_ms_per_op", ratio_min=8),
    Figure("send", "p50_ms"),
    Figure("messages", "cpu_ms_per_op", ratio_min=10),
    Figure("sync_initial", "cpu_ms_per_op", ratio_min=10),
    Figure("sync_incremental", "cpu_ms_per_op"),
    Figure("sync_idle", "kib_per_conn"),
    Figure("sync_idle", "wake_cpu_ms_per_conn"),
    Figure("deliver_low", "cpu_ms_per_op"),
    Figure("deliver", "cpu_ms_per_op"),
    Figure("room_big", "joined_members_cpu_ms"),
    Figure("room_big", "members_cpu_ms"),
    Figure("room_big", "state_cpu_ms"),
    Figure("room_big", "cpu_ms_per_op"),
    Figure("media", "up_cpu_ms_per_file"),
    Figure("media", "down_cpu_ms_per_file"),
    Figure("thumbnail", "cpu_ms_per_op"),
    Figure("thumbnail", "warm_cpu_ms_per_thumb"),
    Figure("fed_join", "cpu_ms_per_op"),
    Figure("fed_deliver", "cpu_ms_per_op"),
    Figure("memory", "peak_rss_mb"),
)


def main(options: list[str]) -> int:
    """Runs it; 1 where a figure that was asked for is not reached."""
    folder = Path(os.environ.get("HSBENCH_DIR", REPOSITORY.parent / "shared" / "bench")).absolute()
    if not (folder / "hsbench.py").exists():
        print(f"There is no load generator in {folder}: name its folder in HSBENCH_DIR.", file=sys.stderr)
        return 2
    lock = HERE / "requirements-bench.lock"
    python = ensure_environment("Load generator", REPOSITORY / ".venv-bench", lock, "make bench")
    with tempfile.TemporaryDirectory(prefix="homeserver-bench-") as scratch:
        out = Path(scratch) / "ours.json"
        runs = [] if any(option.startswith("--runs") for option in options) else ["--runs", "1"]
        work = ["--work", str(Path(scratch) / "work"), "--out", str(out)]
        server = f"{shlex.quote(sys.executable)} -m homeserver serve --config {{config}}"
        command = [str(python), str(folder / "hsbench.py"), "seed", *runs, *work, *options]
        environment = {**os.environ, "SEED_CMD": server, "PYTHONPATH": str(REPOSITORY)}
        code = subprocess.run(command, env=environment).returncode
        if code:
            return code
        ours = json.loads(out.read_text())["median"]
    theirs = json.loads((folder / "results" / "synapse-sqlite.json").read_text())["median"]
    return 0 if print_table(ours, theirs) else 1


def print_table(ours: dict[str, Any], theirs: dict[str, Any]) -> bool:
    """A line for each figure that was measured; whether all that were asked for are reached."""
    reached = True
    print(f"\n{'scenario':18}{'figure':24}{'Synapse':>12}{'homeserver':>12}{'less':>8}   asked for")
    for figure in FIGURES:
        our = ours.get(figure.scenario, {}).get(figure.metric, {}).get("median")
        their = theirs.get(figure.scenario, {}).get(figure.metric, {}).get("median")
        if our is None or their is None:
            continue
        ratio = their / our if our else float("inf")
        asked = ""
        if figure.ratio_min is not None or figure.most is not None:
            is_reached = ratio >= (figure.ratio_min or 0) and our <= (figure.most or float("inf"))
            wanted = f"≥ {figure.ratio_min:g}×" if figure.ratio_min is not None else f"≤ {figure.most:g}"
            asked = f"{wanted}  {'reached' if is_reached else 'NOT reached'}"
            reached = reached and is_reached
        print(f"{figure.scenario:18}{figure.metric:24}{their:12.2f}{our:12.2f}{ratio:7.1f}×   {asked}")
    return reached


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
