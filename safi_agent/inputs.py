"""What a caller may hand in, read into one form."""

import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, NotRequired

from langchain_core.messages import (
    AIMessage,
    BaseMessage,
    HumanMessage,
    MessageLikeRepresentation,
    ToolMessage,
    convert_to_messages,
)
from langchain_core.prompt_values import PromptValue
from typing_extensions import TypedDict

MAX_CONTEXT = 20_000
MAX_ARGUMENT = 2_000


class SafiRequest(TypedDict):
    """The input as a mapping; ``metadata`` goes to the log as it is."""

    prompt: str | Sequence[MessageLikeRepresentation]
    metadata: NotRequired[dict[str, Any]]


SafiInput = str | PromptValue | Sequence[MessageLikeRepresentation] | SafiRequest


class Request(NamedTuple):
    """The user's prompt, the whole conversation, and what of it a judge needs beside the prompt."""

    prompt: str
    messages: list[BaseMessage]
    context: str
    metadata: dict[str, Any]


def read_input(given: object) -> Request:
    """One form for all inputs.

    Raises:
        TypeError: the input is of another type.
        ValueError: it has no text, or keys or metadata that are not allowed.
    """
    content, metadata = _unwrap(given)
    if isinstance(content, PromptValue):
        messages = content.to_messages()
    elif isinstance(content, str):
        messages = [HumanMessage(content)]
    elif isinstance(content, BaseMessage):
        messages = [content]
    elif isinstance(content, Sequence) and content and not isinstance(content, bytes | bytearray):
        messages = convert_to_messages(content)
    else:
        raise TypeError(f"input: expected a string, messages or a mapping with 'prompt', got {_shown(content)}.")
    asked = next((m for m in reversed(messages) if isinstance(m, HumanMessage)), messages[-1])
    prompt = str(asked.text)
    if not prompt.strip():
        raise ValueError("input: expected a prompt with text, got none.")
    return Request(prompt, messages, transcript([m for m in messages if m is not asked]), metadata)


def _unwrap(given: object) -> tuple[object, dict[str, Any]]:
    if not isinstance(given, Mapping):
        return given, {}
    names = set(given)
    if not ({"prompt"} <= names <= {"prompt", "metadata"} or names == {"messages"}):
        got = sorted(map(str, names))
        raise ValueError(f"input: expected the keys 'prompt' and, if wanted, 'metadata', got {got}.")
    metadata = given.get("metadata") or {}
    if not isinstance(metadata, Mapping):
        raise TypeError(f"metadata: expected a mapping, got {type(metadata).__name__}.")
    try:
        json.dumps(metadata, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise ValueError(f"metadata: expected what JSON can hold, got {error}.") from None
    return given["prompt" if "prompt" in given else "messages"], dict(metadata)


def _shown(content: object) -> str:
    return "an empty list" if isinstance(content, Sequence) and not content else type(content).__name__


def transcript(messages: Sequence[BaseMessage]) -> str:
    r"""Messages as text for a judge, tool calls with their arguments; the oldest are left out first, and that is said.

    >>> transcript([HumanMessage("Hi"), AIMessage("Hello")])
    'human: Hi\nai: Hello'
    """
    chunks = [_chunk(message) for message in messages]
    kept: list[str] = []
    for chunk in reversed(chunks):
        if kept and sum(map(len, kept)) + len(chunk) > MAX_CONTEXT:
            break
        kept.append(_clip(chunk, MAX_CONTEXT))
    left_out = len(chunks) - len(kept)
    return "\n".join([*([f"[{left_out} earlier messages left out]"] if left_out else []), *reversed(kept)])


def _chunk(message: BaseMessage) -> str:
    who = f"tool {message.name or ''}".strip() if isinstance(message, ToolMessage) else message.type
    calls = message.tool_calls if isinstance(message, AIMessage) else []
    said = [f"called {c['name']}({_clip(json.dumps(c['args'], default=str), MAX_ARGUMENT)})" for c in calls]
    return f"{who}: {' '.join(filter(None, [str(message.text), *said]))}"


def _clip(text: str, most: int) -> str:
    return text if len(text) <= most else f"{text[:most]}…[+{len(text) - most} chars]"
