"""A chain whose Conscience is a local judge: what it is sure of, what is escalated, and what the record says."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from safi_agent import Alert, SafiChain
from safi_agent.faculties.conscience import SYSTEM
from safi_agent.faculties.local_conscience import LEAST_COMPARED, Disagreement
from safi_agent.hooks import alert_kinds
from safi_agent.local.card import read_card
from safi_agent.local.examples import read_log
from safi_agent.log.replay import replay
from tests.safi_agent.fakes import THREE, Fake
from tests.safi_agent.local.judges import BAD, GOOD

Make = Callable[..., SafiChain]
PROMPT = "What are the opening hours on day 317?"
STRANGE = "XYLOPHONE? XYLOPHONE? {}[]#"


def asked_about(messages: list[Any]) -> list[str]:
    """The values in the prompt of the Conscience."""
    return [value.name for value in THREE.values if f"- {value.name}:" in str(messages[0].text)]


def judging(score: float, name: str = "") -> Fake:
    """A model that gives all values that it is asked about the same score."""

    def reply(system: str) -> str:
        names = [value.name for value in THREE.values if f"- {value.name}:" in system]
        rows = [{"value": name, "score": score, "confidence": 0.8, "reason": "m"} for name in names]
        return json.dumps({"ledger": rows})

    return Fake(conscience=reply)


def answering(text: str) -> Fake:
    return Fake(intellect=f"{text}\n<reflection>r</reflection>")


def audited(safi: SafiChain, prompt: str = PROMPT) -> dict[str, Any]:
    turn = safi.invoke(prompt).response_metadata["safi"]["turnId"]
    safi.drain()
    record = safi._auditor.store.load_records([turn])[turn]
    assert record is not None
    return record


@pytest.mark.parametrize(("answer", "score"), [(GOOD, 1), (BAD, -1)])
def test_sure_findings_are_its_own_and_the_others_are_asked(make: Make, judge: Path, answer: str, score: int) -> None:
    model = judging(0.5)
    safi = make(answering(f"{answer} 7"), conscience_model=f"local:{judge}", escalation_model=model, check_share=0)
    record = audited(safi)
    (messages,) = model.asked("conscience")
    assert asked_about(messages) == ["Thrift"]
    scores = {row["value"]: row["score"] for row in record["conscienceLedger"]}
    assert scores == {"Truth": score, "Care": score, "Thrift": 0.5}
    local, card_sha256 = record["localJudge"], read_card(judge)[1]
    assert local["card"] == card_sha256
    assert {row["value"]: row["judge"] for row in local["findings"]} == {
        "Truth": "local",
        "Care": "local",
        "Thrift": "model",
    }
    assert (local["new"], local["checked"], local["disagreement"]) == (False, False, None)
    assert record["models"]["conscience"] == f"local:{card_sha256[:12]}"
    assert "judge_unsure" not in record["flags"]
    assert record["auditStatus"] == "complete"
    own = next(row for row in record["conscienceLedger"] if row["value"] == "Truth")
    assert own["reason"].startswith("Probabilities of the scores -1: ")


def test_a_new_prompt_is_escalated_whatever_the_confidence_and_its_novelty_recorded(make: Make, judge: Path) -> None:
    model = judging(0.5)
    safi = make(answering(f"{GOOD} 7"), conscience_model=f"local:{judge}", escalation_model=model, check_share=0)
    record = audited(safi, STRANGE)
    assert asked_about(model.asked("conscience")[0]) == ["Truth", "Care", "Thrift"]
    local = record["localJudge"]
    assert local["new"]
    assert local["novelty"] > read_card(judge)[0].novelty
    assert {row["judge"] for row in local["findings"]} == {"model"}
    assert {row["confidence"] is None for row in local["findings"]} == {True, False}  # what it would have said


def test_without_a_model_unsure_findings_are_unscored_and_the_turn_is_flagged(
    make: Make, judge: Path, tmp_path: Path
) -> None:
    safi = make(answering(f"{GOOD} 7"), conscience_model=f"local:{judge}")
    record = audited(safi)
    assert [row["value"] for row in record["conscienceLedger"]] == ["Truth", "Care"]
    assert record["flags"] == ["judge_unsure"]
    assert record["spiritScore"] is not None
    strange = audited(safi, STRANGE)
    assert strange["conscienceLedger"] == []
    assert (strange["spiritScore"], strange["auditStatus"]) == (None, "failed")
    assert strange["flags"] == ["judge_unsure", "audit_failed", "review"]
    assert strange["localJudge"]["new"]
    replayed = replay(tmp_path / "log.json", lambda _: THREE)
    assert (replayed.faulty, replayed.lines) == (0, 2)


def test_its_own_findings_are_not_trained_on(make: Make, judge: Path, tmp_path: Path) -> None:
    safi = make(answering(f"{GOOD} 7"), conscience_model=f"local:{judge}", escalation_model=judging(0.5), check_share=0)
    audited(safi)
    assert [one.value for one in read_log(tmp_path / "log.json", THREE).examples] == ["thrift"]


def test_the_log_and_the_store_agree_about_such_turns(make: Make, judge: Path, tmp_path: Path) -> None:
    from typer.testing import CliRunner

    from safi_agent.cli import app

    safi = make(answering(f"{GOOD} 7"), conscience_model=f"local:{judge}")
    audited(safi)
    audited(safi, STRANGE)
    store = f"sqlite:///{tmp_path / 'safi.db'}"
    done = CliRunner().invoke(app, ["verify", str(tmp_path / "log.json"), "--store", store])
    assert done.exit_code == 0, done.output


def test_checked_turns_measure_the_agreement_and_a_drift_calls_the_hooks(make: Make, judge: Path) -> None:
    told: list[Alert] = []
    safi = make(
        answering(f"{GOOD} 7"),
        conscience_model=f"local:{judge}",
        escalation_model=judging(-1),
        check_share=1,
        hooks=[told.append],
        review_below=0,
        drift_above=9,
    )
    records = [audited(safi) for _ in range(LEAST_COMPARED // 2)]
    assert {row["judge"] for row in records[0]["localJudge"]["findings"]} == {"model"}
    assert [record["localJudge"]["disagreement"] for record in records[-2:]] == [None, 1.0]
    assert [row["score"] for row in records[-1]["conscienceLedger"]] == [-1, -1, -1]
    assert records[-1]["flags"] == ["judge_drift"]
    assert [alert.kind for alert in told] == ["judge_drift"]


def test_the_running_disagreement_follows_the_last_findings() -> None:
    disagreement = Disagreement()
    assert disagreement.update([False] * 19) is None
    assert disagreement.update([True]) == pytest.approx(0.02 / (1 - 0.98**20), abs=1e-4)
    assert disagreement.update([True] * 400) == pytest.approx(1, abs=1e-3)


def test_a_disagreement_at_the_threshold_is_no_alert() -> None:
    record = {"spiritScore": 9, "drift": None, "auditStatus": "complete", "localJudge": {"disagreement": 0.2}}
    assert alert_kinds(record, 6, 0.4, 0.2) == []
    assert alert_kinds(record, 6, 0.4, 0.19) == ["judge_drift"]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"conscience_model": "local:nowhere"}, "expected a folder of a local judge"),
        ({"model": "local:x"}, "model: expected a chat model or the name of one, got a local judge"),
        ({"will_model": "local:x"}, "will_model: expected a chat model or the name of one, got a local judge"),
        ({"escalation_model": "offline"}, "escalation_model: expected None without a local judge"),
        ({"check_share": 2.0}, r"check_share: expected a share in \[0, 1\], got 2.0"),
        ({"judge_drift_above": -1.0}, r"judge_drift_above: expected a share in \[0, 1\], got -1.0"),
    ],
    ids=["folder", "model", "will", "nobody", "share", "drift"],
)
def test_wrong_settings_are_refused(make: Make, given: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make(**given)


@pytest.mark.parametrize("calls", ["all", "each"])
def test_asynchronously_it_is_the_same(make: Make, judge: Path, calls: str) -> None:
    import asyncio

    from safi_agent.turn import Draft

    safi = make(conscience_model=f"local:{judge}", escalation_model=judging(0.5), conscience_calls=calls, check_share=0)
    conscience = safi._auditor.plan.conscience(THREE, SYSTEM)
    for answer in (GOOD, BAD):
        turn = {"id": "1", "prompt": PROMPT, "context": "", "draft": Draft(f"{answer} 7")}
        alone = conscience.compute(turn, {})
        assert asyncio.run(conscience.acompute(turn, {})) == alone
        assert len(alone) == 3
