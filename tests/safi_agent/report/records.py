"""Records for logs without a hash chain."""

import json
import random
from pathlib import Path
from typing import Any

VALUES = ("Truth", "Care", "Thrift")


def record(number: int, **changes: Any) -> dict[str, Any]:
    """The record of an approved turn with a complete audit; ``changes`` replace its fields."""
    rows = [{"value": name, "score": 0.5, "confidence": 0.8, "reason": f"reason {number}"} for name in VALUES]
    fields = {
        "timestamp": "2026-03-01T08:00:00Z",
        "turn": number,
        "userPrompt": f"question {number}",
        "intellectDraft": f"answer {number}",
        "intellectReflection": "because",
        "finalOutput": f"answer {number}",
        "willDecision": "approve",
        "willReflection": "fine",
        "conscienceLedger": rows,
        "spiritScore": 7,
        "drift": 0.1,
        "spiritReflection": "Coherence 7 of 10, drift 0.10.",
        "turnId": f"t-{number}",
        "memoryKey": "three",
        "driftRaw": 0.1,
        "auditStatus": "complete",
        "valueSet": "three",
        "models": {"intellect": "m"},
        "flags": [],
    }
    return fields | changes


UNSCORED: dict[str, Any] = {"conscienceLedger": [], "spiritScore": None, "drift": None}
REFUSED = {**UNSCORED, "willDecision": "violation", "auditStatus": "none"}
FAILED = {**UNSCORED, "auditStatus": "failed"}
LOW: dict[str, Any] = {"spiritScore": 3}
ADRIFT: dict[str, Any] = {"drift": 0.7}


def write(path: Path, records: list[Any]) -> Path:
    path.write_text("".join(f"{json.dumps(r) if isinstance(r, dict) else r}\n" for r in records), encoding="utf-8")
    return path


def various(turns: int, seed: int = 0) -> list[dict[str, Any]]:
    """Turns of two memory keys; about one in six is to be reviewed."""
    draw = random.Random(seed)
    made = []
    for number in range(1, turns + 1):
        change = draw.choice([REFUSED, FAILED, LOW, ADRIFT]) if draw.random() < 0.17 else {}
        made.append(record(number, memoryKey=draw.choice(["ward", "desk"]), **change))
    return made


HOSTILE = (
    "</script><script>document.title='owned'</script>",
    "<!--<script>",
    "]]>",
    "<img src=x onerror=\"document.title='owned'\">",
    "{{data}} {{script}} {{policy}}",
    "\u2028\u2029\ud800\x00",
    "javascript:alert(1)",
    "';document.title='owned';//",
    "&lt;script&gt;%{customdata[0]}",
    '<a href="https://x.example">here</a>',
)


def hostile(text: str, number: int = 1) -> dict[str, Any]:
    """A turn with this text wherever it can be."""
    row = {"value": text, "score": -1, "confidence": 1, "reason": text}
    names = ("userPrompt", "intellectDraft", "intellectReflection", "finalOutput", "willReflection", "spiritReflection")
    texts = dict.fromkeys((*names, "memoryKey", "turnId", "timestamp"), text)
    return record(number, **texts, conscienceLedger=[row], metadata={text: text}, spiritScore=2)
