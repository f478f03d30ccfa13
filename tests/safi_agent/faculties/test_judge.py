"""The ladder: structured where it goes, plain where not, at most two calls, usage added up."""

import asyncio
from typing import Any

import pytest
from langchain_core.messages import AIMessage, HumanMessage
from langchain_core.runnables import RunnableBinding, RunnableLambda

from safi_agent.faculties.judge import Judge
from tests.safi_agent.fakes import Fake

ASKED = [HumanMessage("Judge.")]
GOOD = '{"ok": true}'


def say(*replies: Any, log: list[int] | None = None) -> Any:
    left = list(replies)

    def one(_: Any) -> Any:
        if log is not None:
            log.append(1)
        reply = left.pop(0)
        if isinstance(reply, Exception):
            raise reply
        used = {"input_tokens": 1, "output_tokens": 1, "total_tokens": 2}
        return reply if isinstance(reply, AIMessage | dict) else AIMessage(reply, usage_metadata=used)

    return RunnableLambda(one)


def raw(text: str, **more: Any) -> dict[str, Any]:
    used: Any = {"input_tokens": 1, "output_tokens": 1, "total_tokens": 2}
    return {"raw": AIMessage(text, usage_metadata=used, **more), "parsed": None, "parsing_error": None}


def ask(judge: Judge) -> Any:
    return judge.ask(ASKED, lambda data: data if data.get("ok") else None, {})


class StatusError(Exception):
    def __init__(self, status_code: int) -> None:
        self.status_code = status_code


@pytest.mark.parametrize("retry", [True, False])
@pytest.mark.parametrize("refused", [NotImplementedError(), ValueError(), StatusError(400), StatusError(422)])
def test_structured_output_that_is_refused_is_done_without(retry: bool, refused: Exception) -> None:
    assert ask(Judge(say(GOOD), say(refused), retry))[0] == {"ok": True}


@pytest.mark.parametrize("error", [TimeoutError(), StatusError(429), StatusError(500), ConnectionError()])
def test_a_fault_of_the_line_is_raised_at_once(error: Exception) -> None:
    log: list[int] = []
    with pytest.raises(type(error)):
        ask(Judge(say(GOOD, log=log), say(error), True))
    assert not log


def test_an_unusable_reply_is_asked_for_again_only_with_retry() -> None:
    assert ask(Judge(say(GOOD), say(raw("{}")), True)) == (
        {"ok": True},
        {"input_tokens": 2, "output_tokens": 2, "total_tokens": 4},
    )
    assert ask(Judge(say(GOOD), say(raw("{}")), False))[0] is None
    assert ask(Judge(say("x", GOOD), None, True))[0] == {"ok": True}
    assert ask(Judge(say("x", GOOD), None, False))[0] is None


def test_never_more_than_two_calls() -> None:
    log: list[int] = []
    assert ask(Judge(say("x", "y", "z", log=log), None, True))[0] is None
    assert len(log) == 2


def test_a_model_that_declines_is_not_asked_again() -> None:
    log: list[int] = []
    declined = raw("", additional_kwargs={"refusal": "I cannot."})
    assert ask(Judge(say(GOOD, log=log), say(declined), True))[0] is None
    assert not log


def test_a_tool_call_is_read_and_two_are_unclear() -> None:
    call = {"name": "f", "args": {"ok": True}, "id": "1"}
    assert ask(Judge(say(AIMessage("", tool_calls=[call])), None, False))[0] == {"ok": True}
    assert ask(Judge(say(AIMessage("", tool_calls=[call, call])), None, False))[0] is None


def test_awaited_it_is_the_same() -> None:
    judge = Judge(say(GOOD), say(raw("{}")), True)
    assert asyncio.run(judge.aask(ASKED, lambda d: d if d.get("ok") else None, {}))[0] == {"ok": True}
    with pytest.raises(TimeoutError):
        asyncio.run(Judge(say(TimeoutError()), None, False).aask(ASKED, lambda d: d, {}))


def test_of_a_models_structured_output_the_call_alone_is_made() -> None:
    class Schooled(Fake):
        def bind_tools(self, tools: Any, **kwargs: Any) -> Any:
            return self.bind(schooled=True)

    judge = Judge.of(Schooled(intellect=GOOD), {"title": "t", "type": "object", "properties": {}}, retry=False)
    assert isinstance(judge.structured, RunnableBinding)
    assert judge.structured.kwargs == {"schooled": True}
    assert ask(judge)[0] == {"ok": True}
