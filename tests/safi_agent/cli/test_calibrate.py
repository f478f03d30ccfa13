"""``safi calibrate``: over real HTTP, with a model that judges by a word."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from safi_agent.calibration.card import read_card
from safi_agent.calibration.labels import write_labels
from safi_agent.cli import app
from tests.safi_agent.calibration.cases import labelled
from tests.safi_agent.fakes import VIOLATION, approve
from tests.safi_agent.openai_server import serving

VALUES = "name: one\nvalues:\n- {name: Truth, weight: 1}\n"


def judged(request: dict[str, object]) -> bool:
    return "wrong" in json.dumps(request["messages"])


@pytest.fixture
def labels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    write_labels(labelled(40), tmp_path / "labels.jsonl")
    (tmp_path / "v.yaml").write_text(VALUES)
    monkeypatch.setenv("OPENAI_API_KEY", "k")
    return tmp_path / "labels.jsonl"


def calibrate(labels: Path, *more: str) -> tuple[int, str]:
    done = CliRunner().invoke(app, ["calibrate", str(labels), "--values", str(labels.parent / "v.yaml"), *more])
    return done.exit_code, done.output


@pytest.mark.slow
def test_it_writes_a_card_of_a_model_over_http_and_continues(labels: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with serving() as server:
        monkeypatch.setenv("OPENAI_BASE_URL", server.url)
        server.says["will"] = lambda request: VIOLATION if judged(request) else approve()
        server.says["conscience"] = lambda request: json.dumps(
            {"ledger": [{"value": "Truth", "score": -1 if judged(request) else 1, "confidence": 0.9, "reason": "r"}]}
        )
        code, said = calibrate(labels, "--model", "openai:m")
        assert (code, len(server.requests)) == (0, 80), said
        assert calibrate(labels, "--model", "openai:m")[0] == 0
        assert len(server.requests) == 80
    card = read_card(labels.with_suffix(".card.json"))
    assert {row.alpha for row in card.rows} == {1}
    assert card.models == {"will": ["m"], "conscience": ["m"]}
    assert (labels.parent / "labels.card.md").is_file()
    assert "40 labels on 40 answers; also as labels.card.md." in said


@pytest.mark.slow
def test_some_failures_end_with_1_and_an_outage_with_2(labels: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with serving() as server:
        monkeypatch.setenv("OPENAI_BASE_URL", server.url)
        server.says["conscience"] = lambda request: (
            (400, "no")
            if "answer 7\\n" in json.dumps(request["messages"])
            else '{"ledger": [{"value": "Truth", "score": 1, "confidence": 1, "reason": "r"}]}'
        )
        code, said = calibrate(labels, "--model", "openai:m", "--at-once", "1")
        assert code == 1, said
        assert read_card(labels.with_suffix(".card.json")).failed == 1
        server.says["will"] = (400, "no")
        code, said = calibrate(labels, "--model", "openai:m", "--out", str(labels.parent / "o.json"), "--at-once", "1")
    assert code == 2
    assert "safi calibrate: The judges' models failed on 10 cases in a row" in said
    assert not (labels.parent / "o.json").exists()


def test_the_rehearsal_model_is_labelled(labels: Path) -> None:
    code, said = calibrate(labels, "--model", "offline")
    assert code == 0, said
    assert "Will: offline rehearsal." in said


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("--conscience-calls", "some"), "--conscience-calls: expected 'all' or 'each', got 'some'"),
        (("--score-mode", "x"), "--score-mode: expected 'discrete' or 'continuous', got 'x'"),
        (("--out", "card.txt"), "--out: expected another file than the labels, ending in .json"),
        (("--values", "none"), "values: expected one of"),
    ],
)
def test_wrong_options_are_one_line_and_write_nothing(labels: Path, more: tuple[str, ...], message: str) -> None:
    before = sorted(labels.parent.iterdir())
    code, said = calibrate(labels, "--model", "offline", *more)
    assert (code, len(said.splitlines())) == (2, 1)
    assert message in said
    assert sorted(labels.parent.iterdir()) == before


def test_a_wrong_label_is_one_line(labels: Path) -> None:
    labels.write_text('{"prompt": "p"}\n')
    code, said = calibrate(labels, "--model", "offline")
    assert (code, said.count("\n")) == (2, 1)
    assert "labels.jsonl, line 1: answer: Field required" in said
