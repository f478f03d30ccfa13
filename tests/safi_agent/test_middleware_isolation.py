"""An agent under SafiMiddleware lets nothing out by any stream that its Will or its rules have not let through.

Tokens come in pieces, so what a door gives is looked at as it is and with all its text put together; and each door is
shown to give the words away where no middleware stands before it.
"""

import logging
from collections.abc import Callable
from typing import Any

import pytest
from langchain.agents import create_agent
from langchain.agents.structured_output import ProviderStrategy, ToolStrategy
from langchain_core.messages import AIMessage
from langchain_core.messages.tool import InvalidToolCall
from langgraph.checkpoint.memory import InMemorySaver
from pydantic import BaseModel

from tests.safi_agent.agents.calling import Calling, Tools, call, calls
from tests.safi_agent.agents.channels import DOORS, given
from tests.safi_agent.fakes import VIOLATION, Fake, approve, in_turn
from tests.safi_agent.observers import Watcher, secret


class Note(BaseModel):
    """A note."""

    text: str


beta = pytest.mark.filterwarnings("ignore:The v3 streaming protocol on Pregel is experimental")


def as_draft(word: str) -> dict[str, Any]:
    return {"said": [f"Well: {word}.\n<reflection>I thought of {word}.</reflection>"], "refused": True}


def as_words_beside_a_call(word: str) -> dict[str, Any]:
    return {"said": [calls(call("search", q="x"), text=f"So {word}."), "Done."], "refused": True}


def as_thought_beside_a_call(word: str) -> dict[str, Any]:
    thought = {"type": "thinking", "thinking": f"Hm, {word}.", "signature": "c2ln"}
    return {"said": [calls(call("search", q="x"), text=[thought]), "Done."], "refused": True}


def as_argument(word: str) -> dict[str, Any]:
    kwargs: Any = {"tool_calls": [{"id": "1", "function": {"name": "pay", "arguments": f'{{"to": "{word}"}}'}}]}
    block: Any = [{"type": "tool_use", "id": "1", "name": "pay", "input": {"to": word}}]
    return {"said": [calls(call("pay", amount=1, to=word), text=block, additional_kwargs=kwargs), "Done."]}


def as_argument_that_the_judge_denies(word: str) -> dict[str, Any]:
    return {"said": [calls(call("search", q=word)), "Done."], "judge_calls": True}


def as_argument_that_cannot_be_read(word: str) -> dict[str, Any]:
    broken = InvalidToolCall(name="search", args=word, id="1", error=word, type="invalid_tool_call")
    return {"said": [AIMessage("", invalid_tool_calls=[broken]), "Done."]}


def as_name_of_a_tool(word: str) -> dict[str, Any]:
    return {"said": [calls(call(word, q="x")), "Done."]}


def as_names_of_one_id(word: str) -> dict[str, Any]:
    return {"said": [calls(call(word, "1", q=word), call("search", "1", q=word)), "Done."]}


def as_structured_output(word: str) -> dict[str, Any]:
    return {"said": [calls(call("Note", text=word))], "response_format": ToolStrategy(Note), "refused": True}


def as_structured_text(word: str) -> dict[str, Any]:
    return {"said": [f'{{"text": "{word}"}}'], "response_format": ProviderStrategy(Note), "refused": True}


def as_structured_output_that_does_not_fit(word: str) -> dict[str, Any]:
    return {"said": [calls(call("Note", text=[word]))], "response_format": ToolStrategy(Note), "refused": True}


def as_metadata(word: str) -> dict[str, Any]:
    extra: Any = {"response_metadata": {"logprobs": [word]}, "additional_kwargs": {"reasoning_content": word}}
    return {"said": [calls(call("search", q="x"), **extra), AIMessage("Done.", **extra)]}


HIDING: list[Callable[[str], dict[str, Any]]] = [v for name, v in sorted(globals().items()) if name.startswith("as_")]


def agent_of(middleware: list[Any], case: dict[str, Any]) -> Any:
    settings = {"response_format": case["response_format"]} if "response_format" in case else {}
    model = Calling(intellect=in_turn(*case["said"]))
    return create_agent(model, Tools().of(), middleware=middleware, checkpointer=InMemorySaver(), **settings)


# Each place with every second door, and each door with every second place.
PAIRS = [(hide, door) for i, hide in enumerate(HIDING) for j, door in enumerate(DOORS) if (i + j) % 2 == 0]


@beta
@pytest.mark.parametrize(("hide", "door"), PAIRS)
def test_what_was_not_let_through_leaves_by_no_door(
    govern: Any, hide: Any, door: Any, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.CRITICAL, "safi_agent")
    word = secret()
    case = hide(word)
    replies = [VIOLATION.replace("it breaks", f"{word} breaks"), f"no JSON {word}", RuntimeError(word), "{}"]
    bad = replies[PAIRS.index((hide, door)) % len(replies)]
    judge = Fake(will=lambda asked: bad if word in asked.partition("<draft>")[2] else approve())
    middleware = govern(judge, ["search"], store=None, log=None, judge_calls=case.get("judge_calls", False))
    told = door(agent_of([middleware], case))
    assert ("No." if case.get("refused") else "Done.") in told, "the door was not tried"
    assert word not in told


@beta
@pytest.mark.parametrize("door", DOORS)
def test_without_the_middleware_each_door_gives_it_away(door: Any) -> None:
    word = secret()
    assert word in door(agent_of([], as_draft(word)))


@beta
@pytest.mark.parametrize("door", DOORS)
def test_reflection_and_reason_stay_inside(govern: Any, door: Any) -> None:
    thought, reason = secret(), secret()
    judge = Fake(will=approve().replace("fine", reason))
    remark = calls(call("search", q="x"), text=f"Wait.<reflection>{thought}</reflection>")
    case = {"said": [remark, f"Good.\n<reflection>{thought}</reflection>"]}
    told = door(agent_of([govern(judge, store=None, log=None, judge_calls=True)], case))
    assert "Good." in told
    assert thought not in told
    assert reason not in told


def test_a_tracer_of_the_operator_sees_inside(govern: Any) -> None:
    operators, callers = Watcher(), Watcher()
    middleware = govern(Fake(will=VIOLATION), store=None, log=None, tracers=[operators])
    agent = create_agent(Calling(intellect="inner words"), [], middleware=[middleware])
    agent.invoke(given(), {"callbacks": [callers]})
    assert "inner words" in repr(operators.seen)
    assert "inner words" not in repr(callers.seen)
