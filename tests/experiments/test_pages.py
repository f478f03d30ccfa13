"""Only what lies between the marks is written."""

from pathlib import Path

import pytest

from experiments.pages import fill, rewrite


def test_the_marks_are_filled_and_the_rest_stays() -> None:
    page = "a <!-- cost -->old<!-- /cost --> b <!-- growth -->kept<!-- /growth -->"
    expected = "a <!-- cost -->\n\nnew\n\n<!-- /cost --> b <!-- growth -->kept<!-- /growth -->"
    assert fill(page, "cost", "new\n") == expected
    assert fill(expected, "cost", "new\n") == expected


def test_missing_marks_are_added_at_the_end() -> None:
    assert fill("a\n", "cost", "new\n") == "a\n\n<!-- cost -->\n\nnew\n\n<!-- /cost -->\n"


def test_a_mark_that_is_not_closed_is_refused() -> None:
    with pytest.raises(ValueError, match=r"Expected a page with <!-- /cost --> after <!-- cost -->"):
        fill("a <!-- cost --> b", "cost", "new")


def test_a_page_that_is_not_there_is_begun(tmp_path: Path) -> None:
    rewrite(tmp_path / "page.md", "cost", "new\n")
    assert (tmp_path / "page.md").read_text() == "<!-- cost -->\n\nnew\n\n<!-- /cost -->\n"
