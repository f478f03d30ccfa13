"""The Spirit against an oracle in decimal, by properties, and in cases with a known answer."""

import math
from decimal import ROUND_HALF_EVEN, Decimal, getcontext
from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from safi_agent import Finding, ValueSet, assess, load_values
from safi_agent.faculties.spirit import linear
from tests.safi_agent.fakes import GATED, THREE

getcontext().prec = 50
SCORES = (-1, 0, 0.5, 1)
UNESCO = load_values("unesco")


def findings(values: ValueSet, *pairs: tuple[float, float]) -> list[Finding]:
    return [Finding(value=v.name, score=s, confidence=c) for v, (s, c) in zip(values.values, pairs, strict=False)]


def oracle(weights: list[float], rows: list[tuple[float, float]], mu: list[float], beta: float) -> dict[str, Any]:
    """The specification once more, in decimals and plain sums."""
    w, b = [Decimal(x) for x in weights], Decimal(beta)
    s, c, m = [Decimal(x) for x, _ in rows], [Decimal(x) for _, x in rows], [Decimal(x) for x in mu]
    raw = max(Decimal(-1), min(Decimal(1), sum((x * y * z for x, y, z in zip(w, s, c, strict=True)), Decimal(0))))
    scaled = (raw + 1) / 2 * 9 + 1
    p = [x * y for x, y in zip(w, s, strict=True)]
    lengths = [sum((x * x for x in v), Decimal(0)).sqrt() for v in (p, m)]
    dot = sum((x * y for x, y in zip(p, m, strict=True)), Decimal(0))
    return {
        "scaled": scaled,
        "score": int(scaled.quantize(Decimal(1), ROUND_HALF_EVEN)),
        "profile": p,
        "mu": [b * x + (1 - b) * y for x, y in zip(m, p, strict=True)],
        "drift": None if 0 in lengths else 1 - dot / lengths[0] / lengths[1],
    }


row = st.tuples(st.sampled_from(SCORES), st.floats(0, 1))


@st.composite
def cases(draw: st.DrawFn) -> tuple[list[float], list[tuple[float, float]], list[float], float]:
    n = draw(st.integers(1, 15))
    parts = draw(st.lists(st.floats(0.01, 1), min_size=n, max_size=n))
    weights = [x / math.fsum(parts) for x in parts]
    mu = draw(st.lists(st.floats(-1, 1).map(lambda x: round(x, 6)), min_size=n, max_size=n))
    return weights, draw(st.lists(row, min_size=n, max_size=n)), mu, draw(st.floats(0, 0.999))


def made(weights: list[float]) -> ValueSet:
    return load_values({"name": "t", "values": [{"name": f"v{i}", "weight": w} for i, w in enumerate(weights)]})


@pytest.mark.slow
@settings(max_examples=150, deadline=None)
@given(cases())
def test_it_is_what_the_oracle_says(case: tuple[list[float], list[tuple[float, float]], list[float], float]) -> None:
    weights, rows, mu, beta = case
    values = made(weights)
    expected = oracle(weights, rows, mu, beta)
    found = assess(findings(values, *rows), values, {f"v{i}": x for i, x in enumerate(mu)}, beta)
    near_a_tie = abs(expected["scaled"] % 1 - Decimal("0.5")) < Decimal("1e-9")
    assert near_a_tie or found.score == expected["score"]
    assert list(found.profile.values()) == pytest.approx([float(x) for x in expected["profile"]], abs=1e-12)
    assert list(found.mu.values()) == pytest.approx([float(x) for x in expected["mu"]], abs=1e-12)
    if expected["drift"] is None:
        assert found.drift is None
        assert found.drift_raw is None
    else:
        assert found.drift_raw == pytest.approx(float(expected["drift"]), abs=1e-9)
        assert found.drift == min(1, max(0, found.drift_raw))


@pytest.mark.slow
@settings(max_examples=40, deadline=None)
@given(st.lists(st.lists(row, min_size=15, max_size=15), min_size=1, max_size=12), st.floats(0, 0.99))
def test_a_run_of_turns_is_what_the_oracle_replays(turns: list[list[tuple[float, float]]], beta: float) -> None:
    mu: dict[str, float] | None = None
    expected = [0.0] * 15
    for rows in turns:
        mu = assess(findings(UNESCO, *rows), UNESCO, mu, beta).mu
        expected = oracle([v.weight for v in UNESCO.values], rows, expected, beta)["mu"]
    assert mu is not None
    assert list(mu.values()) == pytest.approx([float(x) for x in expected], abs=1e-12)


@settings(deadline=None)
@given(st.lists(row, min_size=3, max_size=3), st.randoms(use_true_random=False))
def test_the_assessment_does_not_depend_on_the_order_of_rows(rows: list[tuple[float, float]], random: Any) -> None:
    given_ = findings(THREE, *rows)
    shuffled = random.sample(given_, 3)
    assert assess(given_, THREE, {"truth": 0.1}) == assess(shuffled, THREE, {"truth": 0.1})


@settings(deadline=None)
@given(st.lists(row, min_size=3, max_size=3), st.integers(0, 2))
def test_a_better_score_never_lowers_the_whole(rows: list[tuple[float, float]], which: int) -> None:
    assume(rows[which][0] < 1)
    better = [(1, c) if i == which else (s, c) for i, (s, c) in enumerate(rows)]
    low, high = (assess(findings(THREE, *r), THREE).score for r in (rows, better))
    assert low is not None
    assert high is not None
    assert 1 <= low <= high <= 10


@given(st.dictionaries(st.sampled_from(["truth", "care", "thrift", "gone"]), st.floats(-1, 1)))
def test_nothing_that_is_handed_in_is_changed(mu: dict[str, float]) -> None:
    before, rows = dict(mu), findings(THREE, (1, 1), (0, 1), (-1, 1))
    first, second = assess(rows, THREE, mu), assess(rows, THREE, mu)
    assert mu == before
    assert first == second


@pytest.mark.parametrize(("raw", "score"), [(-1, 1), (1, 10), (0, 6), (-7, 1), (7, 10), (0.425, 7)])
def test_known_scores(raw: float, score: int) -> None:
    assert round(linear(raw)) == score


@pytest.mark.parametrize(("scaled", "score"), [(2.5, 2), (4.5, 4), (5.5, 6), (6.5, 6), (8.5, 8)])
def test_halves_go_to_the_even_side(scaled: float, score: int) -> None:
    found = assess(findings(THREE, (1, 1), (1, 1), (1, 1)), THREE, sigma=lambda raw: scaled)
    assert found.score == score


def test_the_seeds_example_scores_7() -> None:
    one = load_values({"name": "one", "values": [{"name": "Respect for Human Dignity"}]})
    example = {"value": "Respect for Human Dignity", "score": 0.5, "confidence": 0.85, "reason": "Supports dignity."}
    assert assess([example], one).score == 7


def test_confidence_counts_in_the_score_and_not_in_the_profile() -> None:
    sure, unsure = (assess(findings(THREE, *[(-1, c)] * 3), THREE) for c in (1.0, 0.2))
    assert (sure.score, unsure.score) == (1, 5)
    assert sure.profile == unsure.profile == {"truth": -0.5, "care": -0.3, "thrift": -0.2}


def test_phi_and_sigma_can_be_others() -> None:
    rows = findings(THREE, *[(1, 0.25)] * 3)
    assert assess(rows, THREE, phi=math.sqrt).score == round(linear(0.5))
    assert assess(rows, THREE, sigma=lambda raw: 3).score == 3


def test_drift_is_none_without_a_baseline_or_a_profile_and_2_raw_at_a_reversal() -> None:
    up, down, none = (findings(THREE, *[(s, 1)] * 3) for s in (1, -1, 0))
    first = assess(up, THREE)
    assert first.drift is None
    assert assess(none, THREE, first.mu).drift is None
    turned = assess(down, THREE, first.mu)
    assert turned.drift == 1
    assert turned.drift_raw == pytest.approx(2)
    steady = assess(up, THREE, first.mu)
    assert steady.drift == pytest.approx(0, abs=1e-12)
    assert steady.drift is not None
    assert 0 <= steady.drift <= 1


def test_halving_every_score_is_invisible_to_drift() -> None:
    full, half = (findings(THREE, *[(s, 1)] * 3) for s in (1, 0.5))
    assert assess(half, THREE, assess(full, THREE).mu).drift == pytest.approx(0, abs=1e-12)


def test_a_missing_value_adds_nothing_keeps_its_mu_and_is_named() -> None:
    mu = {"truth": 0.2, "care": 0.1, "thrift": 0.15}
    found = assess(findings(THREE, (1, 1), (1, 1)), THREE, mu)
    assert found.unscored == ("Thrift",)
    assert found.profile["thrift"] == 0
    assert found.mu["thrift"] == 0.15
    assert found.mu["truth"] == pytest.approx(0.9 * 0.2 + 0.1 * 0.5)
    assert found.score == round(linear(0.8))


def drift_of(*turns: dict[str, float], values: ValueSet = THREE) -> list[float | None]:
    """The drift of each turn; a turn names its scores by value."""
    mu: dict[str, float] = {}
    found = []
    for scores in turns:
        one = assess([{"value": v, "score": s, "confidence": 1} for v, s in scores.items()], values, mu)
        mu = one.mu
        found.append(one.drift)
    return found


FULL = {"Truth": 1.0, "Care": 1.0, "Thrift": 1.0}


@pytest.mark.parametrize("left_out", FULL)
@pytest.mark.parametrize("at", range(5))
def test_a_row_that_is_left_out_once_is_no_drift_then_or_later(left_out: str, at: int) -> None:
    turns = [dict(FULL) for _ in range(6)]
    del turns[at][left_out]
    for drift in drift_of(*turns)[1:]:
        assert drift is not None
        assert drift < 0.1  # while μ of that value catches up by one turn
    assert drift_of(*turns)[at] == (None if at == 0 else pytest.approx(0, abs=1e-12))


def test_drift_by_hand_over_the_values_that_were_scored_now_and_before() -> None:
    """p is (−0.5, 0.3), μ (0.05, 0.03): cos = (−0.025 + 0.009) / (√0.34 · √0.0034) = −0.016 / 0.034 = −8/17."""
    turned = {"Truth": -1.0, "Care": 1.0}
    assert drift_of(FULL, turned)[1] == 1
    rows = [{"value": v, "score": s, "confidence": 1} for v, s in turned.items()]
    assert assess(rows, THREE, {"truth": 0.05, "care": 0.03, "thrift": 0.02}).drift_raw == pytest.approx(1 + 8 / 17)
    assert assess(rows, THREE, {"care": 0.03, "thrift": 0.02}).drift_raw == pytest.approx(0)
    assert assess(rows, THREE, {"thrift": 0.02}).drift is None


def test_a_row_that_is_left_out_hides_no_drift_of_the_others() -> None:
    for score, drift in ((-1.0, 1), (1.0, pytest.approx(0, abs=1e-12))):
        assert drift_of(FULL, FULL, {"Truth": score, "Care": score})[2] == drift


@pytest.mark.slow
@settings(max_examples=100, deadline=None)
@given(cases(), st.data())
def test_what_is_left_out_counts_as_if_there_were_no_such_value(
    case: tuple[list[float], list[tuple[float, float]], list[float], float], data: st.DataObject
) -> None:
    """Drift of a ledger with gaps is the oracle's for the values that are left."""
    weights, rows, mu, beta = case
    count = len(rows)
    kept = data.draw(st.sets(st.integers(0, count - 1), min_size=count // 2 + 1))
    before = data.draw(st.sets(st.integers(0, count - 1)))
    both = sorted(kept & before)
    values = made(weights)
    ledger = [row for i, row in enumerate(findings(values, *rows)) if i in kept]
    found = assess(ledger, values, {f"v{i}": mu[i] for i in before}, beta).drift_raw
    expected = oracle([weights[i] for i in both], [rows[i] for i in both], [mu[i] for i in both], beta)["drift"]
    assert found == (None if expected is None else pytest.approx(float(expected), abs=1e-9))


@pytest.mark.parametrize("made", [math.nan, math.inf, -math.inf, "6", None, True, 1j])
def test_a_map_that_gives_no_number_is_named(made: Any) -> None:
    rows = findings(THREE, *[(1, 0.5)] * 3)
    with pytest.raises(ValueError, match="phi: expected a function with finite results, got"):
        assess(rows, THREE, phi=lambda _: made)
    with pytest.raises(ValueError, match="sigma: expected a function with finite results, got"):
        assess(rows, THREE, sigma=lambda _: made)


@pytest.mark.parametrize("scaled", [0.5, 0, -3, 10.6, 95])
def test_a_score_beyond_1_to_10_is_refused(scaled: float) -> None:
    with pytest.raises(ValueError, match="sigma: expected a function whose result rounds to"):
        assess(findings(THREE, *[(1, 0.5)] * 3), THREE, sigma=lambda _: scaled)


@pytest.mark.parametrize("rows", [[], [{"value": "Truth", "score": 1, "confidence": 1}], [{"value": "Other"}], [None]])
def test_too_little_is_no_score_and_moves_nothing(rows: list[Any]) -> None:
    found = assess(rows, THREE, {"truth": 0.3})
    assert (found.score, found.drift, found.drift_raw) == (None, None, None)
    assert found.mu == {"truth": 0.3}


def test_a_missing_gate_is_no_score_and_a_gate_is_never_averaged() -> None:
    rows = findings(GATED, (1, 1), (1, 1), (1, 1), (-1, 1))
    assert assess(rows[:3], GATED).score is None
    found = assess(rows, GATED)
    assert found.score == 10
    assert set(found.mu) == {"truth", "care", "thrift"}


def test_mu_is_by_name_so_that_values_may_move_leave_and_come_back() -> None:
    mu = {"thrift": 0.1, "gone": 0.4, "truth": 0.2}
    found = assess(findings(THREE, (1, 1), (1, 1), (1, 1)), THREE, mu)
    assert found.mu["gone"] == 0.4
    assert found.mu["care"] == pytest.approx(0.03)
    back = THREE.model_copy(update={"values": tuple(reversed(THREE.values))})
    assert assess(findings(THREE, (1, 1), (1, 1), (1, 1)), back, mu).mu == found.mu


@pytest.mark.parametrize("beta", [1, 1.5, -0.1, math.nan, None, "0.9", True])
def test_beta_must_let_the_profile_move(beta: Any) -> None:
    with pytest.raises(ValueError, match=r"beta: expected a number in \[0, 1\), got"):
        assess([], THREE, None, beta)


def test_the_assessment_does_not_depend_on_reasons_and_descriptions() -> None:
    plain = findings(THREE, (1, 0.9), (-1, 0.5), (0.5, 1))
    wordy = [row.model_copy(update={"reason": "Score 10, drift 0, all values upheld."}) for row in plain]
    told = [value.model_copy(update={"description": "d", "rubric": "r", "vetoes": ("v",)}) for value in THREE.values]
    other = THREE.model_copy(update={"values": tuple(told), "description": "d", "refusal": "r"})
    assert assess(wordy, other, {"truth": 0.1}) == assess(plain, THREE, {"truth": 0.1})
