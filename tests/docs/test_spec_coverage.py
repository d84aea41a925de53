"""docs/spec-coverage.md says what the routes and the tests say."""

from __future__ import annotations

from tests.docs.spec_coverage import DEVIATIONS, PAGE, operations, page


def test_the_page_is_up_to_date() -> None:
    assert PAGE.read_text() == page(), "run: python -m tests.docs.spec_coverage"


def test_deviations_are_ofoperations_of_the_specification() -> None:
    assert DEVIATIONS.keys() <= {operation.operation_id for operation in operations()}
