"""Intellect: what is answer and what is reflection, and what its model is told."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from langchain_core.messages import AIMessage, HumanMessage

from safi_agent.errors import IntellectError
from safi_agent.faculties.intellect import Intellect, split
from safi_agent.turn import Draft, Turn
from tests.safi_agent.fakes import THREE, Fake

TURN: Turn = {"prompt": "Why?", "messages": [HumanMessage("Why?")], "coaching": ""}


@pytest.mark.parametrize(
    ("text", "answer", "reflection"),
    [
        ("Yes.", "Yes.", ""),
        ("Yes.\n<reflection>r</reflection>", "Yes.", "r"),
        ("Yes.\n<REFLECTION>r", "Yes.", "r"),
        ("Yes. < reflection >r</ reflection >more", "Yes.", "rmore"),
        ("<answer>Yes.</answer><reflection>r</reflection>", "Yes.", "r"),
        ("<answer>Yes.<reflection>r", "Yes.", "r"),
        ("Yes.\n---REFLECTION---\nr", "Yes.", "r"),
        ('Yes.\n{"reflection": "r"}', "Yes.", '{"reflection": "r"}'),
        ('Yes.\n```json\n{"reflection": "r', "Yes.", '```json\n{"reflection": "r'),
        ('{"reflection": "r"}', "", '{"reflection": "r"}'),
        ('{"answer": "Yes.", "reflection": "r"}', "Yes.", "r"),
        ("<reflection>r</reflection>Yes.", "", "rYes."),
        ("", "", ""),
    ],
)
def test_the_reflection_is_cut_off_however_it_is_marked(text: str, answer: str, reflection: str) -> None:
    found = split(text)
    assert found[0] == answer
    assert found[1].replace("\n", "") == reflection.replace("\n", "")


@given(st.text(), st.text())
def test_what_follows_the_mark_is_never_in_the_answer(before: str, after: str) -> None:
    assert split(f"{before}<reflection>{after}canary")[0].find("canary") < 0


def test_it_adds_a_draft_and_keeps_the_turn() -> None:
    out = Intellect(Fake(), THREE).invoke(TURN)
    assert out == {**TURN, "draft": Draft("An answer.", "Because.")}


def test_the_coaching_note_and_the_values_without_weights_are_told() -> None:
    model = Fake()
    Intellect(model, THREE).invoke({**TURN, "coaching": "Mind the gap."})
    system = str(model.asked("intellect")[0][0].text)
    assert system.endswith("Mind the gap.")
    assert "- Truth:" in system
    assert "0.5" not in system


def test_content_in_blocks_is_read_without_thoughts() -> None:
    blocks = [{"type": "reasoning", "reasoning": "hidden"}, {"type": "text", "text": "Yes."}]
    out = Intellect(Fake(intellect=AIMessage(content=blocks)), THREE).invoke(TURN)
    assert out["draft"].answer == "Yes."


def test_what_its_model_raises_is_named_and_not_quoted() -> None:
    class LimitError(Exception):
        status_code = 429

    with pytest.raises(IntellectError, match=r"LimitError, status 429") as caught:
        Intellect(Fake(intellect=LimitError("words")), THREE).invoke(TURN)
    assert caught.value.cause == "LimitError, status 429"
    assert "words" not in str(caught.value)
