"""Figures computed again: lines made by plain arithmetic agree, and each that is changed is named."""

import contextlib
import json
import math
import random
from pathlib import Path
from typing import Any

import pytest

from safi_agent.errors import LogError
from safi_agent.log.replay import FIGURES, Replayed, replay
from safi_agent.values import ValueSet
from tests.safi_agent.fakes import GATED, THREE, Fake, in_turn, ledger

BETA = 0.8
SETS = {THREE.fingerprint: THREE, GATED.fingerprint: GATED, "three": THREE}


def twin(rows: list[dict[str, Any]], values: ValueSet, mu: dict[str, float]) -> dict[str, Any]:
    """The specification's four lines, one number after the other."""
    score = {row["value"].lower(): row["score"] for row in rows}
    sure = {row["value"].lower(): row["confidence"] for row in rows}
    weights = {value.name.lower(): value.weight for value in values.values if value.weight}
    total, dot, p2, m2 = 0.0, 0.0, 0.0, 0.0
    after = dict(mu)
    for name, weight in weights.items():
        p, m = weight * score[name], mu.get(name, 0.0)
        total += p * sure[name]
        dot, p2, m2 = dot + p * m, p2 + p * p, m2 + m * m
        after[name] = BETA * m + (1 - BETA) * p
    raw = None if p2 == 0 or m2 == 0 else 1 - dot / math.sqrt(p2) / math.sqrt(m2)
    return {
        "spiritScore": round((max(-1, min(1, total)) + 1) / 2 * 9 + 1),
        "driftRaw": raw,
        "drift": None if raw is None else max(0.0, min(1.0, raw)),
        "mu": after,
    }


def records(count: int, seed: int = 0) -> list[dict[str, Any]]:
    """Turns of three keys, among them violations and failed audits, judged by two value sets."""
    rng = random.Random(seed)
    state: dict[str, tuple[int, dict[str, float], int]] = {}
    made = []
    for i in range(count):
        key, values = rng.choice("abc"), rng.choice([THREE, GATED])
        turn, mu, mu_turn = state.get(key, (0, {}, 0))
        rows: list[dict[str, Any]] = []
        told: dict[str, Any] = {"spiritScore": None, "drift": None, "driftRaw": None, "mu": mu}
        if rng.random() < 0.8:
            rows = [
                {
                    "value": value.name,
                    "score": rng.choice([-1.0, 0.0, 0.5, 1.0]),
                    "confidence": rng.choice([0.25, 0.5, 1.0]),
                    "reason": "",
                }
                for value in values.values
            ]
            told = twin(rows, values, mu)
            mu_turn += 1
        state[key] = turn + 1, told["mu"], mu_turn
        measure = {"values": values.fingerprint, "beta": BETA, "phi": "identity", "sigma": "linear"}
        line = {"turnId": f"t{i}", "turn": turn + 1, "memoryKey": key, "valueSet": values.name, "measure": measure}
        made.append({**line, "conscienceLedger": rows, **told, "muTurn": mu_turn})
    return made


LINES = records(120)


def replayed(path: Path, lines: list[dict[str, Any]], **settings: Any) -> Replayed:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return replay(path, SETS.get, **settings)


def test_what_plain_arithmetic_gives_has_no_fault(tmp_path: Path) -> None:
    assert replayed(tmp_path / "log.json", LINES) == ((), 0, 120, 0, 0, 0)


@pytest.mark.parametrize("name", FIGURES)
@pytest.mark.parametrize("seed", range(6))
def test_a_figure_that_is_changed_is_named(name: str, seed: int, tmp_path: Path) -> None:
    rng = random.Random(seed)
    at = rng.choice([i for i, line in enumerate(LINES) if line[name] not in (None, {})])
    changed: Any = LINES[at][name]
    if isinstance(changed, dict):
        one = rng.choice(list(changed))
        changed = {**changed, one: changed[one] + rng.choice([-1e-6, 1e-6])}
    else:
        changed = changed + (1e-6 if isinstance(changed, float) else rng.choice([-1, 1]))
    faults = replayed(tmp_path / "log.json", [*LINES[:at], {**LINES[at], name: changed}, *LINES[at + 1 :]]).faults
    assert faults[0].at == at + 1
    assert f"{name} is {changed!r}" in faults[0].what


@pytest.mark.parametrize("seed", range(6))
def test_a_ledger_that_is_changed_is_named(seed: int, tmp_path: Path) -> None:
    rng = random.Random(seed)
    at = rng.choice([i for i, line in enumerate(LINES) if line["conscienceLedger"]])
    row = LINES[at]["conscienceLedger"][0]
    rows = [{**row, "score": 1.0 if row["score"] < 1 else 0.0}, *LINES[at]["conscienceLedger"][1:]]
    changed = [*LINES[:at], {**LINES[at], "conscienceLedger": rows}, *LINES[at + 1 :]]
    assert replayed(tmp_path / "log.json", changed).faults[0].at == at + 1


def test_the_last_bit_is_no_fault(tmp_path: Path) -> None:
    moved = [{**line, "mu": {k: math.nextafter(v, 2) for k, v in line["mu"].items()}} for line in LINES]
    assert replayed(tmp_path / "log.json", moved).faulty == 0


def test_a_turn_that_is_missing_or_comes_twice_is_named(tmp_path: Path) -> None:
    at = max(i for i, line in enumerate(LINES) if line["memoryKey"] == "a")
    first = next(i for i, line in enumerate(LINES) if line["memoryKey"] == "a" and line["turn"] == 5)
    for lines, where in (
        ([*LINES[:first], *LINES[first + 1 :]], [i for i, x in enumerate(LINES) if x["memoryKey"] == "a"][5]),
        ([*LINES, LINES[at]], 121),
    ):
        found = replayed(tmp_path / "log.json", lines)
        assert (found.faulty, found.faults[0].at) == (1, where)
        assert "expected turn" in found.faults[0].what


def test_keys_that_begin_in_the_middle_go_on_from_their_first_line(tmp_path: Path) -> None:
    found = replayed(tmp_path / "log.json", LINES[60:])
    assert (found.faulty, found.late) == (0, 3)
    at = next(i for i in range(60, 120) if LINES[i]["spiritScore"])
    wrong = {**LINES[at], "spiritScore": 11}
    assert replayed(tmp_path / "log.json", [*LINES[60:at], wrong, *LINES[at + 1 :]]).faulty == 1


def test_full_files_come_first(tmp_path: Path) -> None:
    (tmp_path / "log.json.1").write_text("".join(json.dumps(line) + "\n" for line in LINES[:70]))
    assert replayed(tmp_path / "log.json", LINES[70:]) == ((), 0, 120, 0, 0, 0)
    wrong = {**LINES[75], "muTurn": -1}
    (fault, *_) = replayed(tmp_path / "log.json", [*LINES[70:75], wrong, *LINES[76:]]).faults
    assert fault[:2] == (str(tmp_path / "log.json"), 6)


def test_lines_of_an_older_version_need_a_name_and_beta(tmp_path: Path) -> None:
    old = [{k: v for k, v in line.items() if k != "measure"} for line in LINES if line["valueSet"] == "three"][:1]
    assert replayed(tmp_path / "log.json", old, beta=BETA).faulty == 0


def test_a_score_by_a_map_that_is_not_ours_is_counted_and_the_rest_computed(tmp_path: Path) -> None:
    audited = [line["spiritScore"] is not None for line in LINES]
    other = [{**line, "measure": {**line["measure"], "phi": "square"}} for line in LINES]
    scored = [{**line, "spiritScore": 3} if audit else line for line, audit in zip(other, audited, strict=True)]
    found = replayed(tmp_path / "log.json", scored)
    assert (found.faulty, found.other_maps) == (0, sum(audited))
    scored[50] = {**scored[50], "muTurn": 99}
    assert replayed(tmp_path / "log.json", scored).faults[0].at == 51


def failed(line: dict[str, Any], before: dict[str, Any], **changes: Any) -> dict[str, Any]:
    """The line, with its whole ledger, as an audit that failed."""
    nothing = {name: None for name in ("spiritScore", "drift", "driftRaw")}
    kept = {"mu": before["mu"], "muTurn": before["muTurn"], "auditStatus": "failed"}
    return {**line, **nothing, **kept, "measure": {**line["measure"], **changes}}


def test_an_audit_may_fail_with_a_whole_ledger_where_a_map_is_the_operators(tmp_path: Path) -> None:
    turns = [line for line in LINES if line["memoryKey"] == "a"]
    at = max(i for i, line in enumerate(turns) if line["spiritScore"] is not None)
    for change in ({"phi": "square"}, {"sigma": "steep"}, {"phi": "mine.identity"}):
        found = replayed(tmp_path / "log.json", [*turns[:at], failed(turns[at], turns[at - 1], **change)])
        assert (found.faulty, found.other_maps) == (0, 1)
    ours = replayed(tmp_path / "log.json", [*turns[:at], failed(turns[at], turns[at - 1])])
    assert "spiritScore is None, but its ledger gives" in ours.faults[0].what
    empty = {**failed(turns[at], turns[at - 1]), "conscienceLedger": []}
    assert replayed(tmp_path / "log.json", [*turns[:at], empty]).faulty == 0
    moved = {**failed(turns[at], turns[at - 1], phi="square"), "mu": {**turns[at - 1]["mu"], "truth": 0.5}}
    assert replayed(tmp_path / "log.json", [*turns[:at], moved]).faults[0].at == at + 1


def test_keys_that_it_does_not_know_make_no_difference(tmp_path: Path) -> None:
    """A repeated audit is a turn of its key like any other."""
    more = {"notShown": ["an image"], "reauditOf": "t0", "flags": ["not_shown"]}
    assert replayed(tmp_path / "log.json", [{**line, **more} for line in LINES]) == ((), 0, 120, 0, 0, 0)


def test_a_row_that_was_left_out_is_computed_as_the_chain_did(make: Any, tmp_path: Path) -> None:
    without = json.dumps({"ledger": json.loads(ledger(score=1))["ledger"][1:]})
    with make(Fake(conscience=in_turn(without, ledger(score=1), without, ledger(score=1)))) as safi:
        for i in range(4):
            safi.invoke(f"{i}?")
            safi.drain()
    assert replay(tmp_path / "log.json", SETS.get) == ((), 0, 4, 0, 0, 0)
    records = [json.loads(line) for line in (tmp_path / "log.json").read_text().splitlines()]
    assert records[0]["drift"] is None
    assert records[1]["drift"] == records[2]["drift"] == pytest.approx(0, abs=1e-12)
    assert [record["flags"] for record in records] == [[]] * 4


def test_a_value_set_that_nobody_has_is_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "log.json"
    path.write_text(json.dumps(next(line for line in LINES if line["conscienceLedger"])) + "\n")
    with pytest.raises(LogError, match=r"expected the value set '[0-9a-f]{64}' of turn t\d+, got none"):
        replay(path, lambda name: None)


@pytest.mark.parametrize("line", ["{}", "[]", "x", "null", '{"memoryKey": 1}', ""])
def test_what_is_no_record_is_named(line: str, tmp_path: Path) -> None:
    path = tmp_path / "log.json"
    path.write_text(json.dumps(LINES[0]) + "\n" + line + "\n")
    found = replay(path, SETS.get)
    assert (found.faulty, found.faults[0].at) == (1, 2)


ODD: list[Any] = [None, True, -1, math.inf, math.nan, "x", [], [[1]], {}, {"a": {}}, [{}]]
AUDITED: dict[str, Any] = next(line for line in LINES if line["spiritScore"] is not None)


@pytest.mark.parametrize("name", [*AUDITED, *(f"measure.{name}" for name in AUDITED["measure"])])
def test_whatever_stands_in_a_field_is_read_or_named(name: str, tmp_path: Path) -> None:
    path = tmp_path / "log.json"
    for odd in ODD:
        line = json.loads(json.dumps(AUDITED))
        within, _, last = name.rpartition(".")
        (line[within] if within else line)[last] = odd
        path.write_text(json.dumps(line) + "\n")
        with contextlib.suppress(LogError):  # a value set that nobody has
            assert replay(path, SETS.get).lines == 1


@pytest.mark.parametrize("opening", ['{"a":', "["])
def test_a_line_without_end_is_named(opening: str, tmp_path: Path) -> None:
    path = tmp_path / "log.json"
    path.write_text(opening * 100_000 + "\n")
    assert replay(path, SETS.get).faulty == 1


def test_a_log_must_be_there(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        replay(tmp_path / "nowhere.json", SETS.get)


def test_a_log_that_a_chain_wrote_agrees(make: Any, tmp_path: Path) -> None:
    """Scores in between, another β and a failed audit among them."""
    judged = in_turn(ledger(score=1), "no ledger", "none", ledger(score=-1, confidence=0.3), ledger(score=0))
    with make(Fake(conscience=judged), beta=0.5, audit_attempts=1) as safi:
        for i in range(6):
            safi.invoke(f"{i}?")
            safi.drain()
    found = replay(tmp_path / "log.json", SETS.get)
    assert found == ((), 0, 6, 0, 0, 0)
    lines = [json.loads(line) for line in (tmp_path / "log.json").read_text().splitlines()]
    assert [line["auditStatus"] for line in lines].count("failed") == 1
    assert replayed(tmp_path / "other.json", [{k: v for k, v in x.items() if k != "measure"} for x in lines]).faulty > 0
