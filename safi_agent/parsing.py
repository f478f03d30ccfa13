r"""Parse a reply that must be exactly one JSON object; any other reply is unclear and gives None.

This grammar reads the Will's ruling, the Conscience's ledger and a draft in the structured form::

    reply     = text | message
    message   = one carrier, alone: text content (a string, or one text block) or one tool call
    call      = object                              ; its arguments; their raw text too, where the message keeps it
    text      = ws [ reasoning ws ] ( object | fence ) ws
    reasoning = "<" name ">" words "</" name ">"    ; one name, in any case; or "[THINK]" words "[/THINK]"
    name      = "think" | "thinking" | "thought" | "reasoning"
    words     = characters without a tag of reasoning
    fence     = "```" [ "json" ] ws object ws "```"
    object    = a JSON object of RFC 8259, in which no object has a key twice
    ws        = { " " | TAB | LF | CR }

Three errors in an object are repaired, since they are unambiguous and change no key, ruling or number: a trailing comma
before a closing bracket; a backslash in a string that begins no escape, which is read literally; a control character in
a string.

Everything else is unclear: words around the object, a second object or fence, a quotation, reasoning that is not
closed, not at the beginning or repeated, NaN and Infinity, unbounded nesting, and more than ``MOST_CHARS`` characters.
For messages also: text beside a tool call, two non-empty text blocks, several tool calls, an invalid tool call, raw
arguments that differ from the parsed ones, a block of an unknown type, a refusal, and a finish reason that is not a
normal one (a missing one is normal, since many local models give none). ``stop_sequence`` is not normal, since the text
after it is unknown. Reasoning, in the text or in blocks of its own, is dropped and never searched.

Time is linear in the length of the reply.
"""

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple, NoReturn

from langchain_core.messages import AIMessage, AIMessageChunk

MOST_CHARS = 1_000_000  # more than any model's longest output, and 10 000 rows of a ledger fit
WS = " \t\n\r"
_REASONING = re.compile(r"<(/?)(think|thinking|thought|reasoning)>|\[(/?)(think)\]", re.IGNORECASE | re.ASCII)
_SPACE = re.compile(f"[{WS}]*")
_FENCE = re.compile(rf"```(?:json)?[{WS}]*", re.IGNORECASE | re.ASCII)
# A string (closed or not), a comma that follows no value, a comma before a closing bracket.
_SLIP = re.compile(rf'"(?:[^"\\]++|\\.)*+"?|[\[{{][{WS}]*+,|,(?=[{WS}]*+[\]}}])', re.DOTALL)
_ESCAPES = re.compile(r'(?:\\(?:["\\/bfnrt]|u[0-9a-fA-F]{4}))++|\\')

_THOUGHTS = frozenset({"reasoning", "thinking", "redacted_thinking", "reasoning_content", "thought"})
_CALLS = frozenset({"tool_use", "tool_call", "tool_call_chunk", "function_call", "input_json_delta"})
_RAW = ("partial_json", "arguments", "args", "input")  # where blocks of a call keep its arguments
_REASONS = ("finish_reason", "stop_reason", "done_reason", "finishReason", "stopReason")
_ENDED = frozenset({"stop", "end_turn", "eos", "eos_token", "complete", "completed", "finish", "finished"})
_CALLED = _ENDED | {"tool_calls", "tool_use", "tool_call", "function_call"}
_STATUS = frozenset({"completed", "complete", "success", "succeeded", "ok"})
_CUT = re.compile(r"length|max|token|context|filter|safety|recitation|blocklist|prohibited|incomplete")


class _UnclearError(ValueError):
    """A key is duplicated, or a constant is not valid JSON."""


def _keys_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) < len(pairs):
        raise _UnclearError
    return result


def _no_constant(name: str) -> NoReturn:
    raise _UnclearError


_DECODER = json.JSONDecoder(strict=False, object_pairs_hook=_keys_once, parse_constant=_no_constant)


def parse_reply(reply: AIMessage | str) -> dict[str, Any] | None:
    """The JSON object of a reply; None if the reply is unclear."""
    if isinstance(reply, str):
        return parse_text(reply)
    content = _content(reply)
    if content is None or is_refusal(reply) or reply.invalid_tool_calls:
        return None
    if reply.tool_calls:
        result = _call_arguments(reply, content) if _finished(reply, _CALLED) else None
    elif len(content.texts) == 1 and not content.calls and not _raw_calls(reply) and _finished(reply, _ENDED):
        result = parse_text(content.texts[0])
    else:
        result = None
    read_before = reply.additional_kwargs.get("parsed")
    return None if isinstance(read_before, Mapping) and read_before != result else result


def parse_text(text: str) -> dict[str, Any] | None:
    r"""The JSON object that a text consists of; None if it is unclear.

    >>> parse_text('<think>Easy.</think>\n```json\n{"a": [1, 2,],}\n```')
    {'a': [1, 2]}
    >>> parse_text('Here: {"a": 1}') is None
    True
    """
    if len(text) > MOST_CHARS:
        return None
    start = _SPACE.match(text).end()  # type: ignore[union-attr]
    if (tag := _REASONING.match(text, start)) is not None:
        end = _REASONING.search(text, tag.end())
        if end is None or _name(tag) != (False, _name(end)[1]) or not _name(end)[0]:
            return None
        start = end.end()
    body = text[start:].strip(WS)
    if not body.startswith(("{", "```")):
        return None
    result = _parse_object(body)
    return result if result is not None else _parse_object(_SLIP.sub(_repaired, body))


def _name(tag: re.Match[str]) -> tuple[bool, str]:
    """Whether the tag closes, and what it is called; the two spellings of think do not close each other."""
    angled = tag[2] is not None
    return bool(tag[1] if angled else tag[3]), tag[2].lower() if angled else "[think]"


def _parse_object(body: str) -> dict[str, Any] | None:
    fence = _FENCE.match(body)
    start = fence.end() if fence else 0
    if not body.startswith("{", start):
        return None
    try:
        result, end = _DECODER.raw_decode(body, start)
    except (ValueError, RecursionError):
        return None
    return result if body[end:].strip(WS) == ("```" if fence else "") else None


def _repaired(slip: re.Match[str]) -> str:
    text = slip[0]
    if text.startswith('"'):
        return _ESCAPES.sub(lambda match: "\\\\" if match[0] == "\\" else match[0], text) if "\\" in text else text
    return "" if text == "," else text


def strip_reasoning(text: str) -> str | None:
    """The text without its leading blocks of reasoning; None if the reasoning does not end.

    Tags of one name are counted, so that reasoning which opens the same tag again ends where both are closed.
    """
    start = _SPACE.match(text).end()  # type: ignore[union-attr]
    if _REASONING.match(text, start) is None:
        return text
    while (tag := _REASONING.match(text, start)) is not None and not _name(tag)[0]:
        depth = 0
        for inner in _REASONING.finditer(text, start):
            if _name(inner)[1] == _name(tag)[1]:
                depth += -1 if _name(inner)[0] else 1
            if depth == 0:
                break
        if depth:
            return None
        start = _SPACE.match(text, inner.end()).end()  # type: ignore[union-attr]
    return text[start:]


def casefold_keys(data: Mapping[Any, Any]) -> dict[str, Any] | None:
    """The mapping with stripped, case-folded keys; None if two keys become equal.

    >>> casefold_keys({" Decision": 1})
    {'decision': 1}
    """
    folded = {str(key).strip().casefold(): item for key, item in data.items()}
    return folded if len(folded) == len(data) else None


class _Content(NamedTuple):
    texts: list[str]  # those that are not blank
    calls: list[Mapping[str, Any]]


def _content(message: AIMessage) -> _Content | None:
    """The content by type, without reasoning; None if a block has an unknown type."""
    content = _Content([], [])
    for block in [message.content] if isinstance(message.content, str) else message.content:
        text = block if isinstance(block, str) else block.get("text") if block.get("type") == "text" else None
        kind = "text" if isinstance(text, str) else "" if isinstance(block, str) else block.get("type")
        if isinstance(text, str):
            content.texts.extend([text] if text.strip() else [])
        elif kind in _CALLS and isinstance(block, dict):
            content.calls.append(block)
        elif kind not in _THOUGHTS:
            return None
    return content


def _call_arguments(message: AIMessage, content: _Content) -> dict[str, Any] | None:
    """The arguments of the only call, if all its representations in the message agree."""
    args = message.tool_calls[0]["args"]
    places = [message.tool_calls, content.calls, *_raw_calls(message)]
    if content.texts or any(len(place) > 1 for place in places) or not isinstance(args, dict):
        return None
    for arguments in (_raw_arguments(call) for place in places for call in place):
        if arguments is not None and (_whole_arguments(arguments) if isinstance(arguments, str) else arguments) != args:
            return None
    return args


def _whole_arguments(text: str) -> dict[str, Any] | None:
    return _parse_object(text.strip(WS)) if len(text) <= MOST_CHARS else None


def _raw_calls(message: AIMessage) -> list[Any]:
    """The provider's raw calls, from each field of the message outside its content."""
    fields = message.additional_kwargs
    calls = fields.get("tool_calls") or []
    chunks = message.tool_call_chunks if isinstance(message, AIMessageChunk) else []
    return [
        place for place in (calls, [fields["function_call"]] if fields.get("function_call") else [], chunks) if place
    ]


def _raw_arguments(call: Any) -> Any:
    """The arguments of a call in one of the forms of providers; None where there are none."""
    function = call.get("function", call) if isinstance(call, Mapping) else None
    return next((function[key] for key in _RAW if function.get(key)), None) if isinstance(function, Mapping) else None


def is_refusal(message: AIMessage) -> bool:
    """Whether the metadata of a message contains a refusal of the model."""
    blocks = message.content if isinstance(message.content, list) else []
    refused = any(isinstance(block, dict) and block.get("type") == "refusal" for block in blocks)
    return refused or bool(message.additional_kwargs.get("refusal")) or "refusal" in _reasons(message)


def is_truncated(message: AIMessage) -> bool:
    """Whether a message was truncated by a length limit or a content filter."""
    return any(reason not in _CALLED and _CUT.search(reason) for reason in _reasons(message))


def _finished(message: AIMessage, normal: frozenset[str]) -> bool:
    metadata = message.response_metadata
    status = metadata.get("status")
    done = not metadata.get("incomplete_details") and (not isinstance(status, str) or status.casefold() in _STATUS)
    return done and all(reason in normal for reason in _reasons(message))


def _reasons(message: AIMessage) -> list[str]:
    """The finish reasons of a reply, in lower case, from the fields of all providers."""
    return list(_finish_reasons(message.response_metadata)) + list(_finish_reasons(message.additional_kwargs))


def _finish_reasons(fields: Mapping[str, Any]) -> Iterator[str]:
    for key in _REASONS:
        if fields.get(key):
            yield str(getattr(fields[key], "name", fields[key])).strip().rpartition(".")[2].casefold()
    details = fields.get("incomplete_details")
    if isinstance(details, Mapping) and isinstance(details.get("reason"), str):
        yield details["reason"].casefold()
