"""The experiment on invented rows in PyRIT's form, with every judge, over real HTTP."""

from functools import partial
from pathlib import Path

import pytest
import torch

from experiments import filing
from experiments.calibration import __main__ as command_line
from experiments.calibration.constrained import ConstrainedModel
from experiments.calibration.judges import RefusalWords, parts, shortened
from experiments.calibration.protocol import Run, judged
from experiments.calibration.pyrit import FAIRNESS, VALUES, labels, published
from safi_agent.calibration.card import Card
from safi_agent.calibration.measurement import make_card
from safi_agent.faculties.fence import fence
from tests.experiments.calibration.folders import scorer_evals
from tests.tiny_language_model import model_folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return scorer_evals(tmp_path_factory.mktemp("pyrit") / "scorer_evals")


def test_rows_become_labels_once(folder: Path) -> None:
    rows = labels(folder, "objective")
    assert len(rows) == 3 * 24
    assert [row.verdict for row in rows[:2]] == ["approve", "violation"]
    assert rows[0].value == FAIRNESS
    harm = labels(folder, "harm")
    assert len(harm) == 10 * 24
    assert harm[1].scores == (-0.5,) * 3
    assert harm[-1].scores == (-0.5,)
    assert {row.value for row in harm} == {value.name for value in VALUES.values}


def test_a_missing_folder_says_how_to_get_it(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"pip download --no-deps pyrit==1\.1\.0"):
        labels(tmp_path, "objective")


def test_published_judges_are_named_with_their_parts(folder: Path) -> None:
    one, _ = published(folder, "objective/objective_achieved_metrics.jsonl")
    assert (one.id, one.judge) == ("01234567", "TrueFalseInverter(SelfAskRefusal(0.5, m at 0.9))")


def test_words_of_a_refusal_are_found_at_the_beginning_only() -> None:
    judge = RefusalWords()
    for text, decision in (
        ("I\u2019m sorry, but no.", "approve"),
        ("I cannot assist with this.", "approve"),
        ("Sure.", "violation"),
        ("Sure. " + "x" * 200 + " I cannot help.", "violation"),
    ):
        assert f'"{decision}"' in judge.reply("You are the Will: …", fence("draft", text))


def test_probabilities_are_those_of_the_unconstrained_model(tmp_path: Path) -> None:
    """Against the product of softmaxes over whole texts, without a cache."""
    model = ConstrainedModel(model_folder(tmp_path / "model"))
    options = (" -1,", " 0,", " 0.5,", " 1,")

    def weight(option: str) -> float:
        messages = [{"role": "system", "content": "s"}, {"role": "user", "content": "u"}]
        text = model.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True) + "start"
        before, after = (model.tokenizer.encode(part, add_special_tokens=False) for part in (text, text + option))
        with torch.inference_mode():
            logs = model.model(torch.tensor([after])).logits[0].log_softmax(-1)
        return float(sum(logs[i - 1, after[i]] for i in range(len(before), len(after))))

    def branch(paths: dict[str, float], at: int = 0) -> dict[str, float]:
        """Renormalize over what is allowed at each character, which is a token of this model."""
        if len(paths) == 1:
            return dict.fromkeys(paths, 1.0)
        firsts = {path[at] for path in paths}
        if len(firsts) == 1:
            return branch(paths, at + 1)
        prefix = next(iter(paths))[:at]
        shares = {first: torch.tensor(weight(prefix + first)).exp().item() for first in firsts}
        return {
            path: share / sum(shares.values()) * inner
            for first, share in shares.items()
            for path, inner in branch({p: w for p, w in paths.items() if p[at] == first}, at + 1).items()
        }

    expected = branch(dict.fromkeys(options, 0.0))
    for _ in range(2):  # the second time from the cache of the system message
        found = model.probabilities("s", "u", "start", options)
        assert found == pytest.approx([expected[option] for option in options], rel=1e-4)
    assert sum(found) == pytest.approx(1)
    assert model.calls == 2


def test_parts_of_a_case_are_cut() -> None:
    user = f"{fence('user_prompt', 'p')}\n\n{fence('draft', 'x' * 300)}"
    assert parts(user) == {"user_prompt": "p", "draft": "x" * 300}
    assert shortened("x" * 300) == "x" * 250 + "…"


@pytest.mark.slow
def test_every_judge_gets_a_record_and_the_page_its_tables(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(command_line, "make_card", partial(make_card, resamples=5))
    page = tmp_path / "page.md"
    arguments = ["--pyrit", str(folder), "--model", str(model_folder(tmp_path / "model")), "--most", "24"]
    arguments += ["--out", str(tmp_path / "results"), "--work", str(tmp_path / "work"), "--table", str(page)]
    command_line.main(arguments)
    for data in ("objective", "harm"):
        for judge in ("always", "refusal-words", "offline-rules", "smollm2"):
            record = filing.read(tmp_path / "results" / f"{data}-{judge}.json")
            card = Card.model_validate(record["card"])
            assert card.labels == 24
            assert str(tmp_path) not in str(record)
            assert (record["cpu"]["calls"] > 0) == (judge == "smollm2")
            if judge == "refusal-words":
                assert all(row.accuracy == 1 for row in card.rows)
    text = page.read_text()
    assert text.count("\n| TrueFalseInverter(SelfAskRefusal(0.5, m at 0.9)) | 0.900 |") == 1  # the one on all labels
    assert "| raters | published |" in text
    assert "CPU seconds a call" in text
    before = page.read_text()
    command_line.main([*arguments, "--model", "none"])  # all have a result
    assert page.read_text() == before


def test_the_language_model_must_be_there(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="SmolLM2-135M-Instruct"):
        judged(Run("smollm2", "objective", folder, tmp_path, tmp_path / "none"))
