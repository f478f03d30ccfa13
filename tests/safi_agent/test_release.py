"""What leaves in place of a refused draft, and what is stored of one."""

from pathlib import Path
from typing import Any

import pytest
from langchain.agents import create_agent

from safi_agent import JudgeUnavailableError, ViolationError
from tests.safi_agent.agents.calling import Calling, ask
from tests.safi_agent.fakes import THREE, VIOLATION, Fake
from tests.safi_agent.log_lines import lines
from tests.safi_agent.observers import secret


def files(folder: Path) -> bytes:
    return b"".join(file.read_bytes() for file in folder.rglob("*") if file.is_file())


@pytest.mark.parametrize("agent", [False, True])
def test_nothing_of_a_refused_draft_is_stored_unless_it_is_asked_for(
    make: Any, govern: Any, tmp_path: Path, agent: bool
) -> None:
    draft, reflection = secret(), secret()
    text = f"{draft}\n<reflection>{reflection}</reflection>"
    for refused in ("minimal", "full"):
        if agent:
            safi = govern(Fake(will=VIOLATION), refused=refused)
            ask(create_agent(Calling(intellect=text), [], middleware=[safi]))
        else:
            safi = make(Fake(intellect=text, will=VIOLATION), refused=refused)
            safi.invoke("q")
        safi.drain()
        stored = files(tmp_path)
        assert [word.encode() in stored for word in (draft, reflection)] == [refused == "full"] * 2
    minimal, full = lines(tmp_path / "log.json")
    assert (minimal["intellectDraft"], minimal["intellectReflection"]) == (None, None)
    assert (full["intellectDraft"], full["intellectReflection"]) == (draft, reflection)
    for record in (minimal, full):
        assert (record["userPrompt"], record["finalOutput"]) == ("q", "No.")
        assert (record["willDecision"], record["willReflection"]) == ("violation", "it breaks a value")


DOWN = RuntimeError("down")
OUTAGE = "The desk is being repaired. Please ask again later."


@pytest.mark.parametrize("agent", [False, True])
@pytest.mark.parametrize(
    ("will", "message", "text", "flags"),
    [
        (DOWN, OUTAGE, OUTAGE, ["judge_failed"]),
        (DOWN, None, "No.", ["judge_failed"]),
        (VIOLATION, OUTAGE, "No.", []),
        ("unclear", OUTAGE, "No.", ["judge_unclear"]),
    ],
)
def test_an_outage_of_the_judge_has_its_own_message(
    make: Any, govern: Any, agent: bool, will: Any, message: Any, text: str, flags: list[str]
) -> None:
    if agent:
        governed = govern(Fake(will=will), outage_message=message)
        answer = ask(create_agent(Calling(intellect="draft"), [], middleware=[governed]))["messages"][-1]
    else:
        answer = make(Fake(intellect="draft", will=will), outage_message=message).invoke("q")
    assert answer.text == text
    assert answer.response_metadata["safi"]["flags"] == flags
    assert answer.response_metadata["safi"]["willDecision"] == "violation"


def test_an_outage_carries_the_disclaimers_and_is_the_same_when_it_is_repeated(make: Any, tmp_path: Path) -> None:
    values = THREE.model_copy(update={"disclaimers": ("Not advice.",)})
    safi = make(Fake(will=DOWN), values, outage_message=OUTAGE)
    config = {"configurable": {"safi_turn_id": "t"}}
    assert [safi.invoke("q", config).text for _ in range(2)] == [f"{OUTAGE}\n\nNot advice."] * 2
    safi.drain()
    (record,) = lines(tmp_path / "log.json")
    assert (record["flags"], record["intellectDraft"]) == (["disclaimer_added", "judge_failed"], None)


@pytest.mark.parametrize(("will", "kind"), [(DOWN, JudgeUnavailableError), (VIOLATION, ViolationError)])
def test_raised_an_outage_is_an_error_of_its_own(make: Any, will: Any, kind: type[Exception]) -> None:
    safi = make(Fake(will=will), outage_message=OUTAGE, raise_on_violation=True)
    with pytest.raises(ViolationError) as caught:
        safi.invoke("q")
    assert type(caught.value) is kind
    assert str(caught.value) == (OUTAGE if will is DOWN else "No.")
    assert caught.value.metadata["willDecision"] == "violation"
