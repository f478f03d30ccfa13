"""The command in its quick form, and the page that it writes."""

from pathlib import Path

import pytest

from experiments.language import __main__ as command_line
from experiments.language.curves import read_all
from experiments.language.methods import METHODS
from experiments.language.settings import QUICK

pytestmark = pytest.mark.slow

TINY = ("--quick", "--steps", "8", "4", "2")


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("text") / "verse.txt"
    file.write_bytes(b"Tomorrow, and tomorrow, and tomorrow, creeps in this petty pace from day to day\n" * 60)
    return file


@pytest.fixture(autouse=True)
def short_library(monkeypatch: pytest.MonkeyPatch) -> None:
    """One module stands for the library: its losses are measured after every stage of every run."""
    monkeypatch.setattr("experiments.language.text.MODULES", ("heapq",))


def arguments(text: Path, out: Path, *more: str) -> list[str]:
    return [*TINY, "--data", str(text), "--out", str(out), "--cache", str(out / "cache"), *more]


def test_it_leaves_results_a_page_and_a_figure(text: Path, tmp_path: Path) -> None:
    page = tmp_path / "docs" / "results.md"
    command_line.main(arguments(text, tmp_path, "--methods", "plain", "sal-remember", "--table", str(page)))
    written = page.read_text()
    assert written.startswith("<!-- language-small -->")
    assert "| sal-remember | 3 | 1 |" in written
    assert "verse, then Python, then verse again" in written
    assert (tmp_path / "docs" / "language-small.png").read_bytes().startswith(b"\x89PNG")
    records = read_all(tmp_path, QUICK._replace(steps=(8, 4, 2)), "verse")
    assert len(records) == 2 * 3
    assert all(r["settings"]["strength"] == r["settings"]["lr"] for r in records if r["settings"]["method"] == "plain")


def test_it_resumes_and_is_forced(text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    chosen = arguments(text, tmp_path, "--methods", "plain", "--strengths", "0.001")
    command_line.main(chosen)
    command_line.main([*chosen, "0.002"])
    assert "1 run, 1 there already" in " ".join(capsys.readouterr().out.split())
    command_line.main([*chosen, "--force"])
    assert "1 run, 0 there already" in " ".join(capsys.readouterr().out.split())


def test_whole_it_is_every_method_at_every_strength_and_quick_it_is_a_few() -> None:
    whole, quick = (list(command_line.wanted(command_line.parser().parse_args(a), "text")) for a in ([], ["--quick"]))
    assert {(s.method, s.strength) for s in whole} == {(m, s) for m, kind in METHODS.items() for s in kind.strengths}
    assert {s.method for s in quick} == set(command_line.QUICK_METHODS)
    assert len(quick) == len(command_line.QUICK_METHODS) * command_line.QUICK_STRENGTHS
