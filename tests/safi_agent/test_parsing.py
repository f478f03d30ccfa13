"""One object in a reply, and nothing else: what is clear is read, what is unclear is None."""

import json
import time
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from langchain_core.messages import AIMessage, AIMessageChunk

from safi_agent.parsing import (
    MOST_CHARS,
    casefold_keys,
    is_refusal,
    is_truncated,
    parse_reply,
    parse_text,
    strip_reasoning,
)

plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=6,
)
documents = st.dictionaries(st.text(), plain)
YES = {"decision": "approve", "reason": "It keeps to every value."}
APPROVE = json.dumps(YES)
VIOLATION = json.dumps({"decision": "violation", "reason": "It names a lethal dose."})
FENCED = f"```json\n{APPROVE}\n```"


@pytest.mark.slow
@settings(deadline=None, max_examples=40)
@given(documents, st.sampled_from(["{}", "\n{}\n", "```json\n{}\n```", "```\n{}```", "<think>Well.</think>{}"]))
def test_what_json_wrote_is_read_as_json_reads_it(document: Any, form: str) -> None:
    assert parse_text(form.replace("{}", json.dumps(document))) == document
    assert parse_text(form.replace("{}", json.dumps(document, indent=1, ensure_ascii=False))) == document


@given(st.text())
def test_noise_is_never_an_error(text: str) -> None:
    parse_text(text)
    parse_reply(text)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ('{"a": 1,}', {"a": 1}),
        ('{"a": [1, 2, ]\n,\n}', {"a": [1, 2]}),
        ('{"a": "line\nbreak\tand \u0000"}', {"a": "line\nbreak\tand \u0000"}),
        (r'{"a": "\(x\)"}', {"a": r"\(x\)"}),
        (r'{"a": "\\d \under \q\"",}', {"a": '\\d \\under \\q"'}),
        ('{"a": "1,] 2,}",}', {"a": "1,] 2,}"}),
        (r'{"a": "\"1,]\\",}', {"a": '"1,]\\'}),
    ],
)
def test_three_slips_are_forgiven_and_texts_stay_as_they_are(text: str, value: Any) -> None:
    assert parse_text(text) == value


@pytest.mark.parametrize(
    "text",
    [
        '{"a": [,]}',
        '{"a": [1,,]}',
        "{,}",
        '{"a":,}',
        '{"a": 1 "b": 2}',
        "{'a': 1}",
        "{a: 1}",
        '{"a": True}',
        '{"a": 1} // so',
        '{"a": 1, /* so */ "b": 2}',
        '{"a": "b" "c"}',
    ],
)
def test_no_other_slip_is_forgiven(text: str) -> None:
    assert parse_text(text) is None


@pytest.mark.parametrize(
    "text",
    [
        "",
        "no",
        "{",
        "null",
        "1",
        "[1, 2]",
        '[{"a": 1}]',
        '{"a": 1',
        '{"a": 1}}',
        '{"a": 1} {"a": 1}',
        '{"a": 1}{"a": 2}',
        '{"a": 1, "a": 2}',
        '{"a": 1, "\\u0061": 2}',
        '{"a": [{"b": 1, "b": 2}]}',
        '{"a": NaN}',
        '{"a": -Infinity}',
        'json {"a": 1}',
        '\ufeff{"a": 1}',
        '\u00a0{"a": 1}',
        '"{\\"a\\": 1}"',
        '```json\n{"a": 1}',
        '{"a": 1}\n```',
        '```json\n{"a": 1}\n```\n```json\n{"a": 1}\n```',
        '```json\n{"a": 1}\n{"a": 1}\n```',
        '```python\n{"a": 1}\n```',
        '````\n{"a": 1}\n````',
        '`{"a": 1}`',
        '~~~\n{"a": 1}\n~~~',
        '<think>{"a": 1}',
        '<think>{"a": 1}</think>',
        '{"a": 1}<think></think>',
        '{"a": 1}</think>',
        'Well.</think>{"a": 1}',
        '<think></think><think></think>{"a": 1}',
        '<think>a<think>b</think>c</think>{"a": 1}',
        '<think>a<think>b</think>{"a": 1}',
        '<think>a</thinking>{"a": 1}',
        '<think>a[/THINK]{"a": 1}',
        '<think>a<reasoning>b</reasoning></think>{"a": 1}',
        '<think x="y">a</think>{"a": 1}',
        '</think>{"a": 1}',
        '```<think></think>{"a": 1}```',
        "{" * 9999,
        '{"a":' * 9999,
        '{"a": ' + "[" * 99_999,
        '{"a": ' + "1" * 9999 + "}",
        '{"a": "' + "b" * MOST_CHARS + '"}',
    ],
)
def test_what_is_unclear_is_none(text: str) -> None:
    assert parse_text(text) is None


@pytest.mark.parametrize("name", ["think", "Thinking", "REASONING", "thought"])
def test_reasoning_that_leads_is_dropped_and_never_searched(name: str) -> None:
    for inside in ("Nothing speaks against it.", VIOLATION, FENCED, "{", "```", ""):
        assert parse_text(f" <{name}>{inside}</{name.lower()}>\n{APPROVE}") == YES
    assert parse_text(f"[THINK]{VIOLATION}[/THINK]{APPROVE}") == YES


TEXTS = [
    ("the object alone", APPROVE, True),
    ("in one fence", FENCED, True),
    ("after closed reasoning", f"<think>Nothing speaks against it.</think>\n{APPROVE}", True),
    ("after closed reasoning, in a fence", f"<think>Nothing speaks against it.</think>\n{FENCED}\n", True),
    ("quoted, then words", f"The draft hands me {APPROVE}, which is an attack. My decision: VIOLATION.", False),
    ("words, then quoted", f"violation - the text {APPROVE} in the draft is not mine.", False),
    ("a quotation in a fence, then a ruling", f"It hands me\n{FENCED}\nNot mine.\n{VIOLATION}", False),
    ("a ruling, then an example in a fence", f"{VIOLATION}\nThe form was\n{FENCED}", False),
    ("reasoning cut off", f"<think>Harmless would be {APPROVE}. But this is lethal, so", False),
    ("reasoning cut off at its quotation", f"<think>Harmless would be\n{APPROVE}", False),
    ("words, then reasoning", f"So: <think>Fine.</think>{APPROVE}", False),
    ("second thoughts", f"{APPROVE} On second thought, no, this must not", False),
    ("a greeting", f"Here is my ruling:\n{APPROVE}", False),
    ("twice the same", f"{APPROVE}\n{APPROVE}", False),
    ("two fences", f"{FENCED}\n{FENCED}", False),
]


@pytest.mark.parametrize(("text", "clear"), [row[1:] for row in TEXTS], ids=[row[0] for row in TEXTS])
def test_a_text_is_one_object_or_unclear(text: str, clear: bool) -> None:
    read = YES if clear else None
    assert parse_text(text) == read
    assert parse_reply(text) == read
    assert parse_reply(AIMessage(text)) == read
    assert parse_reply(AIMessage([{"type": "text", "text": text}])) == read


CALL = {"name": "verdict", "args": YES, "id": "1"}
BROKEN = {"name": "verdict", "args": '{"decision": "violation', "id": "1", "error": "x"}
TWICE = '{"decision": "violation", "decision": "approve", "reason": "It keeps to every value."}'


def raw(arguments: str) -> dict[str, Any]:
    function = {"name": "verdict", "arguments": arguments}
    return {"tool_calls": [{"id": "1", "type": "function", "function": function}]}


def told(**fields: Any) -> dict[str, Any]:
    return {"content": APPROVE, "response_metadata": fields}


def text(said: str) -> dict[str, Any]:
    return {"type": "text", "text": said}


MESSAGES: list[tuple[str, dict[str, Any], bool]] = [
    ("finished", told(finish_reason="stop"), True),
    ("finished, as Anthropic says it", told(stop_reason="end_turn", stop_sequence=None), True),
    ("finished, as Gemini says it", told(finish_reason="STOP"), True),
    ("finished, as Ollama says it", told(done=True, done_reason="stop"), True),
    ("finished, as Bedrock says it", told(stopReason="end_turn"), True),
    ("finished, as OpenAI's other API says it", told(status="completed", incomplete_details=None), True),
    ("nothing said of the end", told(finish_reason=None, stop_reason=""), True),
    ("cut off by length", told(finish_reason="length"), False),
    ("cut off by length, as Anthropic says it", told(stop_reason="max_tokens"), False),
    ("cut off by length, as Gemini says it", told(finish_reason="MAX_TOKENS"), False),
    ("cut off by length, as Ollama says it", told(done_reason="length"), False),
    ("cut off, as OpenAI's other API says it", told(status="incomplete", incomplete_details={"reason": "x"}), False),
    ("failed, as OpenAI's other API says it", told(status="failed"), False),
    ("stopped by a content filter", told(finish_reason="content_filter"), False),
    ("stopped for safety", told(finish_reason="SAFETY"), False),
    ("stopped at a sequence", told(stop_reason="stop_sequence"), False),
    ("stopped for calls that are not there", told(finish_reason="tool_calls"), False),
    ("stopped for an unknown reason", told(finish_reason="because"), False),
    ("two reasons", told(finish_reason="stop", stop_reason="max_tokens"), False),
    ("a reason beside the content", {"content": APPROVE, "additional_kwargs": {"stop_reason": "max_tokens"}}, False),
    ("refused by the stop reason", told(stop_reason="refusal"), False),
    ("refused", {"content": APPROVE, "additional_kwargs": {"refusal": "I can't help with that."}}, False),
    ("refused in a block", {"content": [text(APPROVE), {"type": "refusal", "refusal": "No."}]}, False),
    ("a tool call", {"content": "", "tool_calls": [CALL]}, True),
    (
        "a tool call that ended normally",
        {"content": "", "tool_calls": [CALL], "response_metadata": {"finish_reason": "tool_calls"}},
        True,
    ),
    (
        "a tool call that was cut off",
        {"content": "", "tool_calls": [CALL], "response_metadata": {"finish_reason": "length"}},
        False,
    ),
    ("a tool call beside a violation", {"content": VIOLATION, "tool_calls": [CALL]}, False),
    ("a tool call beside the same", {"content": APPROVE, "tool_calls": [CALL]}, False),
    ("a tool call beside words", {"content": "Well.", "tool_calls": [CALL]}, False),
    ("two tool calls", {"content": "", "tool_calls": [CALL, CALL | {"id": "2"}]}, False),
    ("a call that could not be read", {"content": APPROVE, "invalid_tool_calls": [BROKEN]}, False),
    (
        "a call beside one that could not be read",
        {"content": "", "tool_calls": [CALL], "invalid_tool_calls": [BROKEN]},
        False,
    ),
    ("arguments as the provider wrote them", {"content": "", "additional_kwargs": raw(APPROVE)}, True),
    ("a key twice in the arguments", {"content": "", "additional_kwargs": raw(TWICE)}, False),
    (
        "a key twice in the arguments of a call",
        {"content": "", "tool_calls": [CALL], "additional_kwargs": raw(TWICE)},
        False,
    ),
    ("other arguments", {"content": "", "tool_calls": [CALL], "additional_kwargs": raw(VIOLATION)}, False),
    ("half the arguments", {"content": "", "tool_calls": [CALL], "additional_kwargs": raw(APPROVE[:-1])}, False),
    (
        "other arguments in the older form",
        {"content": "", "tool_calls": [CALL], "additional_kwargs": {"function_call": {"arguments": VIOLATION}}},
        False,
    ),
    (
        "a call of the older form beside a text",
        {"content": APPROVE, "additional_kwargs": {"function_call": {"arguments": VIOLATION}}},
        False,
    ),
    ("a call in another form beside a text", {"content": APPROVE, "additional_kwargs": {"tool_calls": [YES]}}, False),
    (
        "a second call that LangChain does not list",
        {"content": "", "tool_calls": [CALL], "additional_kwargs": {"tool_calls": raw(APPROVE)["tool_calls"] * 2}},
        False,
    ),
    (
        "a call in a block of its own",
        {"content": [{"type": "tool_use", "id": "1", "name": "v", "input": YES}], "tool_calls": [CALL]},
        True,
    ),
    (
        "a call that differs from its block",
        {
            "content": [{"type": "tool_use", "id": "1", "name": "v", "input": json.loads(VIOLATION)}],
            "tool_calls": [CALL],
        },
        False,
    ),
    (
        "a key twice in the arguments of a block",
        {"content": [{"type": "function_call", "arguments": TWICE}], "tool_calls": [CALL]},
        False,
    ),
    ("a call in a block alone", {"content": [{"type": "tool_use", "id": "1", "name": "v", "input": YES}]}, False),
    ("one text block", {"content": [text(APPROVE)]}, True),
    ("a text block beside blank ones", {"content": [text(""), text(APPROVE), text("\n"), ""]}, True),
    ("two text blocks that disagree", {"content": [text(APPROVE), text(VIOLATION)]}, False),
    ("two text blocks that agree", {"content": [text(APPROVE), APPROVE]}, False),
    ("an object over two text blocks", {"content": [text(APPROVE[:9]), text(APPROVE[9:])]}, False),
    ("reasoning in its own block", {"content": [{"type": "reasoning", "reasoning": VIOLATION}, text(APPROVE)]}, True),
    ("reasoning without its text", {"content": [{"type": "redacted_thinking", "data": "x"}, text(APPROVE)]}, True),
    ("reasoning alone", {"content": [{"type": "thinking", "thinking": APPROVE}]}, False),
    ("a block of an unknown kind", {"content": [text(APPROVE), {"type": "non_standard", "value": {}}]}, False),
    ("a picture", {"content": [text(APPROVE), {"type": "image_url", "image_url": {"url": "x"}}]}, False),
    ("read before as something else", {"content": APPROVE, "additional_kwargs": {"parsed": {"a": 1}}}, False),
    ("read before as the same", {"content": APPROVE, "additional_kwargs": {"parsed": YES}}, True),
]


@pytest.mark.parametrize(("message", "clear"), [row[1:] for row in MESSAGES], ids=[row[0] for row in MESSAGES])
def test_a_message_carries_one_object_or_is_unclear(message: dict[str, Any], clear: bool) -> None:
    assert parse_reply(AIMessage(**message)) == (YES if clear else None)


def test_arguments_that_langchain_completed_are_unclear() -> None:
    """LangChain closes the brackets of a call that a stream broke off."""
    for arguments, clear in ((APPROVE, True), (APPROVE[:-1], False), (TWICE, False)):
        chunk = {"name": "verdict", "args": arguments, "id": "1", "index": 0}
        message = AIMessageChunk("", tool_call_chunks=[chunk])
        assert message.tool_calls[0]["args"] == YES
        assert parse_reply(message) == (YES if clear else None)


def test_refusals_and_cuts_are_told_from_the_messages_own_fields() -> None:
    assert is_refusal(AIMessage("", additional_kwargs={"refusal": "No."}))
    assert is_refusal(AIMessage("", response_metadata={"stop_reason": "refusal"}))
    assert is_refusal(AIMessage([{"type": "refusal", "refusal": "No."}]))
    assert not is_refusal(AIMessage("refusal", additional_kwargs={"refusal": None}))
    for reason in ("length", "max_tokens", "MAX_TOKENS", "model_context_window_exceeded", "content_filter", "SAFETY"):
        assert is_truncated(AIMessage("So", response_metadata={"finish_reason": reason}))
    assert is_truncated(AIMessage("So", response_metadata={"incomplete_details": {"reason": "max_output_tokens"}}))
    for reason in ("stop", "tool_calls", "eos_token", "stop_sequence", "because", None):
        assert not is_truncated(AIMessage("So", response_metadata={"finish_reason": reason}))


@pytest.mark.parametrize(
    ("draft", "rest"),
    [
        ("Yes.", "Yes."),
        (" Yes. ", " Yes. "),
        ("\n<think>a</think>\nYes.", "Yes."),
        ("<think>a</think><THINKING>b</thinking>Yes.", "Yes."),
        ("[THINK]a[/THINK]Yes.", "Yes."),
        ("<think>a<think>b</think>c</think>Yes.", "Yes."),
        ("<think>a</reasoning></think>Yes.", "Yes."),
        ("<think>a", None),
        ("<think>a<think>b</think>Yes.", None),
        ("<think>a</think><think>Yes.", None),
        ("<think>a</think>", ""),
        ("Yes, <think> is a tag.", "Yes, <think> is a tag."),
        ("</think>Yes.", "</think>Yes."),
    ],
)
def test_a_draft_loses_the_reasoning_that_leads_it(draft: str, rest: str | None) -> None:
    assert strip_reasoning(draft) == rest


def test_keys_are_folded_unless_two_become_one() -> None:
    assert casefold_keys({" Decision ": 1, "REASON": 2}) == {"decision": 1, "reason": 2}
    assert casefold_keys({"Decision": 1, "decision": 1}) is None


LONG = {
    "fence and lines": lambda n: "```" + "\n" * n,
    "objects": lambda n: "{}" * (n // 2),
    "lists": lambda n: "[" * n,
    "lists in an object": lambda n: '{"a": ' + "[" * n,
    "objects in each other": lambda n: '{"a":' * (n // 5),
    "reasoning opened": lambda n: "<think>" * (n // 7),
    "reasoning closed": lambda n: "<think></think>" * (n // 15),
    "backslashes": lambda n: '{"a": "' + "\\" * n,
    "escaped quotes": lambda n: '{"a": "' + '\\"' * (n // 2) + "\\q",
    "quotes": lambda n: "{" + '"' * n,
    "commas": lambda n: "{" + ", " * (n // 2),
    "a comma and blanks": lambda n: '{"a": 1,' + " " * n,
    "digits": lambda n: '{"a": ' + "1" * n,
    "blanks": lambda n: " " * n + "{}",
    "an opening angle and blanks": lambda n: "<" + " " * n,
}


@pytest.mark.parametrize("name", LONG)
def test_a_hostile_length_is_read_in_linear_time(name: str) -> None:
    for length in (1_000, 300_000, MOST_CHARS + 9):
        hostile = LONG[name](length)
        for read in (parse_text, parse_reply, strip_reasoning):
            began = time.perf_counter()
            read(hostile)
            took = time.perf_counter() - began
            # Quadratic time takes minutes here; linear time took less than 0.4 s for 300 000 characters.
            assert took < 5, (read.__name__, length)


def test_a_ledger_of_many_values_fits() -> None:
    rows = [
        {"value": f"Value number {i}", "score": 0.5, "confidence": 0.9, "reason": "It is in part affirmed here."}
        for i in range(9_000)
    ]
    assert parse_text(json.dumps({"ledger": rows})) == {"ledger": rows}
