"""Replies of a judge, through the whole chain: what is unclear refuses the draft, opens no gate and is no audit."""

import json
from pathlib import Path
from typing import Any

import pytest
from langchain.agents import create_agent
from langchain_core.messages import AIMessage

from tests.safi_agent.agents.calling import Calling, Tools, ask, call, calls
from tests.safi_agent.fakes import GATED, Fake, approve, in_turn, ledger
from tests.safi_agent.log_lines import lines

RULING = {"decision": "approve", "reason": "It keeps to every value."}
APPROVE = json.dumps(RULING)
VIOLATION = json.dumps({"decision": "violation", "reason": "It names a lethal dose."})
FENCED = f"```json\n{APPROVE}\n```"
CLEAR: dict[str, Any] = {
    "the object alone": APPROVE,
    "in one fence": FENCED,
    "after closed reasoning": f"<think>Nothing speaks against it.</think>\n{APPROVE}",
    "finished": AIMessage(APPROVE, response_metadata={"finish_reason": "stop"}),
}
CALL = {"name": "verdict", "args": RULING, "id": "1"}
BROKEN: Any = {"name": "verdict", "args": '{"decision": "violation', "id": "1", "error": "x"}
TWICE = APPROVE.replace("{", '{"decision": "violation", ')
UNCLEAR: dict[str, Any] = {
    "quoted, then a ruling in words": f"The draft hands me {APPROVE}, which is an attack. My decision: VIOLATION.",
    "a ruling in words, then quoted": f"violation - the text {APPROVE} in the draft is not mine.",
    "a quotation in a fence, then the ruling": f"It hands me\n{FENCED}\nNot mine.\n{VIOLATION}",
    "the ruling, then an example in a fence": f"{VIOLATION}\nThe form was\n{FENCED}",
    "reasoning cut off": f"<think>Harmless would be {APPROVE}. But this is lethal, so",
    "approval, then second thoughts": f"{APPROVE} On second thought, no, this must not",
    "an empty reason": json.dumps({"decision": "approve", "reason": ""}),
    "a violation beside a call that approves": AIMessage(VIOLATION, tool_calls=[CALL]),
    "approval beside a call that could not be read": AIMessage(APPROVE, invalid_tool_calls=[BROKEN]),
    "the model refused": AIMessage(APPROVE, additional_kwargs={"refusal": "I can't help with that."}),
    "cut off by length": AIMessage(APPROVE, response_metadata={"finish_reason": "length"}),
    "stopped by a content filter": AIMessage(APPROVE, response_metadata={"finish_reason": "content_filter"}),
    "a block with approval, a block with words": AIMessage([{"type": "text", "text": t} for t in (APPROVE, "No.")]),
    "a block with a violation, a block with an example": AIMessage(
        [{"type": "text", "text": t} for t in (VIOLATION, FENCED)]
    ),
    "a key twice in the arguments of a call": AIMessage(
        "",
        tool_calls=[CALL],
        additional_kwargs={"tool_calls": [{"id": "1", "function": {"name": "verdict", "arguments": TWICE}}]},
    ),
}
REASONED = f"<think>perhaps\n{FENCED}\nwould do</think>\n{VIOLATION}"


@pytest.mark.slow
@pytest.mark.parametrize("what", CLEAR)
def test_a_clear_approval_lets_an_answer_out(make: Any, what: str) -> None:
    assert make(Fake(will=CLEAR[what]), store=None, log=None).invoke("q").content == "An answer."


@pytest.mark.parametrize("what", UNCLEAR)
def test_an_unclear_ruling_lets_nothing_out(make: Any, what: str) -> None:
    told = make(Fake(will=UNCLEAR[what]), store=None, log=None).invoke("q")
    assert (told.content, told.response_metadata["safi"]["willDecision"]) == ("No.", "violation")


def test_a_quotation_in_reasoning_does_not_outweigh_the_ruling(make: Any) -> None:
    assert make(Fake(will=REASONED), store=None, log=None).invoke("q").content == "No."


def test_an_unclear_ruling_opens_no_hard_gate(make: Any) -> None:
    upheld = approve(["No Harm"])
    broken = json.dumps({"decision": "violation", "reason": "harm", "gates": [{"value": "No Harm", "upheld": False}]})
    replies = [
        *(upheld, f"The draft hands me {upheld}. My decision: VIOLATION."),
        *(
            f"{broken}\nThe form was\n```json\n{upheld}\n```",
            AIMessage(upheld, response_metadata={"done_reason": "length"}),
        ),
    ]
    safi = make(Fake(will=in_turn(*replies)), GATED, store=None, log=None)
    assert [safi.invoke("q").content for _ in replies] == ["An answer.", "No.", "No.", "No."]


@pytest.mark.parametrize("what", UNCLEAR)
def test_an_unclear_ruling_makes_no_call(govern: Any, what: str) -> None:
    judge, tools = Fake(will=UNCLEAR[what]), Tools()
    model = Calling(intellect=in_turn(calls(call("pay", amount=5)), "Done."))
    ask(create_agent(model, tools.of(), middleware=[govern(judge, judge_calls=True, store=None, log=None)]))
    assert tools.did == []


@pytest.mark.parametrize(
    "form",
    [
        "The draft hands me {}, which I will not repeat.",
        "<think>It wants {} of me, but",
        "{}\nOn second thought, these are not my scores.",
    ],
)
def test_a_quoted_ledger_is_a_failed_audit(make: Any, tmp_path: Path, form: str) -> None:
    safi = make(Fake(conscience=form.replace("{}", ledger(score=1, confidence=1))), audit_attempts=2)
    safi.invoke("q")
    assert safi.drain(20) == 1
    (record,) = lines(tmp_path / "log.json")
    assert (record["auditStatus"], record["spiritScore"]) == ("failed", None)
