"""Comments, docstrings and docs are plain English, and functions that run SQL share one vocabulary."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from tests.tidy.source import PACKAGES, ROOT, Source, python_files, source_of

# Turns of phrase that nobody uses outside of this project, each with what to write instead.
BANNED = {
    r"\b(?:for|to|by|from|with|but|than) who(?:ever)?\b": 'name the person or program: "for the requester"',
    r"(?:^|[.:;] )(?:Who|Whom|Whose) (?!is\b|may\b|can\b)[^?.]*[.]": 'name the person: "A user who …"',
    r"\b(?:of|in|to|by) whom it\b": "name the person or server",
    r"\bwhat (?:it|they) names?\b": '"the events that it cites"',
    r"(?:^|[.:;] )(?:Those|That) of (?:the|a|an|which|whom)\b": "repeat the noun",
    r"\bwhere there (?:is|are|was|were) none\b": '"if there is none"',
    r"\bso that none\b": '"so that no …"',
    r"\bnor (?:is|are|was|has|have|does|do|did|can|may)\b": "begin a new sentence",
    r"\blest\b": '"so that … not"',
    r"\bwhatever (?:came|comes) when\b": "say which",
    r"\b(?:is|are|was) (?:not )?looked (?:for|at)\b": '"we search for …", "… is checked"',
    r"\b(?:has|have|had) not (?:the|a|an)\b": '"lacks the …", "does not have a …"',
    r"\b(?:has|have) it not\b": '"does not have it"',
    r"(?<!here )\b(?:is|are) no (?!longer\b|more\b|less\b|different\b)": '"is not a …"',
    r"\bfor (?:the|a) \w+(?:'s)? to (?:know|see|say)\b": '"the caller must make sure that …"',
    r"\b(?:to be had|may heap|heap up)\b": '"available", "accumulate"',
    r"\b[Tt]hat many (?:\w+ )?(?:nobody|no one)\b": '"too many … in one request"',
    r"\bmend(?:s|ed|ing)?\b": '"fix", "repair"',
    r"\bwho asks\b": '"the requester"',
    r"\b(?:None|True|False|Error \d*|MatrixError \d+(?: M_\w+)?) where\b": '"if" or "unless"',
    r"(?:^|[.:;] )(?:MatrixError \d|[A-Z]\w+(?:Error|Damaged|Unavailable) (?:if|unless|where)\b)": '"Raises …"',
    r"(?:^|[.:;] )Of (?!course\b)": "begin with the subject",
    r"\b(?:is|are|was|were|be) told (?:of|so|anew|what)\b": '"gets", "is notified of", "sees"',
    r"\bfor so long\b": '"for this long"',
    r"; (?:answers|tells)\b": '"Returns …"',
    r"(?:^|[.:;] )As `": '"Like `…`"',
    r"\binside of\b": '"inside"',
    r"\bif need be\b": '"if necessary"',
    r"\banew\b": '"again"',
    r"\b(?:takes?|took|taken) back\b": '"retracts", "undoes"',
    r"\bpages? back\b": '"paginates back"',
    r"\ball the same\b": '"anyway"',
    r"\bthere (?:is|are|was|were) such\b": '"exists"',
    r"\bwhoever\b": '"a user who …", "every server that …"',
    r"\bseldom(?:er)?\b(?! any\b)": '"rarely"',
}

# How a function's docstring begins: with a verb in the third person, or with the noun that names the value.
BAD_NAME = re.compile(r"test_(?:who|whom|whose|what|whatever|whoever|those|of)_")
BAD_BEGINNING = re.compile(r"(?:What|Who|Whom|Whose|Those|That|As `|Whether|How (?:many|long|far)|Where|Why|Which)\b")

# The first word of the name of every function whose own body runs SQL.
READING_VERBS = {
    "find": "returns it, or None; of several, a dict of those that are there",
    "get": "returns it, or raises if it is not there",
    "list": "returns all that there are",
    "count": "returns a number",
    "is": "returns a bool",
    "has": "returns a bool",
    "check": "returns nothing, or raises MatrixError",
}
WRITING_VERBS = {
    "store": "inserts or replaces",
    "insert": "inserts; the row must be new",
    "replace": "updates; the row must be there",
    "create": "inserts what a person asked for; raises if it is there already",
    "delete": "deletes",
    "forget": "deletes what is kept of a user or a room, or a part of it",
    "note": "records something that happened",
    "set": "updates one column",
}
# Files whose logic is an algorithm, a protocol or a state machine. Each begins with its theory of operation.
THEORY = (
    "federation/auth_chains.py",
    "federation/auth_rules.py",
    "federation/discovery.py",
    "federation/json_stream.py",
    "federation/pdu_checks.py",
    "federation/state_resolution.py",
    "homeserver/api/bodies.py",
    "homeserver/authenticate/identify.py",
    "homeserver/authenticate/refresh.py",
    "homeserver/database/database.py",
    "homeserver/database/generations.py",
    "homeserver/database/lane.py",
    "homeserver/database/postgres.py",
    "homeserver/database/sqlite.py",
    "homeserver/database/stream.py",
    "homeserver/features/friends/settling.py",
    "homeserver/features/room_hierarchy.py",
    "homeserver/http/connection.py",
    "homeserver/http/http1.py",
    "homeserver/http/http1_connection.py",
    "homeserver/http/http2.py",
    "homeserver/http/http2_connection.py",
    "homeserver/pages/account/serving.py",
    "homeserver/process/budgets.py",
    "homeserver/process/delivery.py",
    "homeserver/process/delivery_states.py",
    "homeserver/process/lanes.py",
    "homeserver/process/outages.py",
    "homeserver/process/peers.py",
    "homeserver/remote/destinations.py",
    "homeserver/remote/fetching.py",
    "homeserver/remote/gaps.py",
    "homeserver/remote/hierarchy.py",
    "homeserver/remote/identity.py",
    "homeserver/remote/inbound.py",
    "homeserver/remote/inbound_pdus.py",
    "homeserver/remote/inviting.py",
    "homeserver/remote/joining.py",
    "homeserver/remote/keys.py",
    "homeserver/remote/leaves.py",
    "homeserver/remote/outbound.py",
    "homeserver/rooms/append.py",
    "homeserver/rooms/gaps.py",
    "homeserver/rooms/history.py",
    "homeserver/rooms/receive.py",
    "homeserver/rooms/resolve.py",
    "homeserver/rooms/spaces.py",
    "homeserver/rooms/state_before.py",
    "homeserver/rooms/state_tree.py",
    "homeserver/sync/engine.py",
    "homeserver/users/encryption/cross_signing.py",
    "homeserver/users/encryption/one_time_keys.py",
    "homeserver/users/friend_rooms.py",
    "homeserver/users/page_sessions.py",
    "homeserver/users/passkeys.py",
    "homeserver/users/presence.py",
    "homeserver/users/user_interactive.py",
)


STRING_OR_COMMENT = re.compile(
    r"""\"{3}(?:\\.|[^\\])*?\"{3}|'{3}(?:\\.|[^\\])*?'{3}|"(?:\\.|[^"\\\n])*"|'(?:\\.|[^'\\\n])*'|\#[^\n]*""", re.DOTALL
)


def paragraphs(source: Source) -> Iterator[tuple[int, str]]:
    """Line and text of every docstring and every block of comments, on one line each."""
    for node in source.nodes:
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            yield node.lineno, " ".join(node.value.value.split())
    block: list[str] = []
    begin = last = 0
    for line, comment, is_whole_line in comments(source.text):
        if block and (not is_whole_line or line != last + 1):
            yield begin, " ".join(block)
            block = []
        if not block:
            begin = line
        block.append(comment.lstrip("# "))
        last = line
    if block:
        yield begin, " ".join(block)


def comments(text: str) -> Iterator[tuple[int, str, bool]]:
    """Line and text of every comment, and whether it has the line to itself. Strings are matched to be left out.

    The module tokenize finds the same, and takes ten times as long.
    """
    line = at = 0
    for match in STRING_OR_COMMENT.finditer(text):
        if match.group().startswith("#"):
            line += text.count("\n", at, match.start())
            at = match.start()
            yield line + 1, match.group(), not text[text.rfind("\n", 0, at) + 1 : at].strip()


SOURCES = python_files(*PACKAGES, "tests", ".ci")
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def paragraphs_of_page(text: str) -> list[str]:
    """Returns the paragraphs, list items and table rows of a Markdown page, without its code blocks."""
    prose = re.sub(r"```.*?```", "", text, flags=re.DOTALL)
    return [" ".join(part.split()) for part in re.split(r"\n\s*\n|\n(?=[|-])", prose)]


def complaints_about(text: str) -> list[str]:
    """Returns what a reviewer would say about a paragraph. Quotations and code in it are not read."""
    prose = re.sub(r"\"[^\"]*\"|`[^`]*`", "…", text)
    return [
        f"{match.group()!r}: write {instead}"
        for pattern, instead in BANNED.items()
        for match in re.finditer(pattern, prose)
    ]


def complaints(source: Source) -> list[str]:
    """Returns what a reviewer would say about the prose of a file."""
    return [
        f"{source.name}:{line}: {complaint}"
        for line, text in paragraphs(source)
        for complaint in complaints_about(text)
    ]


@pytest.mark.parametrize(
    "text",
    [
        "for who is suspended, unless they take back what they have said themselves",
        "The aliases that the event has already. MatrixError 403 who may not.",
        "may heap up such events on one another for ever",
        "How often it is looked for who has gone silent",
        "The event is no invite.",
        "That many devices nobody has.",
        "The membership; None where there is none.",
        "Of a larger one None is handed out.",
        "Neither the port nor is case considered.",
    ],
)
def test_the_dialect_is_found(text: str) -> None:
    assert complaints_about(text)


@pytest.mark.parametrize(
    "text",
    [
        "Raises 403 if the requester is suspended, unless they are redacting their own event.",
        "Returns the event's current aliases. Raises MatrixError 403 if the user may not change them.",
        "plus the target's server, if the event kicks or bans",
        "a banned server could chain these indefinitely",
        "How often we sweep for silent users",
        "Too many devices in one request. There is no session for users who have logged out.",
        "Returns the back-off state, None if there is none. It is no longer needed.",
        "Says who may read the room, and which of the users that are online see it.",
    ],
)
def test_good_english_is_left_alone(text: str) -> None:
    assert complaints_about(text) == []


def test_prose_is_plain_english() -> None:
    found = [complaint for source in SOURCES for complaint in complaints(source)]
    assert not found, "\n".join(found)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_pages_are_plain_english(page: Path) -> None:
    found = [each for part in paragraphs_of_page(page.read_text()) for each in complaints_about(part)]
    assert not found, "\n".join(found)


def test_names_of_tests_begin_with_a_subject() -> None:
    found = [
        f"{source.name}:{node.lineno} {node.name}"
        for source in SOURCES
        for node in source.functions
        if BAD_NAME.match(node.name)
    ]
    assert not found, "\n".join(found)


def test_docstrings_of_functions_say_what_the_function_does() -> None:
    found = [
        f"{source.name}:{node.lineno} {node.name}: {docstring.splitlines()[0]}"
        for source in SOURCES
        for node in source.functions
        if not any(ast.unparse(each).endswith("property") for each in node.decorator_list)
        and (docstring := ast.get_docstring(node))
        and BAD_BEGINNING.match(docstring)
    ]
    assert not found, "\n".join(found)


def sql_functions(source: Source) -> Iterator[tuple[ast.FunctionDef, bool]]:
    """The functions of a module that run SQL on the transaction they are given, and whether they write."""
    for node in source.tree.body:
        if isinstance(node, ast.FunctionDef) and node.args.args and node.args.args[0].arg == "tx":
            called = {
                call.func.attr
                for call in ast.walk(node)
                if isinstance(call, ast.Call)
                and isinstance(call.func, ast.Attribute)
                and isinstance(call.func.value, ast.Name)
                and call.func.value.id == "tx"
            }
            if called & {"one", "all", "values", "all_in", "run", "many"}:
                yield node, bool(called & {"run", "many"})


@cache
def all_sql_functions() -> list[tuple[Source, ast.FunctionDef, bool]]:
    """Returns the SQL functions of the whole server, each with its module and whether it writes."""
    return [(source, node, writes) for source in python_files("homeserver") for node, writes in sql_functions(source)]


def test_functions_that_run_sql_share_a_few_verbs() -> None:
    found = []
    for source, node, writes in all_sql_functions():
        verb = node.name.lstrip("_").partition("_")[0]
        allowed = WRITING_VERBS if writes else {**READING_VERBS, **WRITING_VERBS}
        if verb not in allowed:
            found.append(f"{source.name}:{node.lineno} {node.name} {'writes' if writes else 'reads'}")
    assert not found, "\n".join(found)


def test_get_raises_if_there_is_nothing() -> None:
    found = [
        f"{source.name}:{node.lineno} {node.name}"
        for source in python_files("homeserver")
        for node in source.tree.body
        if isinstance(node, ast.FunctionDef)
        and node.args.args
        and node.args.args[0].arg == "tx"
        and node.name.lstrip("_").startswith("get_")
        and node.returns is not None
        and "None" in ast.unparse(node.returns)
    ]
    assert not found, "A get_… raises if there is nothing; call it find_… if it may return None: " + "\n".join(found)


def has_theory(name: str) -> bool:
    """Returns whether a file's docstring has its theory of operation."""
    return "theory of operation" in (ast.get_docstring(source_of(ROOT / name).tree) or "").lower()


@pytest.mark.parametrize("name", THEORY)
def test_algorithms_begin_with_their_theory_of_operation(name: str) -> None:
    assert has_theory(name)
