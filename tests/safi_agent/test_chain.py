"""The chain as a Runnable, in all the ways in which LangChain uses one."""

import asyncio
import inspect
import json
from pathlib import Path
from typing import Any

import pytest
from langchain_core.messages import AIMessage, HumanMessage, SystemMessage
from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.runnables import RunnableLambda, RunnableParallel
from langgraph.graph import START, MessagesState, StateGraph

from safi_agent import IntellectError, OutboxError, SafiChain, SafiMiddleware, ViolationError, create_safi_chain
from tests.safi_agent.fakes import GATED, THREE, VIOLATION, Fake, approve, in_turn, ledger
from tests.safi_agent.log_lines import lines


def test_an_approved_answer_leaves_and_its_audit_is_in_the_log(make: Any, tmp_path: Path) -> None:
    safi = make()
    message = safi.invoke("Why?", config={"configurable": {"safi_turn_id": "t-1"}})
    assert isinstance(message, AIMessage)
    assert message.content == "An answer."
    assert message.response_metadata["safi"] == {
        "turn": 1,
        "turnId": "t-1",
        "willDecision": "approve",
        "auditStatus": "pending",
        "valueSet": "three",
        "memoryKey": "three",
        "models": {"intellect": "fake", "will": "fake", "conscience": "fake"},
        "flags": [],
    }
    assert safi.drain() == 1
    assert safi.drain() == 0
    (record,) = lines(tmp_path / "log.json")
    assert list(record)[:12] == [
        "timestamp",
        "turn",
        "userPrompt",
        "intellectDraft",
        "intellectReflection",
        "finalOutput",
        "willDecision",
        "willReflection",
        "conscienceLedger",
        "spiritScore",
        "drift",
        "spiritReflection",
    ]
    assert record["intellectReflection"] == "Because."
    assert record["auditStatus"] == "complete"
    assert record["spiritScore"] == 7
    assert record["conscienceLedger"][0] == {"value": "Truth", "score": 0.5, "confidence": 0.8, "reason": "so"}
    assert record["mu"] == pytest.approx({"truth": 0.025, "care": 0.015, "thrift": 0.01})


def test_a_refusal_is_the_fixed_text_and_gets_a_line_of_the_same_keys(make: Any, tmp_path: Path) -> None:
    safi = make(Fake(will=in_turn(VIOLATION, approve())))
    refused, _ = safi.invoke("a"), safi.invoke("b")
    assert refused.content == "No."
    assert refused.response_metadata["safi"]["willDecision"] == "violation"
    assert refused.response_metadata["safi"]["auditStatus"] == "none"
    assert safi.drain() == 1
    violation, approved = lines(tmp_path / "log.json")
    assert list(violation) == list(approved)
    assert violation["intellectDraft"] is violation["intellectReflection"] is None
    assert violation["finalOutput"] == "No."
    assert violation["willReflection"] == "it breaks a value"
    assert violation["conscienceLedger"] == []
    assert [violation[k] for k in ("spiritScore", "drift", "spiritReflection", "driftRaw")] == [None] * 4
    assert (violation["turn"], violation["muTurn"]) == (1, 0)
    assert (approved["turn"], approved["muTurn"]) == (2, 1)


def test_in_a_sequence_it_is_one_step(make: Any) -> None:
    chain = ChatPromptTemplate([("human", "{q}")]) | make() | StrOutputParser()
    assert chain.invoke({"q": "a"}) == "An answer."
    assert chain.batch([{"q": "a"}, {"q": "b"}]) == ["An answer."] * 2
    assert "".join(chain.stream({"q": "a"})) == "An answer."


async def collect(stream: Any) -> list[Any]:
    return [item async for item in stream]


def test_awaited_it_is_the_same(make: Any) -> None:
    async def all_ways() -> list[str]:
        safi = make()
        chain = safi | StrOutputParser()
        texts = [await chain.ainvoke("a"), *await chain.abatch(["b", "c"])]
        texts.append("".join(await collect(chain.astream("d"))))
        assert await safi.adrain() == 4
        return texts

    assert asyncio.run(all_ways()) == ["An answer."] * 4


def test_retry_fallback_config_and_parallel(make: Any) -> None:
    flaky = make(Fake(intellect=in_turn(RuntimeError("down"), "Back.")))
    tried = flaky.with_retry(retry_if_exception_type=(IntellectError,), wait_exponential_jitter=False)
    assert tried.invoke("a").content == "Back."
    dead = make(Fake(intellect=RuntimeError("down"))).with_fallbacks([RunnableLambda(lambda _: "else")])
    assert dead.invoke("a") == "else"
    strict = make(Fake(will=VIOLATION), raise_on_violation=True)
    with pytest.raises(ViolationError, match=r"^No\.$") as caught:
        strict.invoke("a")
    assert caught.value.metadata["willDecision"] == "violation"
    named = make().with_config(configurable={"safi_key": "mine"})
    assert named.invoke("a").response_metadata["safi"]["memoryKey"] == "mine"
    both = RunnableParallel(one=make(), other=make()).invoke("a")
    assert both["one"].content == both["other"].content


def test_the_chain_works_as_a_node_of_a_graph(make: Any) -> None:
    node = make() | (lambda message: {"messages": [message]})
    graph = StateGraph(MessagesState).add_node("safi", node).add_edge(START, "safi").compile()
    out = graph.invoke({"messages": [HumanMessage("a")]})
    assert [m.content for m in out["messages"]] == ["a", "An answer."]


def test_the_chain_has_input_and_output_schemas(make: Any) -> None:
    safi = make()
    assert "prompt" in json.dumps(safi.get_input_jsonschema())
    assert safi.get_output_jsonschema()["title"] == "AIMessage"
    assert safi.get_name() == "SafiChain"


def test_each_faculty_may_have_its_model(make: Any, tmp_path: Path) -> None:
    one, two, three = Fake(), Fake(), Fake()
    safi = make(one, will_model=two, conscience_model=three)
    safi.invoke("a")
    safi.drain()
    assert [len(m.asked(r)) for m in (one, two, three) for r in ("intellect", "will", "conscience")] == [
        *(1, 0, 0),
        *(0, 1, 0),
        *(0, 0, 1),
    ]


def test_history_and_the_callers_system_prompt_reach_the_intellect_in_one_system_message(make: Any) -> None:
    model = Fake()
    safi = make(model)
    safi.invoke([("system", "Be brief."), ("human", "Hi"), ("ai", "Hello"), ("human", "Why?")])
    (asked,) = model.asked("intellect")
    assert [m.type for m in asked] == ["system", "human", "ai", "human"]
    assert isinstance(asked[0], SystemMessage)
    assert str(asked[0].text).endswith("Be brief.")


def test_a_model_that_fails_is_an_error_without_its_words_and_a_line_in_the_log(make: Any, tmp_path: Path) -> None:
    safi = make(Fake(intellect=RuntimeError("secret words")))
    with pytest.raises(IntellectError, match="RuntimeError") as caught:
        safi.invoke("a")
    assert "secret" not in str(caught.value)
    assert caught.value.__cause__ is caught.value.__context__ is None
    safi.drain()
    (record,) = lines(tmp_path / "log.json")
    assert (record["willDecision"], record["finalOutput"], record["flags"]) == (None, None, ["intellect_failed"])


@pytest.mark.parametrize(("lost", "asked"), [("turns", {}), ("turns", {"safi_turn_id": "t"}), ("memory", {})])
def test_a_store_that_fails_holds_the_answer_back_and_tells_nothing_of_it(
    make: Any, lost: str, asked: dict[str, str]
) -> None:
    safi = make(Fake(intellect="the canary"), store=None)
    with safi._auditor.store.database.transaction() as connection:
        connection.exec_driver_sql(f"DROP TABLE safi_{lost}")
    with pytest.raises(OutboxError, match="could not be made durable") as caught:
        safi.invoke("a canary", {"configurable": asked})
    assert "canary" not in repr(caught.value)
    assert caught.value.__context__ is None


def test_usage_of_both_calls_is_told(make: Any) -> None:
    def spent(text: str, n: int) -> AIMessage:
        return AIMessage(text, usage_metadata={"input_tokens": n, "output_tokens": 1, "total_tokens": n + 1})

    safi = make(Fake(intellect=spent("Yes.", 10), will=spent(approve(), 20)))
    assert safi.invoke("a").usage_metadata == {"input_tokens": 30, "output_tokens": 2, "total_tokens": 32}


def test_gates_and_rules_work_in_the_whole(make: Any) -> None:
    gated = Fake(will=approve(["No Harm"]), conscience=ledger(GATED))
    assert make(gated, GATED).invoke("a").content == "An answer."
    assert make(Fake(will=approve()), GATED).invoke("a").content == "No."


def test_a_disclaimer_is_added_and_audited_and_refusals_carry_it(make: Any, tmp_path: Path) -> None:
    values = THREE.model_copy(update={"disclaimers": ("Not advice.",)})
    safi = make(Fake(will=in_turn(approve(), VIOLATION)), values)
    assert safi.invoke("a").content == "An answer.\n\nNot advice."
    assert safi.invoke("a").content == "No.\n\nNot advice."
    safi.drain()
    assert lines(tmp_path / "log.json")[0]["flags"] == ["disclaimer_added"]


def test_its_repr_is_one_short_line_without_the_password_of_the_store(make: Any, govern: Any) -> None:
    chain = make(store=None, log=None)
    assert str(chain) == repr(chain) == "SafiChain(model='fake', values='three', store=None, log=None)"
    assert repr(govern(store=None, log=None)) == f"SafiMiddleware({chain!r})"
    named = create_safi_chain("offline", "civic", store=None, log=None)
    assert repr(named) == "SafiChain(model='offline', values='civic', store=None, log=None)"


def test_the_factory_the_chain_and_the_middleware_have_the_same_settings_and_defaults() -> None:
    fields = {name: field.default for name, field in SafiChain.model_fields.items() if name != "name"}
    for made in (create_safi_chain, SafiMiddleware):
        given = {name: parameter.default for name, parameter in inspect.signature(made).parameters.items()}
        own = {name: given.pop(name) for name in ("allowed_tools", "judge_calls", "review") if name in given}
        assert given == fields, made
        assert set(own) in (set(), {"allowed_tools", "judge_calls", "review"})
