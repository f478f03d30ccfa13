"""Tools that are bound to a chain's model, and the calls in its replies.

In a chain the caller makes the calls: the message that leaves has them, once the Will has approved them. An agent's
calls go through ``SafiMiddleware``.
"""

import json
import re
from collections.abc import Container, Iterator, Mapping
from typing import Any, NamedTuple
from uuid import uuid4

from langchain_core.messages import AIMessage, ToolCall
from langchain_core.runnables import Runnable, RunnableSequence, RunnableWithFallbacks
from langchain_core.runnables.base import RunnableBindingBase
from langchain_core.runnables.configurable import DynamicRunnable

from safi_agent.agents.tools import iter_texts, safe_str, tool_name

# The arguments by which tools are bound, under the names of the providers' integrations.
BINDINGS = ("tools", "tool_choice", "parallel_tool_calls", "functions", "function_call", "tool_config")
UNKNOWN, UNREADABLE, SAME_ID = "tool_unknown", "arguments_unreadable", "call_id"
# Why a reply is refused whose draft has one of these flags.
FAULTS = {
    UNKNOWN: "The draft calls a tool that is not bound to the model.",
    UNREADABLE: "The arguments of a call could not be read.",
    SAME_ID: "Each call needs an id of its own.",
}
_TOKEN = re.compile(r"[\w+/=.:|-]*")


def bound_tools(model: Runnable[Any, Any]) -> frozenset[str]:
    """The names of the tools that are bound to a model, also within wrappers and fallbacks."""
    return frozenset(_bound(model))


def _bound(model: Runnable[Any, Any]) -> Iterator[str]:
    if isinstance(model, RunnableBindingBase):
        for tool in [*(model.kwargs.get("tools") or ()), *(model.kwargs.get("functions") or ())]:
            yield tool_name(tool)
    for inner in _inside(model):
        yield from _bound(inner)


def _inside(model: Runnable[Any, Any]) -> list[Runnable[Any, Any]]:
    if isinstance(model, RunnableBindingBase):
        return [model.bound]
    if isinstance(model, RunnableWithFallbacks):
        return [model.runnable, *model.fallbacks]
    if isinstance(model, RunnableSequence):
        return model.steps
    return [model.default] if isinstance(model, DynamicRunnable) else []


def without_tools(model: Runnable[Any, Any]) -> Runnable[Any, Any]:
    """The model without its bound tools, for a judge; the model itself if it has none."""
    if not bound_tools(model):
        return model
    inner = [without_tools(one) for one in _inside(model)]
    if isinstance(model, RunnableBindingBase):
        kept = {name: item for name, item in model.kwargs.items() if name not in BINDINGS}
        return model.model_copy(update={"bound": inner[0], "kwargs": kept})
    if isinstance(model, RunnableWithFallbacks):
        return model.model_copy(update={"runnable": inner[0], "fallbacks": inner[1:]})
    if isinstance(model, RunnableSequence):
        return RunnableSequence(*inner)
    return model.model_copy(update={"default": inner[0]})  # type: ignore[attr-defined,no-any-return]


class ReadCalls(NamedTuple):
    """The calls of a reply; ``faults`` are flags, with which the whole reply is refused."""

    calls: tuple[ToolCall, ...]
    faults: tuple[str, ...]


def read_calls(message: AIMessage, names: Container[str]) -> ReadCalls:
    """The calls of a reply to tools of these names.

    An id that could contain a text is replaced, since nothing rules on it.
    """
    faults = [UNREADABLE] if message.invalid_tool_calls else []
    calls = tuple(tool_call(call["name"], call["args"], call["id"]) for call in message.tool_calls)
    if any(call["name"] not in names for call in calls):
        faults.append(UNKNOWN)
    if len({call["id"] for call in calls}) < len(calls):
        faults.append(SAME_ID)
    if not _is_json([call["args"] for call in calls]):
        faults.append(UNREADABLE)
    return ReadCalls(() if faults else calls, tuple(dict.fromkeys(faults)))


def _is_json(item: object) -> bool:
    try:
        json.dumps(item, allow_nan=False)
    except (TypeError, ValueError, RecursionError):
        return False
    return True


def tool_call(name: str, args: dict[str, Any], call_id: str | None) -> ToolCall:
    """A call with its id, or a new one if the id is missing or could contain a text."""
    own = f"call-{uuid4().hex}"
    return ToolCall(name=name, args=args, id=call_id if call_id and is_opaque(call_id) else own, type="tool_call")


def is_opaque(item: Any) -> bool:
    """Whether something is an id or a signature and not a text."""
    return item is None or isinstance(item, int) or (isinstance(item, str) and bool(_TOKEN.fullmatch(item)))


def call_text(call: Mapping[str, Any] | ToolCall) -> str:
    """A call as JSON for a judge; arguments that JSON cannot represent become a list of their texts."""
    try:
        return as_json({"tool": call["name"], "arguments": call["args"]})
    except (TypeError, ValueError, RecursionError):
        return as_json({"tool": call["name"], "arguments": list(iter_texts(call["args"]))})


def as_json(item: object) -> str:
    """JSON for a judge, with the text of what JSON cannot represent."""
    return json.dumps(item, ensure_ascii=False, default=safe_str)
