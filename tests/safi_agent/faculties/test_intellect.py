"""Intellect: what is answer and what is reflection, and what its model is told."""

import asyncio
from typing import Any

import pytest
from langchain_core.messages import AIMessage, AIMessageChunk, HumanMessage
from langchain_core.runnables import RunnableLambda
from pydantic import BaseModel

from safi_agent.errors import IntellectError
from safi_agent.faculties.intellect import Intellect
from safi_agent.faculties.self_consistency import DraftSelector, LexicalEmbeddings, Selection
from safi_agent.turn import Draft, Turn
from tests.safi_agent.fakes import THREE, YES, Fake

TURN: Turn = {"prompt": "Why?", "messages": [HumanMessage("Why?")], "feedback": ""}


def test_it_adds_a_draft_and_keeps_the_turn() -> None:
    out = Intellect(Fake(), THREE).invoke(TURN)
    assert out == {**TURN, "draft": Draft("An answer.", "Because.")}


def test_the_feedback_note_and_the_values_without_weights_are_told() -> None:
    model = Fake()
    Intellect(model, THREE).invoke({**TURN, "feedback": "Mind the gap."})
    system = str(model.asked("intellect")[0][0].text)
    assert system.endswith("Mind the gap.")
    assert "- Truth:" in system
    assert "0.5" not in system


def test_content_in_blocks_is_read_without_thoughts() -> None:
    blocks = [{"type": "reasoning", "reasoning": "hidden"}, {"type": "text", "text": "Yes."}]
    out = Intellect(Fake(intellect=AIMessage(content=blocks)), THREE).invoke(TURN)
    assert out["draft"].answer == "Yes."


@pytest.mark.parametrize("reflects", [True, False])
@pytest.mark.parametrize(
    ("text", "answer", "flags"),
    [
        ("<think>hidden</think>\nYes.", "Yes.", ()),
        ("<think>a</think><think>hidden</think>Yes.", "Yes.", ()),
        ("<think>hidden. Yes.", "", ("structure_reasoning",)),
        ("<think>hidden</think>", "", ()),
        ("Say <think>, then </think>.", "Say <think>, then </think>.", ()),
        ('{"question": "Capital?", "answer": "Paris"}', '{"question": "Capital?", "answer": "Paris"}', ()),
    ],
)
def test_reasoning_that_leads_is_no_part_of_the_draft(
    text: str, answer: str, flags: tuple[str, ...], reflects: bool
) -> None:
    draft = Intellect(Fake(intellect=text), THREE, reflects).invoke(TURN)["draft"]
    assert (draft.answer, draft.reflection, draft.flags) == (answer, "", flags)


@pytest.mark.parametrize("reflects", [True, False])
def test_a_draft_that_was_cut_off_is_flagged_and_ships_no_half_reflection(reflects: bool) -> None:
    cut = {"response_metadata": {"finish_reason": "length", "model_name": "writer-2"}}
    draft = Intellect(Fake(intellect=AIMessage("Yes", **cut)), THREE, reflects).invoke(TURN)["draft"]
    assert (draft.answer, draft.flags, draft.model) == ("Yes", ("draft_truncated",), "writer-2")
    half = Intellect(Fake(intellect=AIMessage("Yes. <reflection>It", **cut)), THREE).invoke(TURN)["draft"]
    assert half == Draft("Yes.", "It", None, ("draft_truncated",), model="writer-2")


class Answered(BaseModel):
    answer: str = "Yes."
    context: str = "secret"


@pytest.mark.parametrize("reply", [{"answer": "Yes.", "context": "secret"}, Answered(), ["Yes."], None, b"Yes."])
def test_a_model_that_gives_neither_a_text_nor_a_models_message_is_an_error(reply: Any) -> None:
    intellect = Intellect(RunnableLambda(lambda _: reply), THREE)
    for ask in (lambda: intellect.invoke(TURN), lambda: asyncio.run(intellect.ainvoke(TURN))):
        with pytest.raises(IntellectError, match="TypeError") as caught:
            ask()
        assert "secret" not in str(caught.value)


@pytest.mark.parametrize("reply", ["Yes.", AIMessage("Yes."), AIMessageChunk("Yes.")])
def test_a_text_and_a_models_message_are_drafts(reply: Any) -> None:
    assert Intellect(RunnableLambda(lambda _: reply), THREE).invoke(TURN)["draft"].answer == "Yes."


def test_of_several_drafts_one_of_another_type_is_as_if_it_had_not_come() -> None:
    replies = iter([{"answer": "No."}, YES, YES])
    panel = DraftSelector(3, LexicalEmbeddings(), lambda vectors: Selection(0, 1.0))
    draft = Intellect(RunnableLambda(lambda _: next(replies)), THREE, selector=panel).invoke(TURN)["draft"]
    assert (draft.answer, draft.flags) == (YES, ("drafts_missing",))
    with pytest.raises(IntellectError, match="TypeError"):
        Intellect(RunnableLambda(lambda _: {}), THREE, selector=panel).invoke(TURN)


def test_what_its_model_raises_is_named_and_not_quoted() -> None:
    class LimitError(Exception):
        status_code = 429

    with pytest.raises(IntellectError, match=r"LimitError, status 429") as caught:
        Intellect(Fake(intellect=LimitError("words")), THREE).invoke(TURN)
    assert caught.value.cause == "LimitError, status 429"
    assert "words" not in str(caught.value)
