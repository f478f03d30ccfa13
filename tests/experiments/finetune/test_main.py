"""The command on a tiny model: every method runs, results are kept, and the page is written from them."""

from pathlib import Path

import pytest

from experiments import filing
from experiments.finetune import __main__ as command_line
from experiments.finetune.methods import METHODS
from experiments.finetune.results import read_all
from experiments.language.text import shakespeare
from tests.tiny_language_model import model_folder, text_folder

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")  # by peft
SIZES = ("--context", "16", "--batch", "4", "--steps", "4", "--samples", "6", "--measured", "4")


@pytest.fixture(autouse=True)
def short_texts(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    verse = tmp_path / "tinyshakespeare.txt"
    verse.write_bytes(b"Tomorrow, and tomorrow, and tomorrow, creeps in this petty pace from day to day\n" * 60)
    monkeypatch.setattr("experiments.language.text.MODULES", ("heapq",))
    monkeypatch.setattr("experiments.finetune.texts.shakespeare", lambda _: shakespeare(verse))


def arguments(folder: Path, *more: str) -> list[str]:
    model, texts = model_folder(folder / "model"), text_folder(folder / "texts")
    places = ("--model", str(model), "--texts", str(texts), "--out", str(folder / "out"), "--cache", str(folder / "c"))
    return [*places, *SIZES, *more]


def test_every_method_learns_both_texts_and_leaves_a_record(tmp_path: Path) -> None:
    command_line.main(arguments(tmp_path, "--streams", "german-code", "--strengths", "0.5", "--methods", *fractions()))
    records = read_all(tmp_path / "out", "model", "german-code")
    assert [r["settings"]["method"] for r in records] == fractions()
    for r in records:
        assert len(r["stages"]) == 2
        assert r["before"]["kl"] == pytest.approx(0, abs=1e-6)
        assert all(stage["kl"] > 0 for stage in r["stages"]), r["settings"]["method"]
        assert set(r["data"]) == {"german", "code"}


def fractions() -> list[str]:
    """The methods whose strength may be .5."""
    return [name for name in METHODS if not name.startswith("lora")]


def test_the_page_has_both_tables_and_what_is_read_from_plain_training(tmp_path: Path) -> None:
    page = tmp_path / "docs" / "results.md"
    chosen = ["--streams", "german", "--methods", "plain", "--strengths", "0.0002", "0.05", "--table", str(page)]
    command_line.main(arguments(tmp_path, *chosen))
    written = page.read_text()
    assert written.startswith("<!-- finetune-german -->")
    for name in ("plain | 0.0002 |", "plain | 0.05 |", "fewer steps | 1 |", "fewer steps | 2 |", "WiSE-FT | 0.25 |"):
        assert f"| {name}" in written
    assert (tmp_path / "docs" / "finetune-german.png").read_bytes().startswith(b"\x89PNG")
    record = filing.read(next((tmp_path / "out").glob("*plain-0.0002*.json")))
    assert set(record["others"]) == {"steps 1", "steps 2", "wise 0.25", "wise 0.5", "wise 0.75"}


def test_it_resumes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    chosen = arguments(tmp_path, "--streams", "code", "--methods", "lora")
    command_line.main([*chosen, "--strengths", "2"])
    command_line.main([*chosen, "--strengths", "2", "4"])
    assert "1 run, 1 there already" in " ".join(capsys.readouterr().out.split())
