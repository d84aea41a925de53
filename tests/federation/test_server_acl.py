"""Server ACLs. Spec: client-server-api/#mroomserver_acl"""

from __future__ import annotations

import re
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from homeserver.federation.server_acl import compile_acl, glob_matches, is_allowed


@pytest.mark.parametrize(
    ("server_name", "content", "allowed"),
    [
        # 1. If there is no `m.room.server_acl` event in the room state, allow.
        ("example.org", None, True),
        # 2. IP address literals
        ("1.2.3.4", {"allow": ["*"], "allow_ip_literals": False}, False),
        ("1.2.3.4:8448", {"allow": ["*"], "allow_ip_literals": False}, False),
        ("[::1]", {"allow": ["*"], "allow_ip_literals": False}, False),
        ("[::1]:8448", {"allow": ["*"], "allow_ip_literals": False}, False),
        ("1.2.3.4", {"allow": ["*"], "allow_ip_literals": True}, True),
        ("1.2.3.4", {"allow": ["*"]}, True),
        ("1.2.3.4", {"allow": ["*"], "allow_ip_literals": "false"}, True),
        ("1.2.3.4", {"allow": ["*"], "allow_ip_literals": 0}, True),
        ("1.2.3.4.example.org", {"allow": ["*"], "allow_ip_literals": False}, True),
        ("[::1]:8448", {"allow": ["[::1]"]}, True),
        # 3. deny goes before allow
        ("evil.com", {"allow": ["*"], "deny": ["evil.com"]}, False),
        ("evil.com:8448", {"allow": ["*"], "deny": ["evil.com"]}, False),
        ("evil.com:1234", {"allow": ["*"], "deny": ["*.evil.com", "evil.com"]}, False),
        ("sub.evil.com", {"allow": ["*"], "deny": ["*.evil.com"]}, False),
        ("evil.com", {"allow": ["*"], "deny": ["*.evil.com"]}, True),
        ("EVIL.com", {"allow": ["*"], "deny": ["evil.COM"]}, False),
        ("evilXcom", {"allow": ["*"], "deny": ["evil.com"]}, True),
        ("evil.com", {"allow": ["*"], "deny": ["evil.com:8448"]}, True),
        ("evil1.com", {"allow": ["*"], "deny": ["evil?.com"]}, False),
        ("evil.com", {"allow": ["*"], "deny": ["evil?.com"]}, True),
        ("a.evil.com", {"allow": ["*"], "deny": ["?.evil.*"]}, False),
        # 4. and 5. only what is allowed
        ("example.org", {"allow": ["example.org"]}, True),
        ("example.org", {"allow": ["other.org"]}, False),
        ("example.org", {}, False),
        ("example.org", {"deny": []}, False),
        ("example.org", {"allow": []}, False),
    ],
)
def test_deny_takes_precedence_over_allow(server_name: str, content: object, allowed: bool) -> None:
    assert is_allowed(server_name, content) is allowed


@pytest.mark.parametrize(
    ("content", "allowed"),
    [
        ({"allow": "*"}, False),
        ({"allow": {"*": 1}}, False),
        ({"allow": [None, 5, ["*"], "*"]}, True),
        ({"allow": ["*"], "deny": "example.org"}, True),
        ({"allow": ["*"], "deny": [{"example.org": 1}]}, True),
        ({"allow": ["*"], "deny": None}, True),
        ([], False),
        ("*", False),
        (5, False),
    ],
)
def test_wrong_types_count_as_absent(content: object, allowed: bool) -> None:
    assert is_allowed("example.org", content) is allowed


def test_a_compiled_acl_can_be_reused() -> None:
    acl = compile_acl({"allow": ["*.org", "a.com"], "deny": ["bad.*"]})
    assert [acl.is_allowed(name) for name in ("x.org", "a.com:1", "bad.org", "b.com")] == [True, True, False, False]


@pytest.mark.parametrize(
    ("pattern", "text", "matches"),
    [
        ("", "", True),
        ("", "a", False),
        ("*", "", True),
        ("**", "abc", True),
        ("?", "", False),
        ("a*a", "a", False),
        ("a*a", "aa", True),
        ("ab*ba", "aba", False),
        ("*b*", "abc", True),
        ("*b*d*", "abcde", True),
        ("*b?*e", "abcde", True),
        ("*x?*e", "abcde", False),
        ("*d*b*", "abcde", False),
        ("[a]", "a", False),
        ("a.c", "abc", False),
        ("a\n", "a\n", True),
    ],
)
def test_globs_are_matched(pattern: str, text: str, matches: bool) -> None:
    assert glob_matches(pattern, text) is matches


@given(st.text("ab*?", max_size=8), st.text("abc", max_size=8))
def test_globs_match_like_regular_expressions(pattern: str, text: str) -> None:
    expression = "".join({"*": ".*", "?": "."}.get(char, char) for char in pattern)
    assert glob_matches(pattern, text) is (re.fullmatch(expression, text, re.DOTALL) is not None)


def test_hostile_patterns_take_no_time() -> None:
    patterns = ["a*" * 60 + "b", "*a" * 60 + "?b", "a?" * 60 + "*b"] * 50
    name = "a" * 250
    began = time.process_time()
    assert is_allowed(name, {"allow": ["*"], "deny": patterns})
    assert time.process_time() - began < 2


KEYS = st.sampled_from(["allow", "deny", "allow_ip_literals", "x"])
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(KEYS, inner),
    max_leaves=20,
)


@given(st.text(), JSON)
def test_any_acl_content_raises_nothing(server_name: str, content: object) -> None:
    assert is_allowed(server_name, content) in (True, False)
