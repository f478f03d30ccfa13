"""What leaves in place of a refused draft, and what is stored of one."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from langchain.agents import create_agent
from langchain.agents.structured_output import ToolStrategy
from langchain_core.messages import AIMessage
from pydantic import BaseModel
from typer.testing import CliRunner

from safi_agent import JudgeUnavailableError, ViolationError
from safi_agent.cli import app
from tests.safi_agent.agents.calling import Calling, Tools, ask, both, call, calls, records
from tests.safi_agent.fakes import THREE, VIOLATION, Fake, in_turn
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


@pytest.fixture
def shadow_warnings(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> Callable[[], list[str]]:
    """The warnings of this test about shadow mode."""
    monkeypatch.setattr("safi_agent.release._warned", set())
    return lambda: [text for text in caplog.messages if "Shadow mode" in text]


@pytest.mark.parametrize("will", [VIOLATION, DOWN, "unclear"])
def test_in_shadow_mode_the_will_rules_and_the_answer_leaves(
    make: Any, tmp_path: Path, shadow_warnings: Any, will: Any
) -> None:
    safi = make(Fake(will=will), will_mode="shadow", raise_on_violation=True)
    answer = safi.invoke("q")
    assert answer.text == "An answer."
    metadata = answer.response_metadata["safi"]
    assert (metadata["willDecision"], metadata["auditStatus"]) == ("violation", "pending")
    assert "shadow" in metadata["flags"]
    assert safi.drain() == 1
    (record,) = lines(tmp_path / "log.json")
    assert record["finalOutput"] == record["intellectDraft"] == "An answer."
    assert (record["willDecision"], record["auditStatus"], record["muTurn"]) == ("violation", "complete", 1)
    assert "shadow" in record["flags"]
    assert CliRunner().invoke(app, ["replay", str(tmp_path / "log.json"), "--store", safi.store]).exit_code == 0


def test_each_message_in_shadow_mode_says_so_and_the_log_once(make: Any, shadow_warnings: Any) -> None:
    first = make(will_mode="shadow")
    second = first.model_copy(update={"beta": 0.5})
    assert [safi.invoke("q").response_metadata["safi"]["flags"] for safi in (first, second)] == [["shadow"]] * 2
    second.close()
    assert shadow_warnings() == [
        "Shadow mode: answers under 'three' leave even if the Will refuses them. "
        "Set will_mode='enforce' to withhold them."
    ]
    assert "will_mode='shadow'" in repr(first)
    assert make().invoke("q").response_metadata["safi"]["flags"] == []


def test_a_rule_is_observed_in_shadow_mode_too(make: Any, tmp_path: Path) -> None:
    values = THREE.model_copy(update={"forbidden": ("answer",)})
    safi = make(values=values, will_mode="shadow")
    assert safi.invoke("q").text == "An answer."
    safi.drain()
    assert lines(tmp_path / "log.json")[0]["flags"] == ["forbidden_pattern", "shadow"]


def test_an_answer_of_shadow_mode_is_withheld_once_the_will_is_enforced(make: Any) -> None:
    model, config = Fake(will=VIOLATION), {"configurable": {"safi_turn_id": "t"}}
    shadow = make(model, will_mode="shadow")
    assert [shadow.invoke("q", config).text for _ in range(2)] == ["An answer."] * 2
    enforcing = make(model)
    refused = enforcing.invoke("q", config)
    assert (refused.text, refused.response_metadata["safi"]["flags"]) == ("No.", [])
    with pytest.raises(ViolationError):
        make(model, raise_on_violation=True).invoke("q", config)
    assert len(model.asked("intellect")) == 1


@both
def test_an_agent_in_shadow_mode_speaks_and_makes_only_allowed_calls(
    govern: Any, tmp_path: Path, awaited: bool
) -> None:
    tools = Tools()
    made = calls(call("search", "a", q="x"), call("pay", "b", amount=5), text="Let me see.")
    governed = govern(Fake(will=VIOLATION), ["search"], will_mode="shadow")
    agent = create_agent(Calling(intellect=in_turn(made, "Done.")), tools.of(), middleware=[governed])
    out = ask(agent, awaited)
    assert tools.did == ["search x"]
    answers = [message for message in out["messages"] if isinstance(message, AIMessage)]
    assert [str(message.text) for message in answers] == ["Let me see.", "Done."]
    told = [message.response_metadata["safi"] for message in answers]
    assert [(one["willDecision"], one["flags"]) for one in told] == [("violation", ["shadow"])] * 2
    assert governed.drain() == 2
    step, answer = records(tmp_path)
    assert [step["turnId"], answer["turnId"]] == [one["turnId"] for one in told]
    assert [step["finalOutput"], answer["finalOutput"]] == ["Let me see.", "Done."]


@both
def test_an_agents_structured_answer_leaves_in_shadow_mode(govern: Any, awaited: bool) -> None:
    class Weather(BaseModel):
        city: str

    made = calls(call("Weather", "w", city="Rome"))
    for mode, city in (("shadow", "Rome"), ("enforce", None)):
        governed = govern(Fake(will=VIOLATION), will_mode=mode)
        agent = create_agent(Calling(intellect=made), [], middleware=[governed], response_format=ToolStrategy(Weather))
        structured = ask(agent, awaited).get("structured_response")
        assert (structured and structured.city) == city
    governed = govern(Fake(), will_mode="shadow")
    step = calls(call("search", "a", q="x"), text="Let me see.")
    agent = create_agent(Calling(intellect=in_turn(step, "Done.")), Tools().of("search"), middleware=[governed])
    flags = [m.response_metadata["safi"]["flags"] for m in ask(agent)["messages"] if isinstance(m, AIMessage)]
    assert flags == [["shadow"]] * 2
