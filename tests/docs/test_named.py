"""Every test that a page names is there."""

import re
from pathlib import Path

import pytest

from tests.docs.pages import PAGES, ROOT, name

# Pages leave the folder of their tests out of the names, and say so.
FOLDERS = [ROOT / folder for folder in (".", "tests", "tests/safi_agent", "tests/everywhere", "tests/sal_lightning")]
LEAST = {
    "SECURITY.md": 50,
    "docs/agents.md": 20,
    "docs/concepts/faculties.md": 12,
    "docs/field.md": 6,
    "docs/howto/opentelemetry.md": 10,
    "docs/howto/serve.md": 14,
    "docs/log.md": 1,
    "docs/postgres.md": 10,
    "docs/review.md": 1,
    "docs/safi.md": 50,
    "docs/sal.md": 40,
}


def named(page: Path) -> list[tuple[str, str]]:
    """Each test's file and name; either may be empty."""
    text = page.read_text()
    return [*re.findall(r"`((?:[\w.]+/)*test_\w+\.py)(?:::(\w+))?`", text), *re.findall(r"`()(test_\w+)`", text)]


def texts(file: str) -> list[str]:
    """Of the files that are meant; of all tests where none is said."""
    if not file:
        return [path.read_text() for path in (ROOT / "tests").rglob("test_*.py")]
    return [(folder / file).read_text() for folder in FOLDERS if (folder / file).is_file()]


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_every_test_that_it_names_is_there(page: Path) -> None:
    for file, test in named(page):
        assert any(not test or f"def {test}(" in text for text in texts(file)), f"{file}::{test}"


def test_the_tables_of_promises_name_tests() -> None:
    counted = {page: len(named(ROOT / page)) for page in LEAST}
    assert all(counted[page] >= least for page, least in LEAST.items()), counted
