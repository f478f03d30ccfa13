"""A judge is asked once, or once more in plain words; usage is added up, and errors are raised."""

import asyncio
from typing import Any

import pytest
from langchain_core.messages import AIMessage, HumanMessage
from langchain_core.runnables import RunnableLambda

from safi_agent.faculties.judge import AGAIN, Judge, JudgeReply
from tests.safi_agent.fakes import Fake

ASKED = [HumanMessage("Judge.")]
GOOD = '{"ok": true}'
USED: Any = {"input_tokens": 1, "output_tokens": 1, "total_tokens": 2}
TWICE_USED: Any = {"input_tokens": 2, "output_tokens": 2, "total_tokens": 4}


def say(*replies: Any, log: list[Any] | None = None) -> Any:
    """Gives one reply after the other; ``log`` gets what it was asked."""
    left = list(replies)

    def one(asked: Any) -> Any:
        if log is not None:
            log.append(asked)
        reply = left.pop(0)
        if isinstance(reply, Exception):
            raise reply
        return AIMessage(reply, usage_metadata=USED) if isinstance(reply, str) else reply

    return RunnableLambda(one)


def raw(text: str, **more: Any) -> dict[str, Any]:
    """As LangChain gives a structured reply with ``include_raw=True``."""
    return {"raw": AIMessage(text, usage_metadata=USED, **more), "parsed": None, "parsing_error": None}


def ask(judge: Judge) -> JudgeReply[Any]:
    return judge.ask(ASKED, lambda data: data if data.get("ok") else None, {})


def test_a_reply_that_can_be_used_is_enough() -> None:
    log: list[Any] = []
    assert ask(Judge(say(GOOD), say(log=log), True)) == ({"ok": True}, USED, "")
    assert ask(Judge(say(raw(GOOD)), say(log=log), True)) == ({"ok": True}, USED, "")
    assert not log


@pytest.mark.parametrize("error", [TimeoutError(), ValueError("x"), ConnectionError(), NotImplementedError()])
def test_what_the_model_raises_is_raised_at_once(error: Exception) -> None:
    log: list[Any] = []
    judge = Judge(say(error), say(GOOD, log=log), True)
    with pytest.raises(type(error)):
        ask(judge)
    with pytest.raises(type(error)):
        asyncio.run(Judge(say(error), say(GOOD, log=log), True).aask(ASKED, lambda data: data, {}))
    assert not log


@pytest.mark.parametrize("reply", [{"ok": True}, {"raw": GOOD}, [GOOD], None, HumanMessage(GOOD), raw(GOOD) | {"x": 1}])
def test_what_is_neither_a_text_nor_a_models_message_is_a_type_error(reply: Any) -> None:
    with pytest.raises(TypeError, match=f"expected it to return a str or an AIMessage, got {type(reply).__name__}"):
        ask(Judge(say(reply), say(GOOD), True))


def test_an_unusable_reply_is_asked_for_again_only_with_retry() -> None:
    log: list[Any] = []
    assert ask(Judge(say(raw("{}")), say(GOOD, log=log), True)) == ({"ok": True}, TWICE_USED, "")
    assert [message.content for message in log[0]] == ["Judge.", AGAIN]
    assert ask(Judge(say("x"), say(GOOD), False)) == (None, USED, "")


def test_never_more_than_two_replies() -> None:
    log: list[Any] = []
    assert ask(Judge(say("x", "y", log=log), say("z", GOOD, log=log), True)) == (None, TWICE_USED, "")
    assert len(log) == 2


@pytest.mark.parametrize(
    "declined", [{"additional_kwargs": {"refusal": "I cannot."}}, {"response_metadata": {"stop_reason": "refusal"}}]
)
def test_a_model_that_declines_is_not_asked_again(declined: dict[str, Any]) -> None:
    log: list[Any] = []
    assert ask(Judge(say(raw("", **declined)), say(GOOD, log=log), True)).found is None
    assert not log


def test_a_reply_that_openais_client_finds_cut_off_is_unclear_and_no_failure() -> None:
    class LengthFinishReasonError(Exception):
        pass

    assert ask(Judge(say(LengthFinishReasonError()), say(GOOD), False)) == (None, None, "")
    assert ask(Judge(say(LengthFinishReasonError()), say(GOOD), True)) == ({"ok": True}, USED, "")


def test_the_name_that_the_last_reply_gives_its_model_is_kept() -> None:
    named = AIMessage(GOOD, response_metadata={"model_name": "judge-2"})
    assert ask(Judge(say(named), say(), True)).model == "judge-2"
    assert ask(Judge(say("x"), say(named), True)).model == "judge-2"


def test_awaited_it_is_the_same() -> None:
    judge = Judge(say(raw("{}")), say(GOOD), True)
    found = asyncio.run(judge.aask(ASKED, lambda data: data if data.get("ok") else None, {}))
    assert found == ({"ok": True}, TWICE_USED, "")


def test_a_model_without_structured_output_is_asked_in_plain_words() -> None:
    model = Fake(intellect=GOOD)
    assert ask(Judge.of(model, {"title": "t", "type": "object", "properties": {}}, retry=False)).found == {"ok": True}
    assert len(model.asked("intellect")) == 1
