"""Deterministic rules for tool calls: which tools are allowed, and with which arguments."""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field, is_dataclass
from typing import Any

from langchain_core.messages import ToolCall
from pydantic import BaseModel, TypeAdapter

from safi_agent.turn import Verdict

UNKNOWN = "unknown_tool"  # replaces a name that the model invented, which may contain any text
Checks = Mapping[str, TypeAdapter[Any]]
Rules = Mapping[str, Checks]


@dataclass(frozen=True)
class ToolRule:
    """An allowed tool and the types of its arguments.

    ``arguments`` maps an argument's name to any type that pydantic can check: ``Literal["EUR", "USD"]``,
    ``Annotated[float, Field(gt=0, le=100)]``. Checks are strict, so "5" is not a number. An argument that is named is
    required and must not be None; other arguments are left to the tool.
    """

    name: str
    arguments: Mapping[str, Any] = field(default_factory=dict)


def read_rules(allowed: Iterable[str | ToolRule] | None) -> Rules | None:
    """The rules by name; with None, names and arguments are not checked.

    Raises:
        TypeError: ``allowed`` is not a list, an item is neither a name nor a ToolRule, or a type cannot be checked.
        ValueError: a name is empty or occurs twice.
    """
    if allowed is None:
        return None
    if isinstance(allowed, str) or not isinstance(allowed, Iterable):
        raise TypeError(f"allowed_tools: expected a list of names and ToolRules, or None, got {allowed!r}.")
    rules: dict[str, Checks] = {}
    for item in allowed:
        rule = ToolRule(item) if isinstance(item, str) else item
        if not isinstance(rule, ToolRule) or not isinstance(rule.arguments, Mapping):
            raise TypeError(f"allowed_tools: expected names and ToolRules, got {item!r}.")
        if not rule.name or rule.name in rules:
            raise ValueError(f"allowed_tools: expected unique, non-empty names, got {rule.name!r}.")
        rules[rule.name] = {name: _check(rule.name, name, kind) for name, kind in rule.arguments.items()}
    return rules


def _check(tool: str, argument: str, kind: Any) -> TypeAdapter[Any]:
    text = f"allowed_tools: expected a type that pydantic can check for {argument!r} of {tool!r}, got {kind!r}."
    if isinstance(kind, str):  # pydantic would resolve it later as a forward reference
        raise TypeError(text)
    try:
        return TypeAdapter(kind)
    except Exception as error:
        raise TypeError(text) from error


def check_call(call: ToolCall, rules: Rules | None, known: Iterable[str]) -> Verdict | None:
    """The verdict against this call, without quoting it; None if no rule forbids it."""
    name, args = call["name"], call["args"]
    if name not in known:
        names = sorted(tool for tool in known if rules is None or tool in rules)
        return Verdict("violation", f"There is no such tool. There are: {', '.join(names) or 'none'}.", "tool_unknown")
    if rules is None:
        return None
    if name not in rules:
        return Verdict("violation", "This tool is not allowed here.", "tool_not_allowed")
    for argument, check in rules[name].items():
        if not _fits(check, args.get(argument)):
            return Verdict("violation", f"{argument}: missing, or not what is allowed.", "argument_not_allowed")
    return None


def _fits(check: TypeAdapter[Any], value: Any) -> bool:
    if value is None:
        return False
    try:
        check.validate_json(json.dumps(value, allow_nan=False), strict=True)
    except Exception:  # a validator may raise anything; the value is then not allowed
        return False
    return True


def tool_name(tool: Any) -> str:
    """The name of a tool, or of one that the provider runs, which is described by a dict."""
    if not isinstance(tool, Mapping):
        return str(tool.name)
    described = tool.get("function")
    named = described if isinstance(described, Mapping) else tool
    return str(named.get("name") or tool.get("type") or "")


def allowed_only(tools: Sequence[Any], rules: Rules | None) -> list[Any]:
    """The tools that are offered to the model: only allowed ones.

    This matters most for tools that the provider runs itself, whose calls never pass through the middleware.
    """
    return [tool for tool in tools if rules is None or tool_name(tool) in rules]


def iter_texts(item: object) -> Iterator[str]:
    """Each text in arguments or in structured output, decoded: strings, keys, and numbers as JSON writes them.

    Bytes are read as UTF-8, and of another object the text is ``str(item)``. Nesting can have any depth, and an object
    that contains itself is read once.
    """
    stack: list[Any] = [item]
    read: dict[int, Any] = {}  # keeps the objects alive, so that their ids are not reused
    while stack:
        current = stack.pop()
        if isinstance(current, str | bytes | bytearray):
            yield current if isinstance(current, str) else current.decode("utf-8", "replace")
        elif isinstance(current, int | float):
            yield _number(current)
        elif (inner := _children(current)) is None:
            yield safe_str(current)
        elif id(current) not in read:
            read[id(current)] = current
            stack.extend(reversed(inner))


def _number(item: float) -> str:
    try:
        return json.dumps(item)
    except ValueError:  # an integer with more digits than Python converts
        return safe_str(item)


def _children(item: object) -> list[Any] | None:
    """Keys and entries of a container, without those that are None; None if the item is not a container."""
    if isinstance(item, BaseModel) or (is_dataclass(item) and not isinstance(item, type)):
        item = vars(item)
    if isinstance(item, Mapping):
        return [part for pair in item.items() for part in pair]
    if isinstance(item, Sequence | Set):
        return list(item)
    return [] if item is None else None


def safe_str(item: object) -> str:
    """``str(item)``; the name of its type if that raises."""
    try:
        return str(item)
    except Exception:  # ``__str__`` may raise anything
        return f"<{type(item).__name__}>"
