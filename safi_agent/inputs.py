"""The inputs of a chain, converted to one form."""

import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, NotRequired

from langchain_core.messages import BaseMessage, HumanMessage, MessageLikeRepresentation, convert_to_messages
from langchain_core.prompt_values import PromptValue
from typing_extensions import TypedDict

from safi_agent.transcript import transcript


class SafiRequest(TypedDict):
    """The input as a mapping; ``metadata`` is logged unchanged."""

    prompt: str | Sequence[MessageLikeRepresentation]
    metadata: NotRequired[dict[str, Any]]


SafiInput = str | PromptValue | Sequence[MessageLikeRepresentation] | SafiRequest


class Request(NamedTuple):
    """The user's prompt, the whole conversation, and the context that a judge gets in addition to the prompt.

    ``not_shown`` lists the parts of the conversation that are neither in ``prompt`` nor in ``context``.
    """

    prompt: str
    messages: list[BaseMessage]
    context: str
    metadata: dict[str, Any]
    not_shown: tuple[str, ...] = ()


def read_input(input: object) -> Request:
    """Convert an input to one form.

    Raises:
        TypeError: the input is of another type.
        ValueError: it has no text, or keys or metadata that are not allowed.
    """
    content, metadata = _unwrap(input)
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
    last = prompt_message(messages)
    prompt = str(last.text)
    if not prompt.strip():
        raise ValueError("input: expected a prompt that contains text, got none.")
    context = transcript(messages, last)
    return Request(prompt, messages, context, metadata, context.not_shown)


def prompt_message(messages: Sequence[BaseMessage]) -> BaseMessage:
    """The message with the prompt: the last human message, otherwise the last message."""
    return next((m for m in reversed(messages) if isinstance(m, HumanMessage)), messages[-1])


def _unwrap(input: object) -> tuple[object, dict[str, Any]]:
    if not isinstance(input, Mapping):
        return input, {}
    names = set(input)
    if not ({"prompt"} <= names <= {"prompt", "metadata"} or names == {"messages"}):
        got = sorted(map(str, names))
        raise ValueError(f"input: expected the keys 'prompt' and optionally 'metadata', got {got}.")
    metadata = input.get("metadata") or {}
    if not isinstance(metadata, Mapping):
        raise TypeError(f"metadata: expected a mapping, got {type(metadata).__name__}.")
    try:
        json.dumps(metadata, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise ValueError(f"metadata: expected values that can be serialized as JSON, got {error}.") from None
    return input["prompt" if "prompt" in input else "messages"], dict(metadata)


def _shown(content: object) -> str:
    return "an empty list" if isinstance(content, Sequence) and not content else type(content).__name__
