"""What each faculty is shown of a turn and of those before it: the table of the page on faculties, cell by cell."""

import json
import re
from pathlib import Path
from typing import Any

from langchain_core.messages import ToolMessage

from safi_agent import Value, ValueSet
from tests.safi_agent.agents.calling import call, calls
from tests.safi_agent.fakes import Fake, approve

PAGE = Path(__file__).parents[3] / "docs" / "concepts" / "faculties.md"
VALUES = ValueSet(
    name="desk",
    values=(
        Value(name="Truth", weight=0.6173, description="a-description"),
        Value(name="Care", weight=0.3827, rubric="a-rubric", description="behind-the-rubric"),
        Value(name="No Harm", weight=0, vetoes=("a-veto",)),
    ),
    forbidden=("a-forbidden-pattern",),
)
GIVEN: list[Any] = [
    ("system", "the-callers-system-prompt"),
    ("human", "what-was-asked-before"),
    calls(call("search", q="an-argument")),
    ToolMessage("a-result", tool_call_id="1"),
    ("ai", "what-was-answered-before"),
    ("human", "the-prompt"),
]
SIGNS = {
    "values: names, descriptions or rubrics": ("Truth", "a-description", "a-rubric"),
    "their weights": ("6173", "3827"),
    "vetoes and forbidden patterns": ("a-veto", "a-forbidden-pattern"),
    "the conversation: system prompt, history, tool calls and results": (
        *("the-callers-system-prompt", "what-was-asked-before", "what-was-answered-before"),
        *("an-argument", "a-result"),
    ),
    "documents (`context`)": ("a-document",),
    "the prompt": ("the-prompt",),
    "metadata": ("some-metadata",),
    "the draft": ("the-draft",),
    "the reflection": ("the-reflection",),
    "the Will's reason": ("the-wills-reason",),
    "the ledger's scores and confidences": ("8371",),
    "the ledger's reasons": ("the-consciences-reason",),
    "the Spirit's score, drift and text": ("spiritScore", "drift", "Coherence"),
    "μ": (),  # its digits are known once it is
    "the feedback note": ("Give more thought to this value: Care.",),
}
SHOWN_TO = ("Intellect", "Will", "Conscience", "Spirit", "caller")


def scored(values: dict[str, float]) -> str:
    rows = [
        {"value": v, "score": s, "confidence": 0.8371, "reason": "the-consciences-reason"} for v, s in values.items()
    ]
    return json.dumps({"ledger": rows})


def table() -> dict[str, list[bool]]:
    """What the page says, row by row: whether each of ``SHOWN_TO`` is shown it."""
    rows = re.findall(r"^\| ([^|]+?) \| (.+?) \|$", PAGE.read_text(), re.MULTILINE)
    cells = {name: [cell.strip().startswith("yes") for cell in rest.split("|")[:5]] for name, rest in rows}
    return {name: cells[name] for name in SIGNS}


def test_each_faculty_is_shown_what_the_page_says(make: Any, tmp_path: Path) -> None:
    model = Fake(
        intellect="the-draft<reflection>the-reflection</reflection>",
        will=approve(["No Harm"]).replace("fine", "the-wills-reason"),
        conscience=scored({"Truth": 1, "Care": -1, "No Harm": 1}),
    )
    safi = make(model, VALUES, beta=0.75)
    answers = []
    for turn in "xyz":
        config: Any = {"configurable": {"safi_turn_id": turn}}  # a random id might hold a figure that is looked for
        answers.append(
            repr(safi.invoke({"prompt": GIVEN, "context": "a-document", "metadata": {"id": "some-metadata"}}, config))
        )
        safi.drain()
    records = [json.loads(line) for line in (tmp_path / "log.json").read_text().splitlines()]
    mus = tuple(str(abs(mean))[2:8] for record in records for mean in record["mu"].values())
    assert all(len(digits) == 6 for digits in mus)
    signs = SIGNS | {"μ": mus}
    shown = {
        role.title(): "".join(repr(message) for asked in model.asked(role) for message in asked)
        for role in ("intellect", "will", "conscience")
    } | {"caller": "".join(answers)}
    told = table()
    for name, words in signs.items():
        for who, yes in zip(SHOWN_TO, told[name], strict=True):
            if who == "Spirit":
                continue
            found = [word for word in words if word in shown[who]]
            assert found == (list(words) if yes else []), (name, who)
    assert "behind-the-rubric" not in "".join(shown.values())


def test_the_spirit_is_given_what_its_arguments_are_and_no_text() -> None:
    given = [name for name, cells in table().items() if cells[SHOWN_TO.index("Spirit")]]
    assert given == ["their weights", "the ledger's scores and confidences", "μ"]  # see test_spirit.py
