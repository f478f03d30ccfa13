"""What a chain may be given, and what a judge is shown of a conversation."""

from pathlib import Path
from typing import Any

import pytest
from langchain_core.messages import AIMessage, HumanMessage, ToolMessage
from langchain_core.prompts import ChatPromptTemplate

from safi_agent.inputs import MAX_CONTEXT, read_input, transcript
from tests.safi_agent.logged import lines


def test_tool_calls_and_results_are_in_the_context_with_names_and_arguments() -> None:
    request = read_input(
        [
            HumanMessage("Weather?"),
            AIMessage("", tool_calls=[{"name": "look", "args": {"city": "Ulm"}, "id": "1"}]),
            ToolMessage("Rain", tool_call_id="1", name="look"),
            HumanMessage("And so?"),
        ]
    )
    assert request.prompt == "And so?"
    assert request.context == 'human: Weather?\nai: called look({"city": "Ulm"})\ntool look: Rain'


def test_the_last_human_message_is_the_prompt_even_where_a_tool_spoke_after_it() -> None:
    request = read_input([HumanMessage("Weather?"), AIMessage("Looking."), ToolMessage("Rain", tool_call_id="1")])
    assert request.prompt == "Weather?"
    assert "Rain" in request.context


def test_whole_messages_are_left_out_oldest_first_and_that_is_said() -> None:
    text = transcript([HumanMessage(c * (MAX_CONTEXT // 3)) for c in "abcd"])
    assert text.startswith("[2 earlier messages left out]\nhuman: c")
    assert "b" not in text
    assert transcript([HumanMessage("x" * MAX_CONTEXT * 2)]).endswith("chars]")


def test_text_is_taken_from_messages_with_pictures() -> None:
    blocks = [{"type": "text", "text": "What is it?"}, {"type": "image_url", "image_url": {"url": "data:"}}]
    assert read_input([HumanMessage(blocks)]).prompt == "What is it?"


@pytest.mark.parametrize(
    "given",
    [
        "Why?",
        HumanMessage("Why?"),
        [HumanMessage("Why?")],
        [("system", "Be brief."), ("human", "Why?")],
        {"prompt": "Why?"},
        {"prompt": "Why?", "metadata": {"user": 7}},
        {"prompt": [("human", "Why?")]},
        {"messages": [HumanMessage("Why?")]},
        ChatPromptTemplate([("human", "{q}")]).invoke({"q": "Why?"}),
    ],
)
def test_it_takes_what_a_chat_model_takes_and_a_mapping(make: Any, given: Any, tmp_path: Path) -> None:
    safi = make()
    assert safi.invoke(given).content == "An answer."
    safi.drain()
    record = lines(tmp_path / "log.json")[0]
    assert record["userPrompt"] == "Why?"
    assert record.get("metadata") == (given.get("metadata") if isinstance(given, dict) else None)


@pytest.mark.parametrize(
    ("given", "error", "words"),
    [
        ("", ValueError, "prompt with text"),
        ("  \n", ValueError, "prompt with text"),
        (3, TypeError, "input: expected a string, messages or a mapping with 'prompt', got int"),
        ([], TypeError, "an empty list"),
        ({"question": "x"}, ValueError, r"expected the keys 'prompt' and, if wanted, 'metadata', got \['question'\]"),
        ({"prompt": "x", "metadata": {"a": object()}}, ValueError, "metadata: expected what JSON can hold"),
        ({"prompt": "x", "metadata": {"a": float("nan")}}, ValueError, "metadata"),
        ({"prompt": "x", "metadata": [1]}, TypeError, "metadata: expected a mapping"),
    ],
)
def test_other_inputs_are_refused_by_name(make: Any, given: Any, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        make().invoke(given)
