"""The pictures of the docs, in small."""

from pathlib import Path

import pytest
from PIL import Image

from experiments import pictures
from tests.browser import need

pytestmark = pytest.mark.slow

LARGEST = 150_000  # bytes


def test_pictures_and_figures_are_written(tmp_path: Path) -> None:
    need()
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "report.md").write_text("By hand.\n\n<!-- measured -->old<!-- /measured -->\n\nBy hand too.\n")
    options = ["--data", "digits", "--steps", "6", "--runs", str(tmp_path / "runs"), "--docs", str(tmp_path / "docs")]
    pictures.main(options)
    files = sorted((tmp_path / "docs" / "report").glob("*.png"))
    assert [file.stem for file in files] == sorted([*pictures.PLOTS, "page-wide", "page-narrow"])
    assert all(file.stat().st_size < LARGEST for file in files)
    for file in files:
        assert len(Image.open(file).convert("RGB").getcolors(1 << 16)) > 20, file  # something is drawn
    text = (tmp_path / "docs" / "report.md").read_text()
    assert "| percent of weights | protected | neutral | volatile |" in text
    assert text.startswith("By hand.")
    assert text.endswith("By hand too.\n")
    assert "old" not in text


def test_the_docs_pictures_are_small_and_named() -> None:
    docs = Path(__file__).parents[2] / "docs"
    text = (docs / "report.md").read_text()
    for file in (docs / "report").glob("*.png"):
        assert file.stat().st_size < LARGEST
        assert f"report/{file.name}" in text
