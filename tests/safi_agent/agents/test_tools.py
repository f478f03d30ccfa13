"""Which calls are allowed, with which arguments."""

import json
from collections import deque
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from langchain.agents import create_agent
from langchain.agents.structured_output import ProviderStrategy, ToolStrategy
from pydantic import AfterValidator, BaseModel, Field

from safi_agent import ToolRule, Value, ValueSet
from safi_agent.agents.replies import call_draft
from safi_agent.agents.tools import allowed_only, check_call, iter_texts, read_rules
from safi_agent.faculties.will import rules
from safi_agent.tool_calls import call_text
from tests.safi_agent.agents.calling import Calling, Tools, ask, both, call, calls
from tests.safi_agent.agents.calling import texts as said
from tests.safi_agent.fakes import in_turn
from tests.safi_agent.invisible_characters import HIDDEN


def code(made: Any, allowed: Any, known: Any = ("pay", "search")) -> str | None:
    verdict = check_call(made, read_rules(allowed), known)
    return verdict.code if verdict else None


def holds(kind: Any, *value: Any) -> bool:
    made = call("pay", **({"x": value[0]} if value else {}))
    return code(made, [ToolRule("pay", {"x": kind})]) is None


def test_a_call_must_name_a_known_and_allowed_tool() -> None:
    assert code(call("pay"), None) is None
    assert code(call("pay"), ["pay"]) is None
    assert code(call("pay"), ["search"]) == "tool_not_allowed"
    assert code(call("pay"), []) == "tool_not_allowed"
    for name in ("Pay", "pay ", "\uff50ay", ""):
        assert code(call(name), ["pay"]) == "tool_unknown"
    assert code(call("pay"), ["pay"], known=["search"]) == "tool_unknown", "a rule grants nothing that is not there"


def by_hand(x: object) -> bool:
    raise KeyError(x)


POSITIVE = Annotated[float, Field(gt=0, le=100)]


@pytest.mark.parametrize(
    ("kind", "value", "expected"),
    [
        (POSITIVE, 100, True),
        (POSITIVE, 100.5, False),
        (POSITIVE, 0, False),
        (POSITIVE, "5", False),
        (POSITIVE, True, False),
        (POSITIVE, float("nan"), False),
        (POSITIVE, float("inf"), False),
        (POSITIVE, [5], False),
        (Literal["EUR"], "EUR", True),
        (Literal["EUR"], "EUR ", False),
        (Annotated[str, Field(pattern=r"^[a-z]+@home\.ch$")], "a@home.ch", True),
        (Annotated[str, Field(pattern=r"^[a-z]+@home\.ch$")], "a@home.ch\nb@away.ch", False),
        (Annotated[str, AfterValidator(by_hand)], "any", False),
        (int | None, None, False),
        (list[Literal["a", "b"]], ["a", "c"], False),
        (str, object(), False),
    ],
)
def test_arguments_are_checked_against_their_types(kind: Any, value: Any, expected: bool) -> None:
    assert holds(kind, value) is expected


def test_an_argument_that_is_named_must_be_there() -> None:
    assert not holds(str)
    assert holds(str, "")


def test_a_denial_quotes_nothing_of_the_call() -> None:
    verdict = check_call(call("pay", to="canary"), read_rules([ToolRule("pay", {"to": Literal["Ann"]})]), ["pay"])
    assert verdict is not None
    assert verdict.reason == "to: missing, or not what is allowed."
    unknown = check_call(call("canary"), read_rules(["pay"]), ["pay", "search"])
    assert unknown is not None
    assert unknown.reason == "There is no such tool. There are: pay."


def test_only_allowed_tools_are_offered() -> None:
    described = {"type": "function", "function": {"name": "pay"}}
    assert allowed_only([described, {"type": "web_search"}], read_rules(["pay"])) == [described]
    assert allowed_only([described, {"type": "web_search"}], None) == [described, {"type": "web_search"}]
    assert allowed_only([described], read_rules([])) == []


@pytest.mark.parametrize(
    ("allowed", "error", "said"),
    [
        ("pay", TypeError, "expected a list of names"),
        (5, TypeError, "expected a list of names"),
        ([("pay", {})], TypeError, "expected names and ToolRules"),
        ([ToolRule("pay", ["x"])], TypeError, "expected names and ToolRules"),  # type: ignore[arg-type]
        ([ToolRule("pay", {"x": 5})], TypeError, "a type that pydantic can check for 'x' of 'pay', got 5"),
        ([ToolRule("pay", {"to": "Ann"})], TypeError, "a type that pydantic can check for 'to' of 'pay', got 'Ann'"),
        (["pay", "pay"], ValueError, "unique, non-empty names, got 'pay'"),
        ([""], ValueError, "unique, non-empty names, got ''"),
    ],
)
def test_rules_that_cannot_be_meant_are_refused(allowed: Any, error: type[Exception], said: str) -> None:
    with pytest.raises(error, match=said):
        read_rules(allowed)


def vetoing(*patterns: str) -> ValueSet:
    return ValueSet(name="vetoing", values=(Value(name="A", weight=1, vetoes=patterns),), refusal="No.")


def vetoed(made: Any, *patterns: str) -> bool:
    verdict = rules(call_draft(made), vetoing(*patterns))
    return verdict is not None and verdict.code == "hard_veto"


@pytest.mark.parametrize(
    ("text", "pattern"),
    [
        ("\nguaranteed", r"\bguaranteed\b"),
        ("\tguaranteed", r"(?<!\w)guaranteed"),
        ("guaranteed\n", r"^guaranteed$"),
        ("guaranteed", r"^guaranteed$"),
        ("really guaranteed", r"guaranteed$"),
        ('say "guaranteed"', r'"guaranteed"$'),
        ("a\\b", r"^a\\b$"),
        ("$5", r"^\$5$"),
        ("a\nb", r"a\nb"),
        ("a\n\nguaranteed", r"(?m)^guaranteed"),
        ("\b\f\x00guaranteed", r"^guaranteed"),
        ("\u2028guaranteed", r"\sguaranteed"),
        ("guar\u034fanteed", r"^guaranteed$"),
    ],
)
@pytest.mark.parametrize(
    "placed",
    [
        lambda text: {"q": text},
        lambda text: {text: 1},
        lambda text: {"q": [[], [{"a": text}]]},
        lambda text: {"q": {"a": {"b": (1, {text})}}},
        lambda text: {"q": text.encode()},
        lambda text: {("a", text): 1},
    ],
    ids=["value", "key", "nested", "set", "bytes", "in a key that JSON has not"],
)
def test_a_veto_is_tried_on_every_text_of_the_arguments(text: str, pattern: str, placed: Any) -> None:
    made = {**call("search"), "args": placed(text)}
    assert vetoed(made, pattern)
    assert not vetoed({**call("search"), "args": placed("good")}, pattern)


def test_it_is_tried_on_the_name_on_numbers_and_on_the_whole() -> None:
    assert vetoed(call("wire_money"), r"^wire_money$")
    assert vetoed(call("pay", card=4111111111111111), r"^4\d{15}$")
    assert vetoed(call("pay", ok=True, at=0.5), r"^true$")
    assert vetoed(call("pay", ok=True, at=0.5), r"^0\.5$")
    assert vetoed(call("pay", to="Ann", amount=500), r'"tool": "pay".*"amount": 500')


@pytest.mark.slow
def test_no_character_that_is_not_drawn_evades_a_veto_on_arguments() -> None:
    missed = [c for c in HIDDEN if not vetoed(call("search", q=f"{c}guar{c}anteed"), r"^guaranteed$")]
    assert missed == []


leaves = st.text() | st.integers() | st.booleans() | st.none() | st.floats(allow_nan=False)
trees = st.recursive(leaves, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=10)


@pytest.mark.slow
@given(trees)
def test_the_texts_are_all_strings_and_keys_that_json_has(tree: Any) -> None:
    def read(item: Any) -> list[str]:
        if isinstance(item, dict):
            return [text for key, value in item.items() for text in (key, *read(value))]
        if isinstance(item, list):
            return [text for value in item for text in read(value)]
        return [] if item is None else [item if isinstance(item, str) else json.dumps(item)]

    assert [*iter_texts(tree)] == read(json.loads(json.dumps(tree)))


class Person(BaseModel):
    name: str


@dataclass
class Place:
    city: str


class Mute:
    def __str__(self) -> str:
        raise RuntimeError


def test_texts_of_what_is_not_of_json() -> None:
    assert [*iter_texts({"a": Person(name="Ann"), "b": Place("Bern")})] == ["a", "name", "Ann", "b", "city", "Bern"]
    assert [*iter_texts([deque(["x"]), b"y\xff", bytearray(b"z"), Mute(), 1 + 2j])] == [
        "x",
        "y\ufffd",
        "z",
        "<Mute>",
        "(1+2j)",
    ]
    assert [*iter_texts(10**5000)] == ["<int>"]
    assert [*iter_texts(Person)] == [str(Person)]


def test_arguments_without_end_are_read_once() -> None:
    loop: dict[str, Any] = {"q": "guaranteed"}
    loop["self"] = loop
    deep: Any = "guaranteed"
    for _ in range(50_000):
        deep = [deep]
    for args in (loop, {"q": deep}):
        made = {**call("search"), "args": args}
        assert "guaranteed" in call_text(made)  # type: ignore[arg-type]
        assert vetoed(made, r"^guaranteed$")


@both
def test_a_call_with_a_vetoed_argument_is_not_made(govern: Any, awaited: bool) -> None:
    tools = Tools()
    model = Calling(
        intellect=in_turn(calls(call("search", "a", q="\nguaranteed"), call("search", "b", q="ok")), "Done.")
    )
    agent = create_agent(model, tools.of(), middleware=[govern(values=vetoing(r"\bguaranteed\b"))])
    ask(agent, awaited)
    assert tools.did == ["search ok"]


class Note(BaseModel):
    """A note."""

    words: str


@pytest.mark.parametrize(
    ("strategy", "words", "awaited"),
    [
        (ToolStrategy, "\nguaranteed", False),
        (ToolStrategy, "guaranteed", True),
        (ToolStrategy, "\x01guar\u034fanteed", False),
        (ProviderStrategy, "\nguaranteed", True),
        (ProviderStrategy, "guaranteed", False),
        (ProviderStrategy, "\x01guar\u034fanteed", True),
    ],
)
def test_structured_output_with_a_vetoed_text_does_not_leave(
    govern: Any, awaited: bool, strategy: Any, words: str
) -> None:
    for text, passes in ((words, False), ("good", True)):
        made = call("Note", "n", words=text)
        escaped = json.dumps(made["args"]).replace("g", "\\u0067")
        model = Calling(intellect=calls(made) if strategy is ToolStrategy else escaped)
        middleware = govern(values=vetoing(r"^\s*guaranteed$"))
        out = ask(create_agent(model, [], response_format=strategy(Note), middleware=[middleware]), awaited)
        if passes:
            assert out["structured_response"] == Note(words="good")
        else:
            assert out.get("structured_response") is None
            assert said(out)[-1] == "No."
