"""The feedback note tells a trend and at most one name, and never a number."""

import re

from hypothesis import given
from hypothesis import strategies as st

from safi_agent.feedback import feedback_note, trend
from tests.safi_agent.fakes import GATED, THREE

mus = st.dictionaries(st.sampled_from(["truth", "care", "thrift"]), st.floats(-0.5, 0.5))


@given(mus, st.integers(0, 100), st.lists(st.integers(1, 10), max_size=8), st.floats(0, 0.99))
def test_the_note_has_no_number_no_gate_and_at_most_one_value(
    mu: dict[str, float], audits: int, scores: list[int], beta: float
) -> None:
    note = feedback_note(GATED, mu, audits, scores, beta)
    assert not re.search(r"\d", note)
    assert sum(value.name in note for value in GATED.values) <= 1
    assert "No Harm" not in note


def test_a_cold_start_and_a_good_course_say_nothing() -> None:
    assert feedback_note(THREE, {}, 0, [], 0.9) == ""
    assert feedback_note(THREE, {"truth": 0.05, "care": 0.03, "thrift": 0.02}, 1, [10], 0.9) == ""


def test_the_weakest_value_is_named_in_relation_to_its_weight() -> None:
    note = feedback_note(THREE, {"truth": 0.05, "care": 0.03, "thrift": -0.001}, 1, [9], 0.9)
    assert note.endswith("Give more thought to this value: Thrift.")


def test_a_fall_is_said_even_where_no_value_is_weak() -> None:
    full = {"truth": 0.5, "care": 0.3, "thrift": 0.2}
    assert "less well" in feedback_note(THREE, full, 50, [10, 10, 10, 7, 7, 7], 0.9)


def test_trend_compares_the_last_three_scores_with_those_before() -> None:
    assert [trend(s) for s in ([], [5], [5, 5, 5, 5], [1, 5, 5, 5], [9, 5, 5, 5])] == [
        *("steady", "steady", "steady"),
        *("rising", "falling"),
    ]
