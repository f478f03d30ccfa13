"""What is trained on: labels win over audits, and what is worth nothing is left out."""

import json
from pathlib import Path
from typing import Any

import pytest

from safi_agent.calibration.labels import Case, Label, read_labels, write_labels
from safi_agent.local.examples import (
    Example,
    Part,
    combine,
    data_sha256,
    from_labels,
    from_records,
    part_of,
    read_log,
    read_store,
)
from safi_agent.offline_model import LABEL
from tests.safi_agent.fakes import THREE, Fake, ledger

CASE = Case("How?", "", "So.")


def record(**changed: Any) -> dict[str, Any]:
    rows = [{"value": "Truth", "score": -1.0, "confidence": 0.7, "reason": "r"}]
    plain = {"userPrompt": "How?", "finalOutput": "So.", "willDecision": "approve", "conscienceLedger": rows}
    return {**plain, "models": {"conscience": "gpt"}, **changed}


def test_a_human_label_replaces_the_audit_of_the_same_answer_and_value() -> None:
    audits = from_records([(record(), "")], THREE).examples
    assert audits == [Example(CASE, "truth", -1.0, weight=0.7, human=False)]
    human = [Example(CASE, "truth", 1.0)]
    assert combine(human, audits) == human
    assert combine([Example(CASE, "care", 1.0)], audits) == [Example(CASE, "care", 1.0), *audits]


def test_the_newest_audit_of_an_answer_counts() -> None:
    newer = record(conscienceLedger=[{"value": "TRUTH", "score": 0.5, "confidence": 1, "reason": ""}])
    found = from_records([(record(), ""), (newer, "")], THREE).examples
    assert [(one.score, one.weight) for one in found] == [(0.5, 1.0)]


@pytest.mark.parametrize(
    "left_out",
    [
        {"willDecision": "violation"},
        {"finalOutput": ""},
        {"conscienceLedger": [{"value": "Other", "score": 1, "confidence": 1}]},
        {"conscienceLedger": [{"value": "Truth", "score": 1, "confidence": 0}]},
        {"conscienceLedger": [{"value": "Truth", "score": "1", "confidence": 1}]},
        {"localJudge": {"findings": [{"value": "Truth", "judge": "local"}]}},
    ],
    ids=lambda changed: next(iter(changed)),
)
def test_what_is_no_finding_of_a_model_is_left_out(left_out: dict[str, Any]) -> None:
    assert from_records([(record(**left_out), "")], THREE).examples == []


def test_verdicts_of_the_rehearsal_model_are_left_out_and_counted() -> None:
    audited = from_records([(record(models={"conscience": LABEL}), "")] * 2, THREE)
    assert audited == ([], 2)


def test_labels_become_the_scores_that_they_stand_for(tmp_path: Path) -> None:
    rows = [
        Label(prompt="a", answer="b", value="Truth", scores=(-0.5, 0.2)),
        Label(prompt="a", answer="b", value="Care", verdict="approve"),
        Label(prompt="a", answer="c", value="Care", scores=(0.5,), context="d"),
    ]
    write_labels(rows, tmp_path / "l.jsonl")
    found = list(from_labels(read_labels(tmp_path / "l.jsonl", THREE)))
    assert [(one.value, one.score, one.ratings) for one in found] == [
        ("truth", -1.0, (-0.5, 0.2)),
        ("care", 1.0, ()),
        ("care", 0.5, (0.5,)),
    ]
    assert found[2].case.context == "d"


def test_all_answers_to_a_prompt_are_in_one_part_which_stays() -> None:
    parts = [part_of(f"prompt {i}", 0) for i in range(4000)]
    shares = {part: parts.count(part) / 4000 for part in Part}
    assert shares[Part.TEST] == pytest.approx(0.15, abs=0.02)
    assert shares[Part.VALIDATION] == pytest.approx(0.15, abs=0.02)
    assert parts[:3] == [part_of(f"prompt {i}", 0) for i in range(3)]
    assert parts != [part_of(f"prompt {i}", 1) for i in range(4000)]


def test_the_hash_is_of_what_is_in_the_examples() -> None:
    one = Example(CASE, "truth", 1.0)
    assert data_sha256([one]) == data_sha256([Example(CASE, "truth", 1.0)])
    assert data_sha256([one]) != data_sha256([one._replace(score=-1.0)])
    assert data_sha256([one]) != data_sha256([one, one])


def test_a_log_and_a_store_have_the_same_audits_and_the_store_the_contexts_too(make: Any, tmp_path: Path) -> None:
    safi = make(Fake(conscience=ledger(score=1)))
    safi.invoke("one")
    safi.invoke([("system", "Be kind."), ("human", "two")])
    safi.drain()
    logged = read_log(tmp_path / "log.json", THREE).examples
    stored = read_store(safi._auditor.store, THREE).examples
    assert len(logged) == len(stored) == 6
    assert [one._replace(case=one.case._replace(context="")) for one in stored] == logged
    assert any(one.case.context for one in stored)
    assert {(one.score, one.weight, one.human) for one in stored} == {(1.0, 0.8, False)}
    assert json.loads((tmp_path / "log.json").read_text().splitlines()[0])["conscienceLedger"]
