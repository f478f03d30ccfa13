"""The command on a tiny model: every method runs, results are kept, and the page is written from them."""

from pathlib import Path

import pytest

from experiments import filing
from experiments.finetune import __main__ as command_line
from experiments.finetune.methods import METHODS
from experiments.finetune.protocol import STRAIGHT
from experiments.finetune.results import read_all
from experiments.finetune.settings import Scale
from tests.tiny_language_model import model_folder, text_folder

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")  # by peft
SCALE = Scale(context=16, batch=4, steps=4, samples=6, measured=4)


def arguments(folder: Path, *more: str) -> list[str]:
    model, texts = model_folder(folder / "model"), text_folder(folder / "texts")
    places = ("--model", str(model), "--texts", str(texts), "--out", str(folder / "out"), "--cache", str(folder / "c"))
    return [*places, *SCALE.form.split(), *more]


def test_every_method_learns_both_texts_and_leaves_a_record(tmp_path: Path) -> None:
    chosen = ("--streams", "german-code", "--strengths", "0.5", "--lr", "0.01", "--methods", *fractions())
    command_line.main(arguments(tmp_path, *chosen))
    records = read_all(tmp_path / "out", SCALE, "model", "german-code")
    assert [r["settings"]["method"] for r in records] == fractions()
    for r in records:
        assert len(r["stages"]) == 2
        assert r["before"]["kl"] == pytest.approx(0, abs=1e-6)
        assert all(stage["kl"] > 1e-6 for stage in r["stages"]), r["settings"]["method"]
        assert set(r["data"]) == {"german", "code"}


def fractions() -> list[str]:
    """The methods whose strength is not a rank."""
    return [name for name, method in METHODS.items() if max(method.strengths) <= 4]


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
    assert set(record["others"]) == {"steps 1", "steps 2", *(f"wise {part:g}" for part in STRAIGHT)}


def test_it_resumes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    chosen = arguments(tmp_path, "--streams", "code", "--methods", "lora")
    command_line.main([*chosen, "--strengths", "2"])
    command_line.main([*chosen, "--strengths", "2", "4"])
    assert "1 run, 1 there already" in " ".join(capsys.readouterr().out.split())


def test_another_scale_has_a_page_of_its_own(tmp_path: Path) -> None:
    page = tmp_path / "results.md"
    chosen = arguments(tmp_path, "--streams", "code", "--methods", "plain", "--table", str(page))
    command_line.main([*chosen, "--strengths", "0.0002"])
    command_line.main([*chosen, "--strengths", "0.05", "--steps", "8"])
    assert "| plain | 0.05 |" in page.read_text()
    assert "| plain | 0.0002 |" not in page.read_text()
    assert len(read_all(tmp_path / "out", SCALE, "model", "code")) == 1
    assert read_all(tmp_path / "out", SCALE, "model", "german") == []
