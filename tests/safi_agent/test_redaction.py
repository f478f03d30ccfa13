"""Redaction: what the function of the operator removes is never stored, and nothing is stored if it fails."""

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
from langchain.agents import create_agent
from langchain.agents.middleware import after_model
from langchain.agents.middleware.pii import detect_email
from langchain.agents.structured_output import ToolStrategy
from langchain_core.messages import AIMessage, HumanMessage
from pydantic import BaseModel

from safi_agent import RedactionError
from safi_agent.redaction import CONTENTS, redact_body, redacted
from tests.safi_agent.agents.calling import Calling, ask, both, call, calls, records
from tests.safi_agent.fakes import Fake, approve, ledger
from tests.safi_agent.log_lines import lines
from tests.safi_agent.reachable_objects import found

ADDRESS = "ada@example.org"


def redact(text: str) -> str:
    for match in reversed(detect_email(text)):
        text = f"{text[: match['start']]}[email]{text[match['end'] :]}"
    return text


def files(folder: Path) -> bytes:
    return b"".join(file.read_bytes() for file in folder.rglob("*") if file.is_file())


def test_what_is_redacted_is_in_no_file_and_the_caller_gets_the_answer(make: Any, tmp_path: Path) -> None:
    reason = json.dumps({"decision": "approve", "reason": f"{ADDRESS} may be told", "gates": []})
    judge = Fake(
        intellect=f"Write to {ADDRESS}.\n<reflection>It is {ADDRESS}.</reflection>",
        will=reason,
        conscience=lambda asked: ledger().replace('"so"', json.dumps("told" if ADDRESS in asked else "redacted")),
    )
    safi = make(judge, redact=redact)
    earlier = [HumanMessage(f"I am {ADDRESS}."), AIMessage("Hello."), HumanMessage(f"Who is {ADDRESS}?")]
    answer = safi.invoke({"prompt": earlier, "metadata": {"who": [ADDRESS, {ADDRESS: 1}]}})
    safi.drain()
    assert answer.text == f"Write to {ADDRESS}."
    assert ADDRESS.encode() not in files(tmp_path)
    (record,) = lines(tmp_path / "log.json")
    assert record["userPrompt"] == "Who is [email]?"
    assert record["finalOutput"] == record["intellectDraft"] == "Write to [email]."
    assert record["intellectReflection"] == "It is [email]."
    assert record["willReflection"] == "[email] may be told"
    assert record["metadata"] == {"who": ["[email]", {"[email]": 1}]}
    assert {row["reason"] for row in record["conscienceLedger"]} == {"redacted"}
    assert any(ADDRESS in str(message.text) for asked in judge.asked("will") for message in asked)


def test_without_the_function_the_address_is_stored(make: Any, tmp_path: Path) -> None:
    safi = make()
    safi.invoke(f"Who is {ADDRESS}?")
    safi.drain()
    assert ADDRESS.encode() in files(tmp_path)


def wrong(text: str) -> str:
    raise ValueError(text)


@pytest.mark.parametrize(("function", "cause"), [(wrong, "ValueError"), (lambda _: None, "NoneType")])
@pytest.mark.parametrize("awaited", [False, True])
def test_nothing_is_stored_if_the_function_fails(
    function: Any, cause: str, awaited: bool, make: Any, tmp_path: Path
) -> None:
    safi = make(redact=function)
    with pytest.raises(RedactionError, match=f"got {cause}. The answer is withheld") as raised:
        asyncio.run(safi.ainvoke(f"Who is {ADDRESS}?")) if awaited else safi.invoke(f"Who is {ADDRESS}?")
    assert (raised.value.cause, raised.value.__context__, raised.value.__cause__) == (cause, None, None)
    assert not found(raised.value, "An answer", __file__)
    safi.drain()
    assert ADDRESS.encode() not in files(tmp_path)
    assert not (tmp_path / "log.json").exists()


def test_a_turn_without_a_draft_is_not_stored_either_if_the_function_fails(make: Any, tmp_path: Path) -> None:
    safi = make(Fake(intellect=OSError("down")), redact=wrong)
    with pytest.raises(Exception, match="OSError"):
        safi.invoke(f"Who is {ADDRESS}?")
    safi.drain()
    assert ADDRESS.encode() not in files(tmp_path)


def test_a_repeated_request_is_answered_from_the_store(make: Any) -> None:
    judge = Fake(intellect=f"Write to {ADDRESS}.")
    safi = make(judge, redact=redact)
    config: Any = {"configurable": {"safi_turn_id": "once"}}
    first, again = (safi.invoke(f"Who is {ADDRESS}?", config) for _ in range(2))
    assert (first.text, again.text) == (f"Write to {ADDRESS}.", "Write to [email].")
    assert len(judge.asked("intellect")) == 1


class Contact(BaseModel):
    """Somebody to write to."""

    address: str


@both
@pytest.mark.parametrize("structured", [False, True])
def test_an_agents_answer_is_released_once(govern: Any, tmp_path: Path, structured: bool, awaited: bool) -> None:
    """The middleware compares the final answer with the released one, whose contents were redacted."""
    middleware = govern(Fake(will=approve()), redact=redact)
    reply = calls(call("Contact", "c", address=ADDRESS)) if structured else f"Write to {ADDRESS}."
    model = Calling(intellect=reply)
    agent = create_agent(
        model, [], middleware=[middleware], response_format=ToolStrategy(Contact) if structured else None
    )
    out = ask(agent, awaited, f"Who is {ADDRESS}?")
    middleware.drain()
    if structured:
        assert out["structured_response"] == Contact(address=ADDRESS)
    else:
        assert out["messages"][-1].text == f"Write to {ADDRESS}."
    (record,) = records(tmp_path)
    assert record["userPrompt"] == "Who is [email]?"
    assert ADDRESS.encode() not in files(tmp_path)


@both
def test_an_answer_that_was_changed_afterwards_is_governed_again(govern: Any, tmp_path: Path, awaited: bool) -> None:
    @after_model
    def change(state: Any, runtime: Any) -> Any:
        last = state["messages"][-1]
        return {"messages": [last.model_copy(update={"content": f"{last.content} Changed."})]}

    middleware = govern(Fake(will=approve()), redact=redact)
    agent = create_agent(Calling(intellect=f"Write to {ADDRESS}."), [], middleware=[middleware, change])
    ask(agent, awaited)
    middleware.drain()
    assert [record["finalOutput"] for record in records(tmp_path)] == [
        "Write to [email].",
        "Write to [email]. Changed.",
    ]


@both
@pytest.mark.parametrize("structured", [False, True])
@pytest.mark.parametrize("function", [redact, lambda _: "[all]"])
def test_a_change_within_a_redacted_part_is_governed_again(
    function: Any, structured: bool, govern: Any, awaited: bool
) -> None:
    """The stored answers are identical, so that only the signature of the original tells them apart."""
    forged = "fraud@evil.example"

    @after_model
    def change(state: Any, runtime: Any) -> Any:
        if structured:
            return {"structured_response": Contact(address=forged)}
        last = state["messages"][-1]
        return {"messages": [last.model_copy(update={"content": last.content.replace(ADDRESS, forged)})]}

    judge = Fake(will=approve())
    middleware = govern(judge, redact=function)
    reply = calls(call("Contact", "c", address=ADDRESS)) if structured else f"Write to {ADDRESS}."
    form = ToolStrategy(Contact) if structured else None
    agent = create_agent(Calling(intellect=reply), [], middleware=[middleware, change], response_format=form)
    ask(agent, awaited)
    middleware.drain()
    assert [forged in str(asked[-1].text) for asked in judge.asked("will")] == [False, True]


@pytest.mark.parametrize("structured", [False, True])
def test_without_a_change_the_answer_is_judged_once(structured: bool, govern: Any) -> None:
    """Also where the redaction leaves nothing of a text, fingerprints included."""
    judge = Fake(will=approve())
    reply = calls(call("Contact", "c", address=ADDRESS)) if structured else f"Write to {ADDRESS}."
    form = ToolStrategy(Contact) if structured else None
    middleware = govern(judge, redact=lambda _: "[all]")
    ask(create_agent(Calling(intellect=reply), [], middleware=[middleware], response_format=form), False)
    middleware.drain()
    assert len(judge.asked("will")) == 1


@pytest.mark.parametrize("given", [1, "redact", [redact]])
def test_what_is_no_function_is_refused(given: Any, make: Any) -> None:
    with pytest.raises(TypeError, match="redact: expected a synchronous function of a text or None"):
        make(redact=given)


def test_a_coroutine_function_is_refused(make: Any) -> None:
    async def later(text: str) -> str:
        return text

    with pytest.raises(TypeError, match="redact: expected a synchronous function of a text or None, got later"):
        make(redact=later)


def test_only_texts_of_contents_are_redacted() -> None:
    body = {name: ADDRESS for name in CONTENTS} | {"id": ADDRESS, "asked": ADDRESS, "models": {}, "flags": [ADDRESS]}
    assert redact_body(body, redact) == {**body, **{name: "[email]" for name in CONTENTS}}
    assert redacted({"a": [1, None, True, 0.5, (ADDRESS,)]}, redact) == {"a": [1, None, True, 0.5, ["[email]"]]}
