"""Every Python block of the README and the docs runs as it stands."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCKS = [
    pytest.param(block, id=f"{page.name}-{i}")
    for page in PAGES
    for i, block in enumerate(re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL))
]


@pytest.mark.parametrize("block", BLOCKS)
def test_block_runs(block, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    exec(compile(block, "README", "exec"), {"__name__": "__readme__"})


def test_there_are_blocks():
    assert len(BLOCKS) >= 3


def test_the_readme_names_the_two_commands():
    text = (ROOT / "README.md").read_text()
    assert "scripts/demo" in text
    assert "scripts/test" in text


def test_every_test_that_the_docs_name_is_there():
    named = re.findall(r"`([\w./]+\.py)(?:::(\w+))?`", (ROOT / "docs" / "sal.md").read_text())
    assert len(named) > 40
    for file, name in named:
        text = (ROOT / "tests" / "everywhere" / file).resolve().read_text()
        assert not name or f"def {name}(" in text, (file, name)
