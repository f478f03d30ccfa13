"""Which call of a run a tool call is, for what is started by it."""

from collections.abc import Sequence

from langchain_core.messages import AIMessage, AnyMessage, HumanMessage, ToolCall


def step_of(call: ToolCall, messages: Sequence[AnyMessage]) -> str:
    """The tool's name, and how often exactly this call was made before since the user last spoke.

    It is the same when the run is done again, though the ids of calls are not.

    >>> asked = AIMessage("", tool_calls=[{"name": "look", "args": {"q": "x"}, "id": i} for i in ("a", "b")])
    >>> [step_of(call, [HumanMessage("Why?"), asked]) for call in asked.tool_calls]
    ['look', 'look.1']
    """
    last = max((n for n, message in enumerate(messages) if isinstance(message, HumanMessage)), default=-1)
    made = [c for m in messages[last + 1 :] if isinstance(m, AIMessage) for c in m.tool_calls]
    same = [c["id"] for c in made if (c["name"], c["args"]) == (call["name"], call["args"])]
    before = same.index(call["id"]) if call["id"] in same else len(same)
    return f"{call['name']}.{before}" if before else call["name"]
