"""The names that the config gives to a turn and to a memory, and what several turns under one name get as ids."""

import asyncio
import random
from itertools import permutations
from pathlib import Path
from typing import Any

import pytest
from langchain_core.messages import AIMessage, HumanMessage, SystemMessage
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.runnables import RunnableLambda, RunnableParallel
from langgraph.graph import START, MessagesState, StateGraph

from safi_agent.idempotency import turn_name
from safi_agent.release import is_same_turn
from tests import forked
from tests.safi_agent.fakes import THREE, Fake, in_turn
from tests.safi_agent.log_lines import lines

NAMED: Any = {"configurable": {"safi_turn_id": "req-1"}}


def counting() -> Fake:
    """Its answers are numbered, so that an answer that is given again is known by its number."""
    numbers = iter(range(1, 1000))
    return Fake(intellect=lambda _: f"Answer {next(numbers)}.")


def turn_id(message: AIMessage) -> str:
    return str(message.response_metadata["safi"]["turnId"])


def test_a_turn_id_answers_once(make: Any) -> None:
    model = Fake(intellect=in_turn("First.", "Second."))
    safi = make(model)
    config: Any = {"configurable": {"safi_turn_id": "x"}}
    assert [safi.invoke("a", config).content for _ in range(3)] == ["First."] * 3
    assert len(model.asked("intellect")) == 1
    assert safi.drain() == 1


def test_two_at_once_with_one_turn_id_get_one_answer(make: Any) -> None:
    safi = make(Fake(intellect=in_turn(*[f"Answer {i}." for i in range(8)]), delay=0.02))
    config: Any = {"configurable": {"safi_turn_id": "x"}}
    answers = {m.content for m in safi.batch(["a"] * 8, [config] * 8)}
    assert len(answers) == 1
    assert safi.drain() == 1


@pytest.mark.parametrize("argument", ["safi_key", "safi_turn_id"])
def test_names_in_the_config_are_checked(make: Any, argument: str) -> None:
    safi = make()
    for name in ("", 3, None, "a\nb", "x" * 201, "a\u200b", "a\u3164", "a\ufe0f", "\u034fa", "a\u2800"):
        with pytest.raises(ValueError, match=f"{argument}: expected 1 to 200 printable characters, got"):
            safi.invoke("a", {"configurable": {argument: name}})


def test_keys_have_memories_of_their_own(make: Any, tmp_path: Path) -> None:
    safi = make()
    for key in ("a", "b", "a"):
        safi.invoke("x", {"configurable": {"safi_key": key}})
    safi.drain()
    found = {(r["memoryKey"], r["turn"], r["muTurn"]) for r in lines(tmp_path / "log.json")}
    assert found == {("a", 1, 1), ("b", 1, 1), ("a", 2, 2)}


@pytest.mark.parametrize("awaited", [False, True])
def test_a_batch_under_one_name_is_answered_prompt_by_prompt_and_again_from_the_store(make: Any, awaited: bool) -> None:
    safi, prompts = make(counting()), ["a", "b", "c", "b"]

    def ask(given: list[str]) -> dict[str, str]:
        answers = asyncio.run(safi.abatch(given, NAMED)) if awaited else safi.batch(given, NAMED)
        return {prompt: str(answer.content) for prompt, answer in zip(given, answers, strict=True)}

    first = ask(prompts)
    assert len(set(first.values())) == 3
    for order in permutations("abc"):
        assert ask(list(order)) == first
    assert safi.drain() == 3


def test_the_ids_of_a_batch_are_the_name_and_ids_that_begin_with_it(make: Any, tmp_path: Path) -> None:
    safi = make(counting())
    ids = [turn_id(answer) for answer in safi.batch(["a", "b", "c"], NAMED)]
    assert len(set(ids)) == 3
    assert "req-1" in ids
    assert all(one == "req-1" or one.startswith("req-1/") for one in ids)
    safi.drain()
    assert sorted(record["turnId"] for record in lines(tmp_path / "log.json")) == sorted(ids)


@pytest.mark.slow
def test_whoever_is_asked_first_after_a_crash_each_prompt_keeps_its_answer(make: Any) -> None:
    """Some of the turns are stored, then the whole is done again in another order; a dict says what must come."""
    prompts, rng = [f"p{n}" for n in range(6)], random.Random(7)
    for trial in range(4):
        safi, known, config = make(counting()), {}, {"configurable": {"safi_turn_id": f"t{trial}"}}
        for _ in range(4):
            for prompt in rng.sample(prompts, rng.randint(1, 6)):
                answer = safi.invoke(prompt, config).content
                assert known.setdefault(prompt, answer) == answer
        assert len(set(known.values())) == len(known)


def test_two_at_once_with_one_name_and_other_prompts_get_their_own_answers(make: Any) -> None:
    model = Fake(intellect=lambda asked: f"On {asked[-1]}.", delay=0.02)
    safi = make(model)
    given = list("abcdabcd")
    answers = [str(m.content) for m in safi.batch(given, NAMED)]
    assert answers == [f"On {prompt}." for prompt in given]
    assert [str(m.content) for m in safi.batch(given[::-1], NAMED)] == answers[::-1]
    assert safi.drain() == 4


def test_another_key_value_set_or_system_prompt_is_another_turn(make: Any) -> None:
    model = counting()
    one, other = make(model), make(model, THREE.model_copy(update={"name": "other"}))
    keyed: Any = {"configurable": {"safi_turn_id": "req-1", "safi_key": "k"}}
    answers = [
        *(one.invoke("q", NAMED), one.invoke("q", keyed), other.invoke("q", NAMED), other.invoke("q", keyed)),
        one.invoke([("system", "In French."), ("human", "q")], NAMED),
        one.invoke([("human", "What?"), ("ai", "That."), ("human", "q")], NAMED),
    ]
    assert len({message.content for message in answers}) == len(answers)


def test_two_nodes_of_a_graph_are_two_turns_and_are_found_again(make: Any) -> None:
    model = counting()
    safi = make(model)
    node = RunnableLambda(lambda state: state["messages"]) | safi | (lambda message: {"messages": [message]})
    graph = StateGraph(MessagesState).add_node("draft", node).add_node("improve", node).add_edge(START, "draft")
    compiled = graph.add_edge("draft", "improve").compile()
    for _ in range(2):
        out = compiled.invoke({"messages": [HumanMessage("q")]}, NAMED)
        assert [m.content for m in out["messages"]] == ["q", "Answer 1.", "Answer 2."]
    assert len(model.asked("intellect")) == 2
    assert turn_id(out["messages"][1]) == "req-1"


def test_a_node_that_is_gone_through_again_with_more_said_is_another_turn(make: Any) -> None:
    model = counting()
    safi = make(model)

    def revise(state: Any) -> Any:
        return {"messages": [safi.invoke(state["messages"]), HumanMessage("Please revise.")]}

    graph = StateGraph(MessagesState).add_node("revise", revise).add_edge(START, "revise")
    graph.add_conditional_edges("revise", lambda state: "revise" if len(state["messages"]) < 7 else "__end__")
    for _ in range(2):
        out = graph.compile().invoke({"messages": [HumanMessage("q")]}, NAMED)
        assert [m.content for m in out["messages"]][1::2] == ["Answer 1.", "Answer 2.", "Answer 3."]


def test_branches_side_by_side_are_told_apart_by_their_prompts(make: Any) -> None:
    safi = make(counting())
    asked = {name: ChatPromptTemplate([("system", name), ("human", "{q}")]) | safi for name in ("French", "German")}
    both: Any = RunnableParallel(**asked)
    first, second = both.invoke({"q": "x"}, NAMED), both.invoke({"q": "x"}, NAMED)
    assert first["French"].content != first["German"].content
    assert {k: m.content for k, m in first.items()} == {k: m.content for k, m in second.items()}


def test_a_request_that_is_sent_again_after_its_own_answer_is_the_same(make: Any) -> None:
    """As a message history has it: the first attempt and its answer stand before the second."""
    model = counting()
    safi = make(model)
    before = [SystemMessage("s"), HumanMessage("Hi"), AIMessage("Hello")]
    for attempts in range(3):
        tried = [HumanMessage("q"), AIMessage("Answer 1.")] * attempts
        assert safi.invoke([*before, *tried, HumanMessage("q")], NAMED).content == "Answer 1."
    assert safi.invoke([*before, HumanMessage("q"), AIMessage("Answer 1."), HumanMessage("r")], NAMED).content != (
        "Answer 1."
    )


def test_inside_a_governed_answer_another_one_gets_an_id_of_its_own(make: Any, tmp_path: Path) -> None:
    for awaited in (False, True):
        inner_model = counting()
        inner = make(inner_model)

        def thinks(messages: Any, inner: Any = inner) -> str:
            return f"Outer, after {inner.invoke(str(messages[-1].text)).content}"

        outer = make(RunnableLambda(thinks), will_model=Fake(), conscience_model=Fake())
        config: Any = {"configurable": {"safi_turn_id": f"req-{awaited}"}}
        for _ in range(2):
            answer = asyncio.run(outer.ainvoke("q", config)) if awaited else outer.invoke("q", config)
            assert (answer.content, turn_id(answer)) == ("Outer, after Answer 1.", f"req-{awaited}")
        assert len(inner_model.asked("intellect")) == 1
        outer.drain()
    ids = [record["turnId"] for record in lines(tmp_path / "log.json")]
    assert len(set(ids)) == len(ids) == 4


@pytest.mark.slow
def test_a_process_that_crashed_amid_a_batch_is_followed_by_one_that_finds_what_was_stored(tmp_path: Path) -> None:
    program = """
import os, sys
from safi_agent import create_safi_chain
from tests.safi_agent.fakes import THREE, Fake
made, crash = sys.argv[1], sys.argv[2] == "crash"
def says(asked):
    prompt = asked.splitlines()[-1]
    if crash and prompt == "c":
        os._exit(3)
    return f"{prompt} of {made}"
with create_safi_chain(Fake(intellect=says), THREE, store="sqlite:///s.db", log=None) as safi:
    named = {"configurable": {"safi_turn_id": "t"}}
    print(*[safi.invoke(p, named).content for p in (["a", "b", "c"] if crash else ["c", "b", "a", "c"])], sep="|")
"""
    runs = [forked.run(program, *words, cwd=tmp_path) for words in (["first", "crash"], ["second", ""])]
    assert [run.returncode for run in runs] == [3, 0], runs[1].stderr
    assert runs[1].stdout.strip() == "c of second|b of first|a of first|c of second"


def test_a_turn_that_was_not_named_is_found_by_its_id_with_its_prompt_and_key(make: Any) -> None:
    safi = make(counting())
    named: Any = {"configurable": {"safi_turn_id": turn_id(safi.invoke("a"))}}
    assert [safi.invoke(prompt, named).content for prompt in "aba"] == ["Answer 1.", "Answer 2.", "Answer 1."]


def test_what_an_older_version_stored_is_told_by_prompt_and_key() -> None:
    turn: Any = {"prompt": "a", "key": "k", "asked": "req-1/0"}
    assert is_same_turn({"prompt": "a", "key": "k"}, turn)
    assert not is_same_turn({"prompt": "b", "key": "k"}, turn)
    assert not is_same_turn({"prompt": "a", "key": "l"}, turn)


def test_ids_that_langchain_makes_up_for_blocks_do_not_make_another_turn() -> None:
    def name(made_up: str, picture: str = "p") -> Any:
        blocks: Any = [{"type": "text", "text": "q", "id": made_up}, {"type": "image", "url": picture, "id": "own"}]
        return turn_name(NAMED, [HumanMessage(blocks)], "k", "v")

    assert name("lc_1") == name("lc_2")
    assert name("lc_1").spare != name("lc_1", "other").spare
