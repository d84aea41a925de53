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
from homeserver.search.index import SLICE_DOCUMENTS, WRITE_AT, Index, IndexInUse, merge
from homeserver.search.manifest import MANIFEST
from homeserver.search.query import parse_query
from homeserver.search.service import Service
from homeserver.search.words import Stemmers

STEMMERS = Stemmers()
WORDS = ("kettle", "kettles", "blue", "東京", "qwen3.6")
SECONDS = 60.0  # a search is never out of time


def documents_of(*texts: str, first: int = 1, **fields: int) -> list[Document]:
    values = {"group": 1, "author": 1, "labels": 1, **fields}
    return [Document(number, number * 10, text=text, **values) for number, text in enumerate(texts, first)]


def numbers(index: Index, text: str, **conditions: Any) -> list[int]:
    wanted = Wanted(parse_query(text, STEMMERS), **{"limit": 1000, **conditions})
    return [hit.number for hit in index.search(wanted, SECONDS).hits]


@pytest.fixture
def index(tmp_path: Path) -> Iterator[Index]:
    opened = Index(tmp_path / "index", STEMMERS)
    yield opened
    opened.close()


def reopened(index: Index) -> Index:
    index.close()
    return Index(index.folder, STEMMERS)


def merge_everything(index: Index) -> None:
    names = index.slice_names()
    index.adopt(names, merge(index.folder, names))


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
    batches: list[list[tuple[int, int, int, int, str]]],
    steps: list[str],
    query: str,
    conditions: dict[str, Any],
    limit: int,
) -> None:
    folder = tmp_path_factory.mktemp("property")
    index = Index(folder, STEMMERS)
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
            merge_everything(index)
        if step == "reopen":
            index = reopened(index)
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


def test_rank_is_the_same_in_memory_and_in_files(index: Index) -> None:
    texts = ("kettle kettle", "a blue kettle", "kettles and kettles", "blue " * 300 + "kettle")
    index.add(documents_of(*texts), Deleted(), 1)
    wanted = Wanted(parse_query("kettle", STEMMERS), by_rank=True)
    in_memory = index.search(wanted, SECONDS).hits
    index.store()
    assert index.search(wanted, SECONDS).hits == in_memory
    assert [hit.number for hit in in_memory] == [1, 3, 2, 4], "two inflected forms count as much as the word itself"
    assert in_memory[0].score == score_of([2], 2)


# --- how slices grow ---


def test_documents_are_written_when_there_are_enough(index: Index) -> None:
    index.add(documents_of(*["kettle"] * (WRITE_AT - 1)), Deleted(), 1)
    assert index.status()["slices"] == 0
    index.add(documents_of("kettle", first=WRITE_AT), Deleted(), 2)
    assert index.status() == {
        "position": 2, "documents": WRITE_AT, "deleted": 0, "slices": 1, "bytes": index.status()["bytes"],
    }  # fmt: skip


def test_many_small_slices_are_merged_and_closed_ones_are_left_alone(index: Index) -> None:
    for number in range(index_module.SMALL_SLICES_MAX):
        assert index.plan_merge() == []
        index.add(documents_of("kettle", first=number + 1), Deleted(), number + 1)
        index.store()
    names = index.plan_merge()
    assert len(names) == index_module.SMALL_SLICES_MAX
    assert index.plan_merge() == [], "they are being merged"
    index.adopt(names, merge(index.folder, names))
    assert index.status()["slices"] == 1 and index.plan_merge() == []
    assert numbers(index, "kettle") == list(range(index_module.SMALL_SLICES_MAX, 0, -1))
    assert sum(path.is_dir() for path in index.folder.iterdir()) == 1
    assert SLICE_DOCUMENTS > index_module.SMALL_DOCUMENTS * 4


def test_deleted_documents_leave_the_files_with_the_next_merge(index: Index) -> None:
    index.add(documents_of("kettle secretword", "teapot"), Deleted(), 1)
    index.store()
    index.add([], Deleted(numbers={1}), 2)
    assert numbers(index, "kettle") == []
    index.store()
    assert b"secretword" in b"".join(path.read_bytes() for path in index.folder.glob("*/*"))
    names = index.plan_merge(deletions=True)
    index.adopt(names, merge(index.folder, names))
    assert b"secretword" not in b"".join(path.read_bytes() for path in index.folder.glob("*/*"))
    assert numbers(index, "teapot") == [2] and index.status()["deleted"] == 0


def test_a_slice_of_deleted_documents_is_removed(index: Index) -> None:
    index.add(documents_of("kettle", group=7), Deleted(), 1)
    index.store()
    index.add([], Deleted(groups={7}), 2)
    index.store()
    names = index.plan_merge()
    index.adopt(names, merge(index.folder, names))
    assert index.status()["slices"] == 0


def test_documents_that_are_deleted_during_a_merge_stay_deleted(index: Index) -> None:
    for number in (1, 2):
        index.add(documents_of("kettle", first=number), Deleted(), number)
        index.store()
    names = index.slice_names()
    merged = merge(index.folder, names)
    index.add([], Deleted(numbers={2}), 3)
    index.adopt(names, merged)
    assert numbers(index, "kettle") == [1]


def test_a_failed_merge_changes_nothing(index: Index) -> None:
    index.add(documents_of("kettle"), Deleted(), 1)
    index.store()
    names = index.slice_names()
    index.adopt(names, None)
    assert index.slice_names() == names and numbers(index, "kettle") == [1]


# --- bounded time ---


def test_a_search_that_is_out_of_time_says_where_to_continue(index: Index) -> None:
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


def test_an_index_that_was_killed_is_as_it_was_last_written(index: Index) -> None:
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


def test_leftovers_of_a_kill_are_removed(index: Index) -> None:
    index.add(documents_of("kettle"), Deleted(), 1)
    index.store()
    names = index.slice_names()
    merge(index.folder, names)  # never adopted
    (index.folder / "slice-0123").mkdir()
    (index.folder / f"{MANIFEST}.new").write_text("half")
    again = reopened(index)
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
    history, position, damage = service.begin("h")
    assert position == 0 and damage
    assert service.add(0, 1, [document], [[], [], []])
    assert [hit[2] for hit in service.search("kettle", {"limit": 10}, SECONDS)[0]] == [1]
    assert service.begin("h")[2] == "", "it is said once"
    service.close()
    assert history in ("", "h")


def test_one_process_at_a_time_has_an_index_open(index: Index) -> None:
    with pytest.raises(IndexInUse):
        Index(index.folder, STEMMERS)


@pytest.mark.parametrize("text", [" ".join(f"word{number}" for number in range(10_000)), "kettle " * 10_000])
def test_long_documents_are_written_before_writing_them_takes_long(index: Index, text: str) -> None:
    for number in range(1, 14):
        index.add(documents_of(text, first=number), Deleted(), number)
    assert index.status()["slices"] >= 1
    assert len(numbers(index, text.split()[0])) == 13
