"""Which operation answers a path, and what is read from it."""

from __future__ import annotations

from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from homeserver.api.arguments import decode_segment
from homeserver.api.router import Router
from homeserver.api.routes import Empty, Routes
from homeserver.resources import Resources


async def handler(hs: Resources, a: str = "", b: str = "", state_key: str = "") -> Empty:
    return Empty()


def router(*paths: str) -> Router:
    routes, made = Routes(), Router()
    for path in paths:
        routes.get(path)(handler)
    made.add(routes)
    return made


def found(made: Router, path: str) -> tuple[str, list[str]] | None:
    match = made.match(path)
    return (match.operations["GET"].path, match.parameters) if match is not None else None


def test_literals_take_precedence_over_parameters_and_dead_ends_backtrack() -> None:
    made = router("/x/{a}", "/x/all", "/x/all/{a}/z", "/x/{a}/{b}/y")
    assert found(made, "/x/all") == ("/x/all", [])
    assert found(made, "/x/one") == ("/x/{a}", ["one"])
    assert found(made, "/x/all/one/z") == ("/x/all/{a}/z", ["one"])
    assert found(made, "/x/all/one/y") == ("/x/{a}/{b}/y", ["all", "one"])
    assert found(made, "/x/all/one/w") is None
    assert found(made, "/x") is None
    assert found(made, "/x/") is None
    assert found(made, "x/all") is None
    assert found(made, "") is None


def test_r0_is_an_alias_of_v3() -> None:
    made = router("/_matrix/client/v3/x", "/_matrix/client/v3/y/{a}", "/_matrix/client/v1/z", "/_matrix/media/v3/x/{a}")
    assert found(made, "/_matrix/client/r0/x") == ("/_matrix/client/v3/x", [])
    assert found(made, "/_matrix/client/r0/y/one") == ("/_matrix/client/v3/y/{a}", ["one"])
    assert found(made, "/_matrix/media/r0/x/one") == ("/_matrix/media/v3/x/{a}", ["one"])
    assert found(made, "/_matrix/client/r0/z") is None


def test_an_encoded_slash_does_not_split_a_segment() -> None:
    made = router("/x/{a}", "/x/{a}/{b}")
    assert found(made, "/x/1%2F2") == ("/x/{a}", ["1%2F2"])
    assert found(made, "/x/1/2") == ("/x/{a}/{b}", ["1", "2"])


def test_encoded_spellings_of_fixed_segments_are_not_matched() -> None:
    made = router("/_synapse/admin/v1/users", "/_synapse/{a}", "/x/{a}/all", "/x/{a}/{b}")
    for disguised in (
        "/_synapse/%61dmin/v1/users", "/%5Fsynapse/admin/v1/users", "/_synapse/admin/v1/%75sers",
        "//_synapse/admin/v1/users", "/_synapse//admin/v1/users", "/./_synapse/admin/v1/users",
        "/x/../_synapse/admin/v1/users", "/_synapse/admin/v1/./users", "/_synapse%2Fadmin/v1/users",
        "/_Synapse/admin/v1/users", "/_synapse/admin/v1/users/", "/_synapse/admin;/v1/users",
        "/_synapse/%2561dmin/v1/users", "/_synapse/%61dmin",
    ):  # fmt: skip
        assert found(made, disguised) is None, disguised
    assert found(made, "/x/1/%61ll") is None
    assert found(made, "/x/1/al%6c%6c") == ("/x/{a}/{b}", ["1", "al%6c%6c"])


@pytest.mark.parametrize("dots", [".", "..", "%2e", "%2E%2e", ".%2e", "a%2F..%2Fb", "..%2Fa", "a%2f%2E"])
def test_dot_segments_and_empty_parameters_are_refused(dots: str) -> None:
    made = router("/x/{a}/{b}/{state_key}")
    assert found(made, f"/x/1/2/{dots}") is None
    assert found(made, f"/x/{dots}/2/3") is None
    for harmless in ("...", "a.b", "%2e%2e%2e", "a..b", "a%2Fb.c", "a%2F%2Fb", "%252e%252e", ".a", "%FF"):
        assert found(made, f"/x/1/{harmless}/3") == ("/x/{a}/{b}/{state_key}", ["1", harmless, "3"])


def test_only_a_state_key_may_be_empty() -> None:
    made = router("/state/{a}", "/state/{a}/{state_key}", "/other/{a}/{b}")
    assert found(made, "/state/t/") == ("/state/{a}/{state_key}", ["t", ""])
    assert found(made, "/state/t") == ("/state/{a}", ["t"])
    assert found(made, "/state//k") is None
    assert found(made, "/other/t/") is None


def test_two_operations_on_one_path_are_refused() -> None:
    with pytest.raises(ValueError, match="both answer GET /x/"):
        router("/x/{a}", "/x/{b}")


@given(st.text(min_size=1), st.text(min_size=1))
def test_parameters_are_decoded(a: str, b: str) -> None:
    made = router("/x/{a}/y/{b}")
    try:
        path = f"/x/{quote(a, safe='')}/y/{quote(b, safe='')}"
    except UnicodeEncodeError:
        return
    match = found(made, path)
    if {a, b} & {".", ".."}:
        assert match is None  # a proxy would resolve it
        return
    assert match is not None
    assert [decode_segment(raw) for raw in match[1]] == [a, b]


@given(st.text(st.characters(min_codepoint=33, max_codepoint=126)))
def test_any_path_gets_an_answer(path: str) -> None:
    router("/x/{a}", "/x/all").match(path)
