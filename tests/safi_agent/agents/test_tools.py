"""Which calls are allowed, with which arguments."""

from typing import Annotated, Any, Literal

import pytest
from pydantic import AfterValidator, Field

from safi_agent import ToolRule
from safi_agent.agents.tools import denial, offered, read_rules
from tests.safi_agent.agents.calling import call


def code(made: Any, allowed: Any, known: Any = ("pay", "search")) -> str | None:
    verdict = denial(made, read_rules(allowed), known)
    return verdict.code if verdict else None


def holds(kind: Any, *value: Any) -> bool:
    made = call("pay", **({"x": value[0]} if value else {}))
    return code(made, [ToolRule("pay", {"x": kind})]) is None


def test_names() -> None:
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
def test_arguments(kind: Any, value: Any, expected: bool) -> None:
    assert holds(kind, value) is expected


def test_an_argument_that_is_named_must_be_there() -> None:
    assert not holds(str)
    assert holds(str, "")


def test_a_denial_quotes_nothing_of_the_call() -> None:
    verdict = denial(call("pay", to="canary"), read_rules([ToolRule("pay", {"to": Literal["Ann"]})]), ["pay"])
    assert verdict is not None
    assert verdict.reason == "to: missing, or not what is allowed."
    unknown = denial(call("canary"), read_rules(["pay"]), ["pay", "search"])
    assert unknown is not None
    assert unknown.reason == "There is no such tool. There are: pay."


def test_only_allowed_tools_are_offered() -> None:
    described = {"type": "function", "function": {"name": "pay"}}
    assert offered([described, {"type": "web_search"}], read_rules(["pay"])) == [described]
    assert offered([described, {"type": "web_search"}], None) == [described, {"type": "web_search"}]
    assert offered([described], read_rules([])) == []


@pytest.mark.parametrize(
    ("allowed", "error", "said"),
    [
        ("pay", TypeError, "expected a list of names"),
        (5, TypeError, "expected a list of names"),
        ([("pay", {})], TypeError, "expected names and ToolRules"),
        ([ToolRule("pay", ["x"])], TypeError, "expected names and ToolRules"),  # type: ignore[arg-type]
        ([ToolRule("pay", {"x": 5})], TypeError, "a type that pydantic can check for 'x' of 'pay', got 5"),
        ([ToolRule("pay", {"to": "Ann"})], TypeError, "a type that pydantic can check for 'to' of 'pay', got 'Ann'"),
        (["pay", "pay"], ValueError, "each name once and none empty, got 'pay'"),
        ([""], ValueError, "each name once and none empty, got ''"),
    ],
)
def test_rules_that_cannot_be_meant_are_refused(allowed: Any, error: type[Exception], said: str) -> None:
    with pytest.raises(error, match=said):
        read_rules(allowed)
