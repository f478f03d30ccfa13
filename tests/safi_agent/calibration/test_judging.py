"""Judgements: what judges say, failures, and continuing from a file."""

import json
import logging
import stat
from pathlib import Path
from typing import Any

import pytest

from safi_agent.calibration.judging import MOST_FAILURES, Judgement, Judges, judge_cases
from safi_agent.calibration.labels import Case, Labels
from safi_agent.errors import SafiError
from safi_agent.prompts import Prompts
from tests.safi_agent.calibration.cases import labelled
from tests.safi_agent.fakes import GATED, THREE, VIOLATION, Fake, approve, ledger


def by_word(human: str) -> str:
    return VIOLATION if "wrong" in human else approve()


def scores(human: str) -> str:
    return ledger(THREE, -1 if "wrong" in human else 1)


def judges(**settings: Any) -> Judges:
    fake = Fake(**{"will": by_word, "conscience": scores, **settings})
    return Judges(THREE, fake, fake)


def run(given: Judges, file: Path, count: int = 8, **settings: Any) -> dict[Case, Judgement]:
    return judge_cases(Labels(tuple(labelled(count)), "").cases(), given, file, **settings)


def test_each_case_is_judged_as_by_a_chain_and_kept(tmp_path: Path) -> None:
    file = tmp_path / "j.jsonl"
    found = run(judges(), file)
    for case, one in found.items():
        broken = "wrong" in case.answer
        assert one.decision == ("violation" if broken else "approve")
        assert [(row.value, row.score) for row in one.findings] == [(v.name, -1 if broken else 1) for v in THREE.values]
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert len(file.read_text().splitlines()) == 9


def test_a_second_run_asks_only_about_what_is_not_in_the_file(tmp_path: Path) -> None:
    file, ticks = tmp_path / "j.jsonl", []
    first = run(judges(), file, 6)
    with file.open("ab") as lines:
        lines.write(b'{"case": "torn')  # a process that was killed while it wrote
    again = judges()
    second = run(again, file, 8, advance=lambda: ticks.append(1))
    assert len(again.will_model.asked("will")) == 2  # type: ignore[attr-defined]
    assert len(ticks) == 8
    assert {case: one.decision for case, one in first.items()}.items() <= {
        c: o.decision for c, o in second.items()
    }.items()
    assert run(judges(will=ValueError("never asked")), file, 8) == second


@pytest.mark.parametrize(
    "content", [b'{"judges": "x"}\n', b"not judgements\n", b'{"judges": {}}\n{"case": 1}\n', b"[]\n", b"torn"]
)
def test_another_file_is_refused_and_not_changed(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "j.jsonl"
    file.write_bytes(content)
    with pytest.raises(ValueError, match="expected a file of judgements"):
        run(judges(), file)
    assert file.read_bytes() == content


def test_judgements_of_other_judges_are_refused_by_what_differs(tmp_path: Path) -> None:
    file = tmp_path / "j.jsonl"
    run(judges(), file)
    fake = Fake()
    with pytest.raises(ValueError, match="judges with other prompts, calls; name another file"):
        judge_cases({}, Judges(THREE, fake, fake, "each"), file)
    with pytest.raises(ValueError, match="other values, prompts;"):
        judge_cases({}, Judges(GATED, fake, fake), file)


def test_each_asks_about_labelled_values_only_also_a_gate(tmp_path: Path) -> None:
    fake = Fake(conscience=lambda human: ledger(GATED, -1), will=VIOLATION)
    rows = [row.model_copy(update={"value": "No Harm"}) for row in labelled(2)]
    found = judge_cases(Labels(tuple(rows), "").cases(), Judges(GATED, fake, fake, "each"), tmp_path / "j")
    assert [[row.value for row in one.findings] for one in found.values()] == [["No Harm"]] * 2
    assert all("- No Harm:" in str(m[0].text) and "- Truth:" not in str(m[0].text) for m in fake.asked("conscience"))


def test_a_label_on_a_further_value_is_asked_about_also_if_the_answer_was_judged(tmp_path: Path) -> None:
    fake, (row,) = Fake(conscience="no JSON"), labelled(1)
    further = row.model_copy(update={"value": "Care"})
    for rows, asked in (((row,), 2), ((row,), 2), ((row, further), 6)):  # two replies of each, since neither is usable
        judge_cases(Labels(rows, "").cases(), Judges(THREE, fake, fake, "each"), tmp_path / "j.jsonl")
        assert len(fake.asked("conscience")) == asked


def test_at_most_so_many_at_once(tmp_path: Path) -> None:
    given = judges(audit_delay=0.02)
    run(given, tmp_path / "j.jsonl", 12, at_once=3)
    assert given.will_model.most_at_once <= 6  # type: ignore[attr-defined]  # a Will and a Conscience of each
    with pytest.raises(ValueError, match="at_once: expected at least 1, got 0"):
        run(given, tmp_path / "j.jsonl", at_once=0)


@pytest.mark.parametrize("role", ["will", "conscience"])
def test_a_model_that_fails_is_no_verdict_and_is_tried_again(
    tmp_path: Path, role: str, caplog: pytest.LogCaptureFixture
) -> None:
    def sometimes(human: str) -> Any:
        return ValueError("down") if "answer 3" in human else {"will": by_word, "conscience": scores}[role](human)

    with caplog.at_level(logging.WARNING, "safi_agent"):
        found = run(judges(**{role: sometimes}), tmp_path / "j.jsonl")
    assert len(found) == 7
    assert "left out" in caplog.text
    assert len(run(judges(), tmp_path / "j.jsonl")) == 8


def test_an_outage_stops_the_run(tmp_path: Path) -> None:
    given = judges(will=ValueError("down"))
    with pytest.raises(SafiError, match=f"failed on {MOST_FAILURES} cases in a row; 0 of 40 are judged"):
        run(given, tmp_path / "j.jsonl", 40, at_once=1)
    assert len(given.will_model.asked("will")) == MOST_FAILURES  # type: ignore[attr-defined]


def test_a_reply_that_cannot_be_used_is_a_judgement_without_findings(tmp_path: Path) -> None:
    found = run(judges(conscience="no JSON", will="no JSON"), tmp_path / "j.jsonl", 2)
    assert [(one.decision, one.code, one.findings) for one in found.values()] == [
        ("violation", "judge_unclear", ())
    ] * 2


def test_the_description_follows_prompts_and_has_no_secret(tmp_path: Path) -> None:
    one, other = Judges(THREE, Fake(), Fake()), Judges(GATED, Fake(), Fake())
    assert one.description == Judges(THREE, Fake(), Fake()).description
    assert one.description["prompts"] != other.description["prompts"]
    assert set(one.description) == {"will", "conscience", "values", "prompts", "calls", "scores"}
    json.dumps(one.description)


def test_own_prompts_reach_the_judges_and_are_other_judges(tmp_path: Path) -> None:
    own = Prompts(
        will="You are the Will, briefly. {values} {gates} {fences} {agreement} {reply}",
        conscience="You are the Conscience, briefly. {values} {fences} {reply}",
    )
    fake = Fake(will=by_word, conscience=scores)
    file = tmp_path / "j.jsonl"
    run(Judges(THREE, fake, fake, prompts=own), file, 1)
    for role in ("will", "conscience"):
        assert ", briefly. " in str(fake.asked(role)[0][0].text)
    with pytest.raises(ValueError, match="judges with other prompts"):
        run(judges(), file, 1)
