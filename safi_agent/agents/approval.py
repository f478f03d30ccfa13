"""Human approval of a tool call: the run stops at an interrupt and resumes with the person's answer."""

from collections.abc import Mapping

from langchain_core.messages import ToolCall
from langgraph.types import interrupt

from safi_agent.turn import Verdict


def request_approval(call: ToolCall, verdict: Verdict) -> Verdict:
    """The verdict after human approval, if the call needs it; anything but an approval denies the call.

    Question and answers have the form of LangChain's HumanInTheLoopMiddleware with one interrupt a call.
    """
    if verdict.code != "review" or verdict.decision == "violation":
        return verdict
    shown = {"type": "tool_approval", "tool_call_id": call["id"], "name": call["name"], "args": call["args"]}
    answer = interrupt({**shown, "description": f"May the agent call {call['name']}?"})
    reply = answer if isinstance(answer, Mapping) else {}
    if reply.get("type") == "approve":
        return verdict
    why = reply.get("message")
    return Verdict("violation", f"A person said no{f': {why}' if why else '.'}", "review")
