from pathlib import Path

import pytest

from benchmarks.report import publish, spread
from experiments.filing import read


def test_spread() -> None:
    assert spread([1.0, 3.0, 2.0]) == (2.0, 1.0, 3.0)


def test_what_is_published_is_filed_shown_and_put_into_a_page_where_one_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, page = tmp_path / "new" / "record.json", tmp_path / "page.md"
    publish({"n": 1}, file, "A table.\n", None, "cost")
    assert read(file) == {"n": 1}
    publish({"n": 2}, file, "A table.\n", page, "cost")
    assert read(file) == {"n": 2}
    assert page.read_text() == "<!-- cost -->\n\nA table.\n\n<!-- /cost -->\n"
    assert capsys.readouterr().out.count("A table.") == 2
