"""What search costs: CPU per message that is indexed, bytes per message, and milliseconds per query. Prints one JSON
object.

python -m tests.bench.bench_search [MESSAGES [ROOMS [whoosh|fts5 [sealed|plain]]]]

The texts have ten words each, of a vocabulary of 50,000 with the frequencies of a natural language. Queries are asked
as the server does, for the first 50 proposals: in all rooms, in ten and in one. The report has the median and the 99th
percentile of CPU time, which other programs on the machine change little, and of the time that passed. The first query
opens the slices.
"""

from __future__ import annotations

import itertools
import json
import random
import resource
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from homeserver.limits.search import SEARCH_SECONDS_MAX
from homeserver.search.engines import WHOOSH
from homeserver.search.manifest import find_status
from homeserver.search.service import Service

VOCABULARY = 50_000
SPAN = 250
BEGIN_MS = 1_700_000_000_000
QUERIES_OF_A_KIND = 100


def texts(rng: random.Random, words: list[str]) -> Iterator[str]:
    weights = list(itertools.accumulate(1 / (rank + 1) for rank in range(len(words))))
    while True:
        yield " ".join(rng.choices(words, cum_weights=weights, k=10))


def make_words(rng: random.Random) -> list[str]:
    return ["".join(rng.choice("etaoinshrdlucmf") for _ in range(rng.randint(2, 9))) for _ in range(VOCABULARY)]


def fill(service: Service, messages: int, rooms: int, words: list[str]) -> dict[str, float]:
    """Indexes the messages, and merges slices as the server does."""
    rng = random.Random(1)
    source = texts(rng, words)
    size = 0
    began, merging = time.process_time(), 0.0
    for first in range(0, messages, SPAN):
        documents = [
            [number, BEGIN_MS + number * 1000, rng.randrange(rooms), rng.randrange(1000), 1, next(source)]
            for number in range(first + 1, first + SPAN + 1)
        ]
        size += sum(len(document[5]) for document in documents)
        service.add(first, first + SPAN, documents, [[], [], []])
        before = time.process_time()
        while plan := service.plan_merge(False):
            folder, *names = plan
            service.adopt(folder, names, service.merge(folder, names))
        merging += time.process_time() - before
    service.store()
    spent = time.process_time() - began
    return {
        "indexing_us_per_message": round((spent - merging) / messages * 1e6),
        "merging_us_per_message": round(merging / messages * 1e6),
        "text_bytes_per_message": round(size / messages, 1),
    }


def ask(service: Service, queries: list[str], **wanted: Any) -> dict[str, float]:
    """Returns the median and the 99th percentile of the milliseconds that the queries take."""
    passed: list[float] = []
    spent: list[float] = []
    for query in queries:
        began, cpu_began = time.perf_counter(), time.process_time()
        service.search(query, {"limit": 50, **wanted}, SEARCH_SECONDS_MAX)
        spent.append((time.process_time() - cpu_began) * 1000)
        passed.append((time.perf_counter() - began) * 1000)
    times = {"cpu_p": sorted(spent), "p": sorted(passed)}
    return {
        f"{name}{percent}": round(values[len(values) * percent // 100], 2)
        for name, values in times.items()
        for percent in (50, 99)
    }


def main(messages: int, rooms: int, engine: str = WHOOSH, seal: str = "sealed") -> None:
    rng = random.Random(2)
    words = make_words(rng)
    with tempfile.TemporaryDirectory() as folder:
        key = bytes(32) if seal == "sealed" else None
        service = Service(folder, engine)
        service.unlock(key)
        service.begin("")
        report: dict[str, Any] = {
            "engine": engine,
            "is_sealed": key is not None and engine == WHOOSH,
            "messages": messages,
            "rooms": rooms,
            **fill(service, messages, rooms, words),
        }
        status = find_status(Path(folder))
        assert status is not None
        report |= {"index_bytes_per_message": round(status["bytes"] / messages, 1), "slices": status["slices"]}
        service.close()
        service = Service(folder, engine)
        service.unlock(key)
        began = time.perf_counter()
        service.search("absent", {"limit": 50}, 60.0)
        report["opening_ms"] = round((time.perf_counter() - began) * 1000)
        kinds = {
            "common": [words[rng.randrange(100)] for _ in range(QUERIES_OF_A_KIND)],
            "usual": [words[rng.randrange(100, 5_000)] for _ in range(QUERIES_OF_A_KIND)],
            "rare": [words[rng.randrange(20_000, VOCABULARY)] for _ in range(QUERIES_OF_A_KIND)],
            "two words": [" ".join(rng.choices(words[:500], k=2)) for _ in range(QUERIES_OF_A_KIND)],
            "prefix": [f"{words[rng.randrange(500, 5_000)][:4]}*" for _ in range(QUERIES_OF_A_KIND)],
        }
        for kind, queries in kinds.items():
            for number in (rooms, 10, 1):
                groups = list(range(number))
                report[f"{kind}, {number} rooms, ms"] = ask(service, queries, groups=groups)
            report[f"{kind}, by rank, ms"] = ask(service, queries, groups=list(range(rooms)), by_rank=True)
        service.close()
    report["memory_mb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    print(json.dumps(report, indent=1))


if __name__ == "__main__":
    arguments = dict(enumerate(sys.argv[1:]))
    main(int(arguments.get(0, "100000")), int(arguments.get(1, "200")), *sys.argv[3:])
