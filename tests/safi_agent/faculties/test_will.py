"""Will: rules win, and whatever is unclear is a violation."""

import asyncio
import json
import logging
import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from langchain_core.messages import AIMessage, HumanMessage
from langchain_core.runnables import RunnableLambda

from safi_agent import Value, ValueSet, load_values
from safi_agent.faculties import will
from safi_agent.faculties.judge import Judge
from safi_agent.faculties.will import SCHEMA, Will, read_verdict, rules, schema
from safi_agent.turn import Draft, Turn
from tests.safi_agent.fakes import GATED, THREE, VIOLATION, Fake, approve, in_turn
from tests.safi_agent.invisible_characters import HIDDEN, OTHERS


def decide(reply: Any, values: ValueSet = THREE, answer: str = "An answer.", **settings: Any) -> will.Verdict:
    model = Fake(will=reply)
    turn: Turn = {"prompt": "Why?", "context": "", "draft": Draft(answer, "Because.")}
    out = Will(Judge.of(model, SCHEMA, retry=False), values, **settings).invoke(turn)
    assert {k: out[k] for k in turn} == turn  # type: ignore[literal-required]
    return out["verdict"]


def test_a_clear_approval_approves_and_a_violation_does_not() -> None:
    assert decide(approve()).decision == "approve"
    ruled = decide(VIOLATION)
    assert (ruled.decision, ruled.reason, ruled.code) == ("violation", "it breaks a value", "judge")


@pytest.mark.parametrize(
    "reply",
    [
        "",
        "{}",
        "[]",
        "null",
        "approve",
        "I approve of this.",
        '{"decision": "approve"}',
        '{"decision": "approve", "reason": null}',
        '{"decision": "approved", "reason": "x"}',
        '{"decision": "APPROVE or violation", "reason": "x"}',
        '{"decision": "block", "reason": "x"}',
        '{"decision": true, "reason": "x"}',
        '{"decision": ["approve"], "reason": "x"}',
        '{"decision": "approve", "reason": "cut off he',
        '{"decision": "violation", "decision": "approve", "reason": "twice"}',
        '{"decision": "violation", "Decision": "approve", "reason": "twice"}',
        '{"decision": "approve", "reason": "a"} {"decision": "violation", "reason": "b"}',
        '[{"decision": "approve", "reason": "a"}]',
        "```json\n{}\n```",
        "\u0000",
        '{"decision": "approve", "reason": ""}',
        '{"decision": "approve", "reason": " \\n"}',
        '{"decision": "approve", "reason": "\\u200b"}',
        '{"decision": "violation", "reason": ""}',
        '{"decision": "approve", "reason": "x", "verdict": "violation"}',
        '{"decision": "approve", "reason": "x", "final": {"decision": "violation", "reason": "y"}}',
        '{"decision": "approve", "reason": "x", "confidence": 0.9}',
        '{"verdict": {"decision": "approve", "reason": "x"}}',
        '{"decision": "approve", "reason": "x", "gates": "none"}',
        '{"decision": "approve", "reason": "x", "gates": {"Truth": false}}',
        '{"decision": "approve", "reason": "x", "gates": ["Truth"]}',
        '{"decision": "approve", "reason": "x", "gates": [{"value": "Truth", "upheld": false}]}',
        '{"decision": "approve", "reason": "x", "gates": [{"value": "Truth", "upheld": true, "Upheld": false}]}',
        'The draft hands me {"decision": "approve", "reason": "x"}, which is an attack. VIOLATION.',
        '<think>Harmless would be {"decision": "approve", "reason": "x"}. But',
        '{"decision": "approve", "reason": "x"} On second thought, no.',
    ],
)
def test_whatever_is_unclear_is_a_violation(reply: str) -> None:
    ruled = decide(reply)
    assert ruled.decision == "violation"
    assert ruled.code == "judge_unclear"


@given(st.text())
def test_no_noise_approves(text: str) -> None:
    assert decide(text).decision == "violation"


json_values = st.recursive(
    st.none() | st.booleans() | st.floats(allow_nan=False) | st.text() | st.sampled_from(["approve", "violation"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["decision", "reason", "x"]), inner),
    max_leaves=6,
)


@given(json_values)
def test_only_a_plain_approval_with_a_reason_approves(data: Any) -> None:
    known = isinstance(data, dict) and set(data) == {"decision", "reason"}
    plain = known and data["decision"] == "approve" and isinstance(data["reason"], str) and bool(data["reason"].strip())
    assert (read_verdict(data, THREE).decision == "approve") == plain


def test_case_and_fences_are_forgiven() -> None:
    assert decide('```json\n{"Decision": " Approve ", "REASON": "ok",}\n```').decision == "approve"


@pytest.mark.parametrize("error", [RuntimeError("x"), TimeoutError(), ValueError("x"), KeyError("x")])
def test_a_judge_that_cannot_be_asked_is_a_violation_that_quotes_nothing(error: Exception) -> None:
    ruled = decide(error)
    assert (ruled.decision, ruled.code) == ("violation", "judge_failed")
    assert type(error).__name__ in ruled.reason


@pytest.mark.parametrize("reply", [{"decision": "approve", "reason": "x"}, ["approve"], None, HumanMessage(approve())])
def test_a_judge_that_gives_no_message_has_failed(reply: Any) -> None:
    judge = Judge.of(RunnableLambda(lambda _: reply), SCHEMA, retry=False)
    turn: Turn = {"prompt": "Why?", "context": "", "draft": Draft("An answer.")}
    ruled = Will(judge, THREE).invoke(turn)["verdict"]
    assert (ruled.decision, ruled.code) == ("violation", "judge_failed")
    assert "TypeError" in ruled.reason


def test_a_verdict_has_the_name_that_the_reply_gives_its_model() -> None:
    assert decide(AIMessage(approve(), response_metadata={"model_name": "judge-2"})).model == "judge-2"
    assert decide(AIMessage("{}", response_metadata={"model_name": "judge-2"})).model == "judge-2"
    assert decide(approve()).model == ""


def test_a_draft_whose_reasoning_does_not_end_is_refused_without_a_call() -> None:
    model = Fake(will=approve())
    turn: Turn = {"prompt": "Why?", "context": "", "draft": Draft("An answer.", flags=("structure_reasoning",))}
    ruled = Will(Judge.of(model, SCHEMA, retry=False), THREE).invoke(turn)["verdict"]
    assert (ruled.decision, ruled.code) == ("violation", "structure_reasoning")
    assert not model.asked("will")


@pytest.mark.parametrize("refuse", [True, False])
def test_a_draft_that_was_cut_off_is_refused_only_where_that_is_asked_for(refuse: bool) -> None:
    turn: Turn = {"prompt": "Why?", "context": "", "draft": Draft("An ans", flags=("draft_truncated",))}
    judge = Judge.of(Fake(), SCHEMA, retry=False)
    for ruled in (
        Will(judge, THREE, refuse_truncated=refuse).invoke(turn)["verdict"],
        asyncio.run(Will(judge, THREE, refuse_truncated=refuse).ainvoke(turn))["verdict"],
    ):
        assert (ruled.decision, ruled.code) == (("violation", "draft_truncated") if refuse else ("approve", "judge"))


def test_the_judge_is_asked_once() -> None:
    model = Fake(will=in_turn("{}", approve()))
    turn: Turn = {"prompt": "Why?", "context": "", "draft": Draft("An answer.")}
    out = Will(Judge.of(model, SCHEMA, retry=False), THREE).invoke(turn)
    assert out["verdict"].decision == "violation"
    assert len(model.asked("will")) == 1


@pytest.mark.parametrize(
    ("gates", "code"),
    [
        ([{"value": "no  HARM", "upheld": True}], "judge"),
        ([], "hard_gate_unscored"),
        (None, "hard_gate_unscored"),
        ([{"value": "Truth", "upheld": True}], "hard_gate_unscored"),
        ([{"value": "No Harm", "upheld": False}], "hard_gate_violation"),
        ([{"value": "No Harm", "upheld": "true"}], "hard_gate_violation"),
        ([{"value": "No Harm", "upheld": 1}], "hard_gate_violation"),
        ([{"value": "No Harm"}], "hard_gate_violation"),
        ([{"value": "No Harm", "upheld": True, "UPHELD": True}], "judge_unclear"),
        ([{"value": "No Harm", "upheld": True}, {"value": "Truth", "upheld": False}], "judge_unclear"),
        ([{"value": "No Harm", "upheld": True}, "so"], "judge_unclear"),
        ({"No Harm": True}, "judge_unclear"),
        ([{"value": "No Harm", "upheld": True}, {"value": "no harm", "upheld": False}], "hard_gate_violation"),
        ([{"value": "No Harm", "upheld": False}, {"value": "no harm", "upheld": True}], "hard_gate_violation"),
    ],
)
def test_every_hard_gate_needs_its_own_clear_ruling(gates: Any, code: str) -> None:
    ruled = decide(json.dumps({"decision": "approve", "reason": "ok", "gates": gates}), GATED)
    assert ruled.code == code
    assert ruled.decision == ("approve" if code == "judge" else "violation")


RULED = ValueSet(
    name="ruled",
    values=(Value(name="A", weight=1), Value(name="Gate", weight=0, vetoes=(r"(?i)\bguaranteed\b",))),
    forbidden=(r"\d{4} \d{4} \d{4} \d{4}",),
    disclaimers=("Not advice.",),
    max_chars=60,
)


@pytest.mark.parametrize(
    ("answer", "code"),
    [
        ("", "structure_empty"),
        (" \n ", "structure_empty"),
        ("Not advice." + "x" * 60, "structure_length"),
        ("Gains are GUARANTEED. Not advice.", "hard_veto"),
        ("Card 1234 5678 1234 5678. Not advice.", "forbidden_pattern"),
        ("Buy.", "disclaimer_missing"),
        ("Buy. not advice.", "disclaimer_missing"),
    ],
)
def test_rules_win_without_a_call(answer: str, code: str) -> None:
    model = Fake(will=approve(["Gate"]))
    out = Will(Judge.of(model, SCHEMA, retry=False), RULED).invoke(
        {"prompt": "q", "context": "", "draft": Draft(answer)}
    )
    assert (out["verdict"].decision, out["verdict"].code) == ("violation", code)
    assert not model.asked("will")
    assert rules(Draft("Fine. Not advice."), RULED) is None


@pytest.mark.parametrize("draft", ["\uff27\uff35aranteed", "guaran\u200bteed", "guaran\u00adteed", "\u2067guaranteed"])
def test_a_veto_is_not_evaded_by_invisible_or_compatible_letters(draft: str) -> None:
    found = rules(Draft(f"{draft} gains. Not advice."), RULED)
    assert found is not None
    assert found.code == "hard_veto"


def test_a_pattern_for_what_is_invisible_is_tried_on_the_text_as_it_is() -> None:
    values = RULED.model_copy(update={"forbidden": ("\u200b",)})
    found = rules(Draft("So\u200b. Not advice."), values)
    assert found is not None
    assert found.code == "forbidden_pattern"


def vetoing(*patterns: str, **settings: Any) -> ValueSet:
    return ValueSet(name="vetoing", values=(Value(name="A", weight=1, vetoes=patterns),), **settings)


def code(draft: Draft | str, values: ValueSet) -> str | None:
    found = rules(Draft(draft) if isinstance(draft, str) else draft, values)
    return found and found.code


@pytest.mark.parametrize(
    ("pattern", "place"),
    [
        ("guaranteed", "guar{0}anteed"),
        (r"(?i)\bGuaranteed\b", "{0}guaranteed"),
        (r"(?i)\bGuaranteed\b", "guar{0}anteed"),
        (r"^guaranteed$", "guaranteed{0}"),
        (r"^guaranteed$", "{0}guaranteed"),
        (r"\Aguaranteed\Z", "g{0}u{0}{0}aranteed{0}{0}"),
        (r"(?<!\S)guaranteed(?!\S)", "guaranteed{0}"),
        (r"(?<!\S)guaranteed(?!\S)", "g{0}u{0}{0}aranteed{0}{0}"),
    ],
)
def test_no_character_that_is_not_drawn_evades_a_veto(pattern: str, place: str) -> None:
    values = vetoing(pattern)
    assert code("good", values) is None
    assert [hex(ord(c)) for c in [*HIDDEN, *OTHERS] if code(place.format(c), values) != "hard_veto"] == []


@pytest.mark.parametrize(
    "draft",
    [
        "g\u0332u\u0332a\u0332r\u0332anteed",
        "guar\u0336anteed",
        "guaranteed\u0301",
        "\u24d6uaranteed",
        "guarantee\u20ddd",
        "GUARANTEED",
    ],
)
def test_a_veto_is_not_evaded_by_lines_through_letters_or_marks_after_a_word(draft: str) -> None:
    assert code(draft, vetoing(r"(?i)\bguaranteed\b")) == "hard_veto"


@pytest.mark.parametrize(
    ("pattern", "draft"), [("\u2122 brand", "\u2122\u200b brand"), ("\u00bd off", "\u00bd o\u034fff")]
)
def test_a_pattern_of_compatible_letters_is_tried_on_the_visible_text(pattern: str, draft: str) -> None:
    assert code(draft, vetoing(pattern)) == "hard_veto"


def test_line_breaks_and_tabs_are_drawn() -> None:
    values = vetoing("guaranteed")
    assert [code(f"guar{c}anteed", values) for c in "\n\r\t"] == [None, None, None]
    assert code("no\tharm", vetoing(r"no\tharm")) == "hard_veto"


@pytest.mark.parametrize("draft", ["\u200b", "\u3164 \n", "\x00\x01", "\ufe0f\u034f", "\U000e0041"])
def test_a_draft_of_which_nothing_is_drawn_is_empty(draft: str) -> None:
    assert code(draft, THREE) == "structure_empty"


def test_nothing_is_done_with_a_draft_that_is_too_long(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("visible", "plain", "search"):
        monkeypatch.setattr(will, name, None)
    assert code("x" * 61, RULED) == "structure_length"
    assert code(Draft("Not advice.", texts=("", "x" * 61)), RULED) == "structure_length"


@pytest.mark.parametrize("places", ["vetoes", "forbidden"])
def test_a_pattern_that_is_not_searched_to_the_end_is_a_violation_and_is_named(
    places: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(will, "PATTERN_SECONDS", 0.2)
    pattern = "(x+x+)+y"
    values = vetoing("never", pattern) if places == "vetoes" else vetoing("never", forbidden=(pattern,))
    start = time.monotonic()
    with caplog.at_level(logging.WARNING, logger="safi_agent"):
        assert code("x" * 3000, values) == "pattern_unfinished"
    assert time.monotonic() - start < 5
    assert repr(pattern) in caplog.text
    assert code("good", values) is None


@pytest.mark.slow
def test_all_patterns_together_have_one_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(will, "PATTERN_SECONDS", 0.2)
    values = vetoing(*(rf"\bsome\b.*\bnever{i}\b" for i in range(200)))
    start = time.monotonic()
    assert code("some " * 2000, values) == "pattern_unfinished"
    assert time.monotonic() - start < 5


def test_a_set_of_which_a_copy_has_other_patterns_is_matched_by_those() -> None:
    values = vetoing("one")
    assert code("one", values) == "hard_veto"
    changed = values.model_copy(update={"values": vetoing("two").values})
    assert (code("one", changed), code("two", changed)) == (None, "hard_veto")


@pytest.mark.parametrize("unit", ["-", "<", " ", "```\n", "{}", "\u200b", "\u0315\u0300", "<reflection "])
def test_rules_take_linear_time(unit: str) -> None:
    values = load_values("professional").model_copy(update={"max_chars": 10**6})
    start = time.process_time()
    code("a" + unit * (200_000 // len(unit)), values)
    assert time.process_time() - start < 3


def test_the_shipped_professional_set_vetoes_a_guarantee() -> None:
    values = load_values("professional")
    draft = f"This fund has guaranteed annual returns. {values.disclaimers[0]}"
    found = rules(Draft(draft), values)
    assert found is not None
    assert found.code == "hard_veto"


def test_what_the_judge_is_shown_is_fenced_once_and_the_reflection_can_be_kept_from_it() -> None:
    for sees in (True, False):
        model = Fake(will=approve())
        turn: Turn = {"prompt": "Why?", "context": "human: hi", "draft": Draft("An answer.", "My thought.")}
        Will(Judge.of(model, SCHEMA, retry=False), THREE, sees).invoke(turn)
        (messages,) = model.asked("will")
        text = str(messages[1].text)
        assert [text.count(f"<{n}>\n") for n in ("context", "user_prompt", "draft")] == [1, 1, 1]
        assert ("My thought." in text) is sees


def test_braces_in_what_it_is_shown_are_only_text() -> None:
    assert decide(approve(), answer=r"{values} {0} \(x\) {clause}").decision == "approve"


@pytest.mark.parametrize("values", [THREE, GATED])
def test_rulings_on_gates_are_asked_for_where_there_are_gates(values: ValueSet) -> None:
    model = Fake(will=approve([value.name for value in values.gates]))
    turn: Turn = {"prompt": "Why?", "context": "", "draft": Draft("An answer.", "Because.")}
    assert Will(Judge.of(model, schema(values), retry=False), values).invoke(turn)["verdict"].decision == "approve"
    assert ('"gates": [' in str(model.asked("will")[0][0].text)) == bool(values.gates)
    asked = schema(values)
    assert set(asked["required"]) == set(asked["properties"])
    assert ("gates" in asked["properties"]) == bool(values.gates)
