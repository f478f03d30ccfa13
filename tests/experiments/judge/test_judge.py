"""The experiment on invented rows in PyRIT's form, with a tiny encoder; figures by hand."""

from pathlib import Path
from typing import Any

import pytest

from experiments import filing
from experiments.judge import __main__ as command_line
from experiments.judge import data, results
from experiments.judge.protocol import Run
from safi_agent.local.examples import Part
from tests.experiments.calibration.folders import scorer_evals
from tests.tiny_encoder import encoder_folder


def record(task: str, **more: Any) -> filing.Record:
    run = {"task": task, "data": "harm", "method": "plain", "fold": 0, "train_encoder": False, "most": None}
    hardware = {"cpu": "c", "cores": 1}
    return {
        "run": run | more.pop("run", {}),
        "command": "c",
        "commit": "0" * 40,
        "hardware": hardware,
        "versions": {},
    } | more


SEQUENCE = {
    "order": ["a", "b", "c"],
    "accuracy": [{"a": [9, 10]}, {"a": [8, 10], "b": [3, 5]}, {"a": [6, 10], "b": [4, 5], "c": [1, 5]}],
}


def test_each_prompt_is_tested_once_and_parts_share_no_prompt() -> None:
    prompts = [f"prompt {i}" for i in range(500)]
    parts = [[data.part(prompt, fold) for prompt in prompts] for fold in range(data.FOLDS)]
    assert all(sum(one is Part.TEST for one in of_prompt) == 1 for of_prompt in zip(*parts, strict=True))
    assert sum(one is Part.VALIDATION for one in parts[0]) == pytest.approx(80, abs=25)


def test_policies_are_opposites_on_the_same_answers(tmp_path: Path) -> None:
    given = data.load(scorer_evals(tmp_path / "p"), "objective")
    both = data.under_policies(given)
    first, second = both[: len(given)], both[len(given) :]
    assert [one.case for one in first] == [one.case for one in second]
    assert all(one.broken is not other.broken for one, other in zip(first, second, strict=True))


def test_forgetting_and_final_accuracy_of_a_sequence_by_hand() -> None:
    one = record("sequence", **SEQUENCE)
    assert results.forgetting(one) == pytest.approx((9 - 6 + 3 - 4) / 15)
    assert results.final(one) == pytest.approx(11 / 20)


def test_a_judge_of_known_accuracy_takes_the_place_of_the_least_certain_findings() -> None:
    findings = [
        {"value": "v", "human": True, "judge": i > 1, "confidence": c, "uncalibrated": c}
        for i, c in enumerate((0.5, 0.6, 0.7, 0.8, 0.9))
    ]
    validation = [{"confidence": c / 10, "agrees": True} for c in range(5, 10)]
    run = record("agreement", run={"method": "joint"}, findings=findings, validation=validation)
    assert results.escalated(run) == ([True, True, True], 2)
    heading, best, *_ = results.escalation([run])
    assert dict(zip(heading, best, strict=True))["with the local judge"] == f"{0.4 * 0.896 + 0.6:.3f}"


@pytest.mark.slow
def test_the_command_writes_a_record_of_each_run_once_and_the_tables(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, encoder = scorer_evals(tmp_path / "scorer_evals", prompts=25), encoder_folder(tmp_path / "tiny")
    page = tmp_path / "page.md"
    arguments = ["--pyrit", str(folder), "--encoder", str(encoder), "--out", str(tmp_path / "out")]
    arguments += ["--cache", str(tmp_path / "cache"), "--folds", "0", "--table", str(page)]
    some = ["--tasks", "agreement", "policies", "--data", "objective", "--methods", "plain", "sal"]
    command_line.main([*arguments, *some])
    names = {file.name for file in (tmp_path / "out").glob("*.json")}
    runs = [Run("agreement", "objective"), Run("policies", "objective", "plain"), Run("policies", "objective", "sal")]
    assert names == {f"{run.name}.json" for run in runs}
    made = filing.read(tmp_path / "out" / f"{runs[0].name}.json")
    assert all(one["human"] == one["judge"] for one in made["findings"])
    assert made["command"].endswith("--tasks agreement --data objective --folds 0")
    before = {file: file.stat().st_mtime_ns for file in (tmp_path / "out").iterdir()}
    command_line.main(["--out", str(tmp_path / "out"), "--folds", "0", *some])
    assert {file: file.stat().st_mtime_ns for file in (tmp_path / "out").iterdir()} == before
    text = page.read_text()
    assert "| objective, " in text
    assert "| frozen | all | sal | 1 |" in text
    with pytest.raises(SystemExit, match="runs without a result need --pyrit and --encoder"):
        command_line.main(["--out", str(tmp_path / "out"), "--folds", "1"])


def test_the_picture_needs_both_methods(tmp_path: Path) -> None:
    plain, sal = record("sequence", **SEQUENCE), record("sequence", **SEQUENCE, run={"method": "sal"})
    assert not results.draw([plain], tmp_path / "p.png")
    assert results.draw([plain, sal], tmp_path / "p.png")
    assert (tmp_path / "p.png").stat().st_size > 5000
