"""The demo's comparison of a language model's answers, on a tiny random model."""

import io
from pathlib import Path

import pytest
from rich.console import Console

from experiments import sentences
from tests.tiny_language_model import model_folder

pytestmark = pytest.mark.slow


def test_it_shows_three_answers_to_each_question(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sentences, "ROUNDS", 1)
    monkeypatch.setattr(sentences, "LONGEST", 4)
    out = io.StringIO()
    sentences.compare(model_folder(tmp_path), Console(file=out, width=160))
    shown = out.getvalue()
    for word in ("before", "plain", "SAL", *sentences.QUESTIONS):
        assert word in shown


def test_a_folder_without_a_model_is_an_error_that_says_where_to_get_one(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="SmolLM2-135M-Instruct"):
        sentences.compare(tmp_path, Console(file=io.StringIO()))
