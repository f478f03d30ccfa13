"""Replies composed of rulings, quotations, fences, reasoning and carriers, against the grammar stated on their parts.

The oracle knows how a reply was put together and never looks at its text.
"""

import json
from dataclasses import dataclass
from random import Random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from langchain_core.messages import AIMessage

from safi_agent.faculties.conscience import ledger_rows
from safi_agent.faculties.will import read_verdict
from safi_agent.parsing import parse_reply
from tests.safi_agent.fakes import THREE

EXAMPLES = settings(max_examples=800, deadline=None, derandomize=True)


@dataclass(frozen=True)
class Part:
    """A piece of a text: what it is, how it reads, and the object in it where it is one."""

    kind: str
    text: str
    data: Any = None


def objects(draw: Random, kind: str) -> dict[str, Any]:
    if kind == "ruling":
        decision = draw.choice(["approve", "approve", "violation"])
        return {"decision": decision, "reason": draw.choice(["Fine.", "a } ``` {", "</think>", '"', "no, {}"])}
    scores = [draw.choice([-1, 0, 0.5, 1]) for _ in THREE.values]
    said = zip(THREE.values, scores, strict=True)
    return {"ledger": [{"value": v.name, "score": s, "confidence": 1, "reason": "so"} for v, s in said]}


def part(draw: Random, kind: str) -> Part:
    data = objects(draw, kind)
    written = json.dumps(data, indent=draw.choice([None, 1]))
    first = next(iter(data))
    closed = "endless" if "</think>" in written else "reasoning"  # it ends in the middle of what it quotes
    return draw.choice(
        [
            *[Part("object", written, data)] * 6,
            *[Part("fenced", f"```json\n{written}\n```", data)] * 2,
            Part("fenced", f"```\n{written}```", data),
            *[Part("blank", space) for space in ("", "\n", " \t")] * 2,
            *[Part("reasoning", f"<think>{words}</think>") for words in ("", "Well.")],
            *[Part(closed, f"<think>{words}</think>") for words in (written, f"```{written}```")],
            Part(closed, f"<Reasoning>{written}\n</reasoning>"),
            Part("endless", f"<think>{written} But"),
            Part("endless", f"<think>{written}"),
            Part("words", "So: "),
            Part("words", "my decision: violation."),
            Part("words", f"the draft hands me {written}, an attack"),
            Part("words", f"'{written}'"),
            Part("words", "</think>"),
            Part("half", written[:-1]),
            Part("half", written[: len(written) // 2]),
            Part("half", f"```json\n{written}\n"),
            Part("twice", f'{{"{first}": null, {written.lstrip("{").lstrip()}'),
            Part("list", f"[{written}]"),
            Part("constant", '{"a": NaN}'),
        ]
    )


def read_text(pieces: list[Part]) -> Any:
    """The grammar on parts: perhaps one reasoning, then one object or fenced object, and blanks."""
    left = [piece for piece in pieces if piece.kind != "blank"]
    if left and left[0].kind == "reasoning":
        left = left[1:]
    return left[0].data if len(left) == 1 and left[0].kind in ("object", "fenced") else None


@dataclass(frozen=True)
class Case:
    message: AIMessage
    read: Any


ENDINGS: list[tuple[dict[str, Any], bool, bool]] = [  # (metadata, normal for a text, normal for a call)
    *[({}, True, True)] * 8,
    *[({"finish_reason": "stop"}, True, True)] * 2,
    ({"stop_reason": "end_turn"}, True, True),
    ({"finish_reason": "STOP"}, True, True),
    ({"stop_reason": "tool_use"}, False, True),
    ({"finish_reason": "tool_calls"}, False, True),
    ({"finish_reason": "length"}, False, False),
    ({"stop_reason": "max_tokens"}, False, False),
    ({"finish_reason": "content_filter"}, False, False),
    ({"done_reason": "length"}, False, False),
    ({"status": "incomplete"}, False, False),
    ({"stop_reason": "refusal"}, False, False),
    ({"finish_reason": "whatever"}, False, False),
]


def compose(seed: int, kind: str) -> Case:
    draw = Random(seed)
    carriers = draw.choice(["text", "text", "text", "call", "call", "both", "two texts", "two calls"])
    texts = [
        [part(draw, kind) for _ in range(draw.choice([1, 1, 1, 2, 2, 3, 4]))]
        for _ in range(2 if carriers == "two texts" else 1)
    ]
    texts = texts if carriers in ("text", "both", "two texts") else []
    calls = [objects(draw, kind) for _ in range({"call": 1, "both": 1, "two calls": 2}.get(carriers, 0))]
    written = [(pieces, "\n".join(piece.text for piece in pieces)) for pieces in texts]
    said = [(pieces, text) for pieces, text in written if text.strip()]
    metadata, text_ends, call_ends = draw.choice(ENDINGS)
    refused, broken, unknown, raw_twice = (draw.random() < 0.05 for _ in range(4))

    blocks: list[Any] = [{"type": "text", "text": text} for _, text in written]
    if draw.random() < 0.1:
        blocks.insert(0, {"type": "reasoning", "reasoning": json.dumps(objects(draw, kind))})
    if unknown:
        blocks.append({"type": "document", "text": "{}"})
    plain = len(blocks) == 1 and blocks[0]["type"] == "text" and draw.random() < 0.5
    kept: dict[str, Any] = {"refusal": "I cannot."} if refused else {}
    if calls and (raw_twice or draw.random() < 0.5):
        arguments = json.dumps(calls[0])
        twice = f'{{"reason": 0, "reason": 0, {arguments[1:]}' if raw_twice else arguments
        kept["tool_calls"] = [{"id": "0", "type": "function", "function": {"name": "f", "arguments": twice}}]
    message = AIMessage(
        blocks[0]["text"] if plain else blocks,
        tool_calls=[{"name": "f", "args": args, "id": str(i)} for i, args in enumerate(calls)],
        invalid_tool_calls=[{"name": "f", "args": "{", "id": "9", "error": "x"}] if broken else [],
        additional_kwargs=kept,
        response_metadata=metadata,
    )
    one_text = len(said) == 1 and not calls and text_ends
    one_call = not said and len(calls) == 1 and call_ends and not raw_twice
    read = read_text(said[0][0]) if one_text else calls[0] if one_call else None
    return Case(message, None if refused or broken or unknown else read)


@pytest.mark.slow
@EXAMPLES
@given(st.integers(0, 2**64))
def test_no_unclear_ruling_approves_and_no_clear_one_is_refused(seed: int) -> None:
    case = compose(seed, "ruling")
    found = parse_reply(case.message)
    assert found == case.read
    ruled = read_verdict(found, THREE)
    assert ruled.decision == ("approve" if case.read and case.read["decision"] == "approve" else "violation")
    assert ruled.code == ("judge" if case.read else "judge_unclear")


@pytest.mark.slow
@EXAMPLES
@given(st.integers(0, 2**64))
def test_no_unclear_ledger_is_read_and_every_clear_one_is(seed: int) -> None:
    case = compose(seed, "ledger")
    found = parse_reply(case.message)
    assert found == case.read
    assert ledger_rows(found or {}) == (case.read["ledger"] if case.read else [])


def test_clear_and_unclear_replies_are_both_common_among_the_composed() -> None:
    clear = [compose(seed, "ruling").read is not None for seed in range(1000)]
    assert 0.1 < sum(clear) / len(clear) < 0.9
