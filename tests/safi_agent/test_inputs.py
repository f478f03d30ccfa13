"""What a judge is shown of a conversation."""

from langchain_core.messages import AIMessage, HumanMessage, ToolMessage

from safi_agent.inputs import MAX_CONTEXT, read_input, transcript


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
