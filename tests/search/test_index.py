"""An index proposes every document that matches, in order, whatever happened to its files."""

from __future__ import annotations

import itertools
import os
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from homeserver.search import index as index_module
from homeserver.search.documents import Deleted, Document, Hit, Wanted, score_of
from homeserver.search.engines import FTS5, WHOOSH, Engine, merge, open_index
from homeserver.search.folders import IndexInUse
from homeserver.search.fts5_database import DATABASE
from homeserver.search.index import SLICE_DOCUMENTS, WRITE_AT, Index
from homeserver.search.manifest import MANIFEST, find_status
from homeserver.search.query import parse_query
from homeserver.search.service import Service
from homeserver.search.words import Stemmers

STEMMERS = Stemmers()
WORDS = ("kettle", "kettles", "blue", "東京", "qwen3.6")
KEY = bytes(range(32))
SECONDS = 60.0  # a search is never out of time


def documents_of(*texts: str, first: int = 1, **fields: int) -> list[Document]:
    values = {"group": 1, "author": 1, "labels": 1, **fields}
    return [Document(number, number * 10, text=text, **values) for number, text in enumerate(texts, first)]


def numbers(index: Engine, text: str, **conditions: Any) -> list[int]:
    wanted = Wanted(parse_query(text, STEMMERS), **{"limit": 1000, **conditions})
    return [hit.number for hit in index.search(wanted, SECONDS).hits]


@pytest.fixture(params=[WHOOSH, FTS5])
def engine(request: pytest.FixtureRequest) -> str:
    """Both engines are held to the same tests."""
    return str(request.param)


@pytest.fixture
def index(tmp_path: Path, engine: str) -> Iterator[Engine]:
    opened = open_index(engine, tmp_path / "index", STEMMERS)
    yield opened
    opened.close()


@pytest.fixture
def slices(tmp_path: Path) -> Iterator[Index]:
    """An index that consists of slices, which only one of the engines has."""
    opened = Index(tmp_path / "index", STEMMERS)
    yield opened
    opened.close()


def reopened(index: Engine, engine: str, key: bytes | None = None) -> Engine:
    index.close()
    return open_index(engine, index.folder, STEMMERS, key)


def contents_of(folder: Path) -> bytes:
    return b"".join(path.read_bytes() for path in folder.rglob("*") if path.is_file())


def merge_everything(index: Engine, key: bytes | None = None) -> None:
    names = index.slice_names()
    index.adopt(names, merge(index.folder, names, key))


# --- what a search finds is what a scan finds ---

documents_strategy = st.lists(
    st.builds(
        lambda time, group, author, labels, words: (time, group, author, labels, " ".join(words)),
        st.integers(-5, 5),
        st.integers(1, 3),
        st.integers(1, 3),
        st.integers(1, 3),
        st.lists(st.sampled_from(WORDS), max_size=4),
    ),
    max_size=25,
)
conditions_strategy = st.fixed_dictionaries(
    {},
    optional={
        "groups": st.frozensets(st.integers(1, 4)),
        "authors": st.frozensets(st.integers(1, 4)),
        "not_authors": st.frozensets(st.integers(1, 4)),
        "labels_any": st.lists(st.integers(1, 3), max_size=2),
        "from_time": st.integers(-5, 5),
        "to_time": st.integers(-5, 5),
        "by_rank": st.booleans(),
    },
)


def scan(documents: Sequence[Document], wanted: Wanted) -> list[Hit]:
    """Applies the rule to each document: a search must find the same."""
    hits: list[Hit] = []
    for each in documents:
        if not wanted.accepts(each.group, each.author, each.labels):
            continue
        if wanted.from_time is not None and each.time < wanted.from_time:
            continue
        if wanted.to_time is not None and each.time >= wanted.to_time:
            continue
        if wanted.query.units and wanted.query.find(each.text, STEMMERS) is not None:
            hits.append(Hit(0.0, each.time, each.number))
    return sorted(hits, reverse=True)


@pytest.mark.parametrize("engine", [WHOOSH, FTS5])
@settings(max_examples=60, deadline=None)
@given(
    batches=st.lists(documents_strategy, min_size=1, max_size=4),
    steps=st.lists(st.sampled_from(("store", "merge", "reopen", "delete")), max_size=4),
    query=st.sampled_from(("kettle", "blue kettle", "kett*", "東", "blue", '"blue"', "3.6", "qwen 京")),
    conditions=conditions_strategy,
    limit=st.integers(1, 5),
)
def test_pages_of_a_search_are_what_a_scan_finds(
    tmp_path_factory: pytest.TempPathFactory,
    engine: str,
    batches: list[list[tuple[int, int, int, int, str]]],
    steps: list[str],
    query: str,
    conditions: dict[str, Any],
    limit: int,
) -> None:
    folder = tmp_path_factory.mktemp("property")
    index = open_index(engine, folder, STEMMERS, KEY)
    kept: list[Document] = []
    numbering = itertools.count(1)
    for batch, step in itertools.zip_longest(batches, steps):
        added = [Document(next(numbering), *each) for each in batch or ()]
        deleted = Deleted(numbers={3, 4}, authors={3}) if step == "delete" else Deleted()
        kept = [each for each in kept if not deleted.concerns(each.number, each.group, each.author)] + added
        index.add(added, deleted, index.position + 1)
        if step in ("store", "merge", "delete"):
            index.store()
        if step == "merge":
            merge_everything(index, KEY)
        if step == "reopen":
            index = reopened(index, engine, KEY)
    wanted = Wanted(parse_query(query, STEMMERS), limit=limit, **conditions)
    found: list[Hit] = []
    page = index.search(wanted, SECONDS)
    found += page.hits
    while page.reached is not None:
        page = index.search(Wanted(wanted.query, limit=limit, before=page.reached, **conditions), SECONDS)
        found += page.hits
    assert found == sorted(found, reverse=True)
    assert sorted(hit[1:] for hit in found) == sorted(hit[1:] for hit in scan(kept, wanted))
    index.close()
    shutil.rmtree(folder)


@pytest.mark.parametrize(
    ("query", "text"),
    [
        ("qwen", "we tried qwen3.6 today"),
        ("qwen3.6", "Qwen 3.6 is out"),
        ("3.6", "we tried qwen3.6 today"),
        ("example", "see https://docs.example.org/a/path?query=1#part"),
        ("path", "see https://docs.example.org/a/path?query=1#part"),
        ("docs.example.org", "see https://docs.example.org/a/path?query=1#part"),
        ("invoice", "2026-11_invoice-final.pdf"),
        ("2026-11", "2026-11_invoice-final.pdf"),
        ("pdf", "2026-11_invoice-final.pdf"),
        ("name", "call getUserName() first"),
        ("getusername", "call get_user_name() first"),
        ("user_name", "call get_user_name() first"),
        ("東京", "私は東京都に住んでいます"),
        ("東", "私は東京都に住んでいます"),
        ("住んで", "私は東京都に住んでいます"),
        ("北京", "我在北京大学学习"),
        ("서울", "저는 서울에서 살아요"),
        ("cafe", "im Café um vier"),
        ("Café", "im cafe um vier"),
        ("strasse", "in der Straße"),
        ("release", "the releases were released"),
        ("kettles", "a blue kettle"),
        ("haus", "viele Häuser"),
        ("lauft", "sie läuft"),
        ("kleine", "mit kleinen Schritten"),
        ("kett*", "a blue kettle"),
        ("🙂", "hello 🙂"),
    ],
)
def test_words_are_found_in_what_people_write(index: Engine, query: str, text: str) -> None:
    index.add(documents_of("something else", text), Deleted(), 1)
    found = parse_query(query, STEMMERS).find(text, STEMMERS) is not None
    assert found and numbers(index, query) == [2]
    index.store()
    assert numbers(index, query) == [2]


def test_rank_is_the_same_in_memory_and_in_files(index: Engine) -> None:
    texts = ("kettle kettle", "a blue kettle", "kettles and kettles", "blue " * 300 + "kettle")
    index.add(documents_of(*texts), Deleted(), 1)
    wanted = Wanted(parse_query("kettle", STEMMERS), by_rank=True)
    in_memory = index.search(wanted, SECONDS).hits
    index.store()
    assert index.search(wanted, SECONDS).hits == in_memory
    assert [hit.number for hit in in_memory] == [1, 3, 2, 4], "two inflected forms count as much as the word itself"
    assert in_memory[0].score == score_of([2], 2)


# --- how slices grow ---


def test_documents_are_written_when_there_are_enough(slices: Index) -> None:
    slices.add(documents_of(*["kettle"] * (WRITE_AT - 1)), Deleted(), 1)
    assert slices.status()["slices"] == 0
    slices.add(documents_of("kettle", first=WRITE_AT), Deleted(), 2)
    assert slices.status() == {
        "position": 2, "since": 0, "documents": WRITE_AT, "deleted": 0, "slices": 1,
        "bytes": slices.status()["bytes"],
    }  # fmt: skip


def test_many_small_slices_are_merged_and_closed_ones_are_left_alone(slices: Index) -> None:
    for number in range(index_module.SMALL_SLICES_MAX):
        assert slices.plan_merge() == []
        slices.add(documents_of("kettle", first=number + 1), Deleted(), number + 1)
        slices.store()
    names = slices.plan_merge()
    assert len(names) == index_module.SMALL_SLICES_MAX
    assert slices.plan_merge() == [], "they are being merged"
    slices.adopt(names, merge(slices.folder, names))
    assert slices.status()["slices"] == 1 and slices.plan_merge() == []
    assert numbers(slices, "kettle") == list(range(index_module.SMALL_SLICES_MAX, 0, -1))
    assert sum(path.is_dir() for path in slices.folder.iterdir()) == 1
    assert SLICE_DOCUMENTS > index_module.SMALL_DOCUMENTS * 4


def test_deleted_documents_leave_the_files_with_the_next_merge(index: Engine) -> None:
    index.add(documents_of("kettle secretword", "teapot"), Deleted(), 1)
    index.store()
    index.add([], Deleted(numbers={1}), 2)
    assert numbers(index, "kettle") == []
    index.store()
    assert b"secretword" in contents_of(index.folder)
    names = index.plan_merge(deletions=True)
    index.adopt(names, merge(index.folder, names))
    assert b"secretword" not in contents_of(index.folder)
    assert numbers(index, "teapot") == [2] and index.status()["deleted"] == 0


def test_a_slice_of_deleted_documents_is_removed(slices: Index) -> None:
    slices.add(documents_of("kettle", group=7), Deleted(), 1)
    slices.store()
    slices.add([], Deleted(groups={7}), 2)
    slices.store()
    names = slices.plan_merge()
    slices.adopt(names, merge(slices.folder, names))
    assert slices.status()["slices"] == 0


def test_documents_that_are_deleted_during_a_merge_stay_deleted(slices: Index) -> None:
    for number in (1, 2):
        slices.add(documents_of("kettle", first=number), Deleted(), number)
        slices.store()
    names = slices.slice_names()
    merged = merge(slices.folder, names)
    slices.add([], Deleted(numbers={2}), 3)
    slices.adopt(names, merged)
    assert numbers(slices, "kettle") == [1]


def test_a_failed_merge_changes_nothing(slices: Index) -> None:
    slices.add(documents_of("kettle"), Deleted(), 1)
    slices.store()
    names = slices.slice_names()
    slices.adopt(names, None)
    assert slices.slice_names() == names and numbers(slices, "kettle") == [1]


# --- bounded time ---


def test_a_search_that_is_out_of_time_says_where_to_continue(index: Engine) -> None:
    index.add(documents_of(*["kettle"] * 2000), Deleted(), 1)
    index.store()
    found: list[int] = []
    reached: Hit | None = None
    for _ in range(100):
        wanted = Wanted(parse_query("kettle", STEMMERS), before=reached, authors=frozenset({2}), limit=10)
        page = index.search(wanted, 0.000_001)
        found += [hit.number for hit in page.hits]
        if page.reached is None:
            break
        assert reached is None or page.reached < reached
        reached = page.reached
    assert page.reached is None and found == []


# --- kills and damage ---


def test_an_index_that_was_killed_is_as_it_was_last_written(slices: Index) -> None:
    index = slices
    index.add(documents_of("kettle"), Deleted(), 1)
    index.store()
    index.add(documents_of("kettle", first=2), Deleted(), 2)
    copy = index.folder.with_name("copy")
    shutil.copytree(index.folder, copy)  # as a kill leaves it
    after = Index(copy, STEMMERS)
    assert after.position == 1 and numbers(after, "kettle") == [1]
    after.add(documents_of("kettle", "kettle"), Deleted(), 1)  # again: ignored
    after.add(documents_of("kettle", first=2), Deleted(), 2)
    assert numbers(after, "kettle") == [2, 1]
    after.close()


def test_leftovers_of_a_kill_are_removed(slices: Index) -> None:
    slices.add(documents_of("kettle"), Deleted(), 1)
    slices.store()
    names = slices.slice_names()
    merge(slices.folder, names)  # never adopted
    (slices.folder / "slice-0123").mkdir()
    (slices.folder / f"{MANIFEST}.new").write_text("half")
    again = reopened(slices, WHOOSH)
    assert {path.name for path in again.folder.iterdir() if path.is_dir()} == set(names)
    assert numbers(again, "kettle") == [1]
    again.close()


@pytest.mark.parametrize("what", ["manifest", "cut", "bit", "gone", "folder"])
def test_a_damaged_index_is_reset_and_says_why(tmp_path: Path, what: str) -> None:
    service = Service(str(tmp_path))
    service.begin("h")
    document = list(documents_of("kettle")[0])
    assert service.add(0, 1, [document], [[], [], []])
    service.close()
    (manifest,) = tmp_path.glob(f"index-*/{MANIFEST}")
    (file,) = tmp_path.glob("index-*/slice-*/documents.bin")
    if what == "manifest":
        manifest.write_text(manifest.read_text().replace("kettle", "").replace("slices", "slides"))
    elif what == "cut":
        os.truncate(file, 3)
    elif what == "bit":
        content = bytearray(file.read_bytes())
        content[0] ^= 1
        file.write_bytes(content)
    elif what == "gone":
        file.unlink()
    else:
        shutil.rmtree(file.parent)
    service = Service(str(tmp_path))
    service.search("kettle", {"limit": 10}, SECONDS)
    history, position, _, damage = service.begin("h")
    assert position == 0 and damage
    assert service.add(0, 1, [document], [[], [], []])
    assert [hit[2] for hit in service.search("kettle", {"limit": 10}, SECONDS)[0]] == [1]
    assert service.begin("h")[3] == "", "it is said once"
    service.close()
    assert history in ("", "h")


def test_one_process_at_a_time_has_an_index_open(index: Engine, engine: str) -> None:
    with pytest.raises(IndexInUse):
        open_index(engine, index.folder, STEMMERS)


def test_long_documents_are_written_before_writing_them_takes_long(index: Engine) -> None:
    text = " ".join(f"word{number}" for number in range(10_000))
    for number in range(1, 14):
        index.add(documents_of(text, first=number), Deleted(), number)
    assert index.status()["slices"] >= 1
    assert len(numbers(index, "word0")) == 13


# --- the second engine ---


def test_an_index_in_a_database_is_stored_with_each_addition(tmp_path: Path) -> None:
    index = open_index(FTS5, tmp_path / "index", STEMMERS)
    index.add(documents_of("kettle"), Deleted(), 1)
    copy = tmp_path / "copy"
    shutil.copytree(index.folder, copy)  # as a kill leaves it
    index.close()
    after = open_index(FTS5, copy, STEMMERS)
    assert after.position == 1 and numbers(after, "kettle") == [1]
    after.add(documents_of("kettle", "kettle"), Deleted(), 1)  # again: ignored
    assert numbers(after, "kettle") == [1]
    after.close()


@pytest.mark.parametrize("what", ["cut", "head", "nonsense", "gone"])
def test_a_damaged_database_is_reset_and_says_why(tmp_path: Path, what: str) -> None:
    service = Service(str(tmp_path), FTS5)
    service.begin("h")
    documents = [list(each) for each in documents_of(*[f"kettle number{each}" for each in range(2000)])]
    assert service.add(0, 1, documents, [[], [], []])
    service.close()
    (file,) = tmp_path.glob(f"index-*/{DATABASE}")
    content = file.read_bytes()
    if what == "cut":
        os.truncate(file, len(content) // 2 // 4096 * 4096 + 100)
    elif what == "head":
        file.write_bytes(b"\0" * 100 + content[100:])
    elif what == "nonsense":
        file.write_bytes(content[:4096] + b"\xff" * (len(content) - 4096))
    else:
        file.unlink()
    service = Service(str(tmp_path), FTS5)
    service.search("kettle", {"limit": 3000}, SECONDS)
    position, _, damage = service.begin("h")[1:]
    assert position == 0 and (damage or what == "gone")
    assert service.add(0, 1, documents, [[], [], []])
    assert len(service.search("kettle", {"limit": 3000}, SECONDS)[0]) == 2000
    service.close()


@pytest.mark.parametrize("count", [8, 1500])  # more than a second has places for
def test_documents_of_the_same_second_are_sorted(index: Engine, count: int) -> None:
    many = [Document(number << 10, 5 + number % 3, 1, 1, 1, "kettle") for number in range(1, count + 1)]
    index.add([*many, Document(3, 900, 1, 1, 1, "kettle"), Document(5, 5000, 1, 1, 1, "kettle")], Deleted(), 1)
    ordered = [each.number for each in sorted(many, key=lambda each: (each.time, each.number), reverse=True)]
    assert numbers(index, "kettle", limit=5000) == [5, 3, *ordered]
    index.add([], Deleted(numbers={many[3].number}), 2)
    assert len(numbers(index, "kettle", limit=5000)) == count + 1


@pytest.mark.parametrize("moment", [-(2**53), -(1 << 42), 1 << 42, 2**53])
def test_forged_times_are_sorted_too(index: Engine, moment: int) -> None:
    forged = [Document(number, moment + number, 1, 1, 1, "kettle") for number in range(1, 6)]
    index.add([*forged, *documents_of("kettle", first=6)], Deleted(), 1)
    expected = [5, 4, 3, 2, 1]
    assert numbers(index, "kettle") == ([*expected, 6] if moment > 0 else [6, *expected])
    assert numbers(index, "kettle", limit=1, before=Hit(0.0, moment + 3, 3)) == [2]


def test_another_engine_begins_with_an_index_of_its_own(tmp_path: Path) -> None:
    document = list(documents_of("kettle")[0])
    for engine in (WHOOSH, FTS5, WHOOSH):
        service = Service(str(tmp_path), engine)
        assert service.begin("h")[1] == 0
        assert service.add(0, 1, [document], [[], [], []])
        assert [hit[2] for hit in service.search("kettle", {"limit": 10}, SECONDS)[0]] == [1]
        service.close()
        status = find_status(tmp_path)
        assert status is not None and status["documents"] == 1
        again = Service(str(tmp_path), engine)
        assert again.begin("h")[1] == 1
        again.close()
    assert len(list(tmp_path.glob("index-*"))) == 1


# --- a first index begins with the newest documents ---


def test_a_first_index_has_the_newest_documents_first(index: Engine, engine: str) -> None:
    index.start_at(10)
    index.add(documents_of("kettle", first=11), Deleted(), 11)
    assert numbers(index, "kettle") == [11] and index.since == 10
    index.add_older(documents_of("kettle", "kettle", first=9), 8)
    index.add_older(documents_of("kettle", "kettle", first=9), 8)  # again: ignored
    assert numbers(index, "kettle") == [11, 10, 9]
    index.store()
    index = reopened(index, engine)
    assert (index.position, index.since) == (11, 8)
    index.add_older(documents_of("kettle"), 0)
    assert numbers(index, "kettle") == [11, 10, 9, 1] and index.status()["since"] == 0
    index.close()
