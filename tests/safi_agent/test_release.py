"""What leaves in place of a refused draft, and what is stored of one."""

from pathlib import Path
from typing import Any

import pytest
from langchain.agents import create_agent

from tests.safi_agent.agents.calling import Calling, ask
from tests.safi_agent.fakes import VIOLATION, Fake
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
