"""The names that the config gives to a turn and to a memory."""

from pathlib import Path
from typing import Any

import pytest

from tests.safi_agent.fakes import Fake, in_turn
from tests.safi_agent.logged import lines


def test_a_turn_id_answers_once(make: Any) -> None:
    model = Fake(intellect=in_turn("First.", "Second."))
    safi = make(model)
    config: Any = {"configurable": {"safi_turn_id": "x"}}
    assert [safi.invoke("a", config).content for _ in range(3)] == ["First."] * 3
    assert len(model.asked("intellect")) == 1
    assert safi.drain() == 1
    with pytest.raises(ValueError, match="safi_turn_id: expected a new id for another prompt or key, got 'x' again"):
        safi.invoke("b", config)


def test_two_at_once_with_one_turn_id_get_one_answer(make: Any) -> None:
    safi = make(Fake(intellect=in_turn(*[f"Answer {i}." for i in range(8)]), delay=0.02))
    config: Any = {"configurable": {"safi_turn_id": "x"}}
    answers = {m.content for m in safi.batch(["a"] * 8, [config] * 8)}
    assert len(answers) == 1
    assert safi.drain() == 1


@pytest.mark.parametrize("argument", ["safi_key", "safi_turn_id"])
@pytest.mark.parametrize(
    "name", ["", 3, None, "a\nb", "x" * 201, "a\u200b", "a\u3164", "a\ufe0f", "\u034fa", "a\u2800"]
)
def test_names_in_the_config_are_checked(make: Any, argument: str, name: object) -> None:
    with pytest.raises(ValueError, match=f"{argument}: expected 1 to 200 printable characters, got"):
        make().invoke("a", {"configurable": {argument: name}})


def test_keys_have_memories_of_their_own(make: Any, tmp_path: Path) -> None:
    safi = make()
    for key in ("a", "b", "a"):
        safi.invoke("x", {"configurable": {"safi_key": key}})
    safi.drain()
    found = {(r["memoryKey"], r["turn"], r["muTurn"]) for r in lines(tmp_path / "log.json")}
    assert found == {("a", 1, 1), ("b", 1, 1), ("a", 2, 2)}
