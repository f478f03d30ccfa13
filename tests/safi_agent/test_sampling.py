"""Which answers are audited, and what the record says of it."""

import math
from collections import deque
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from safi_agent import Sampling
from safi_agent.cli import app
from safi_agent.sampling import MOST_WORDS, RecentPrompts, Sampler, draw
from safi_agent.store.secrets import read_secret
from tests.safi_agent.fakes import VIOLATION, Fake, approve, in_turn
from tests.safi_agent.log_lines import lines


def hmac_by_definition(key: bytes, message: bytes) -> bytes:
    """RFC 2104, for keys of at most one block."""
    padded = key.ljust(64, b"\0")
    inner = sha256(bytes(byte ^ 0x36 for byte in padded) + message).digest()
    return sha256(bytes(byte ^ 0x5C for byte in padded) + inner).digest()


@given(st.text(st.characters(max_codepoint=127), max_size=64), st.text(st.characters(exclude_categories=["Cs"])))
def test_a_draw_is_the_first_bits_of_an_hmac(key: str, turn_id: str) -> None:
    bits = hmac_by_definition(key.encode(), turn_id.encode())[:6].hex()
    assert draw(key, turn_id) == int(bits, 16) / 0x1000000000000


def test_draws_are_uniform_and_a_share_of_all_is_audited() -> None:
    turns, share = 4_000, 0.2
    sampler = Sampler(Sampling(share=share), "key")
    audited = sum(sampler.choose(f"turn {n}", "q", refused=False).audited for n in range(turns))
    assert abs(audited - turns * share) < 4 * math.sqrt(turns * share * (1 - share))
    other = Sampler(Sampling(share=share), "another key")
    choices = [(one.choose(f"turn {n}", "q", refused=False).audited) for n in range(200) for one in (sampler, other)]
    assert choices[::2] != choices[1::2]


def slow_similarity(prompt: str, recent: deque[set[str]]) -> float:
    words = set("".join(c if c.isalnum() or c == "_" else " " for c in prompt.casefold()).split())
    pairs = [(len(words & other), len(words | other)) for other in recent]
    recent.append(words)
    return max((both / either for both, either in pairs if either), default=0.0)


@given(st.lists(st.text("ab AB,.", max_size=12), max_size=30), st.integers(1, 5))
def test_similarity_is_that_of_a_slow_twin(prompts: list[str], window: int) -> None:
    recent, twin = RecentPrompts(window), deque[set[str]](maxlen=window)
    for prompt in prompts:
        assert recent.add(prompt) == slow_similarity(prompt, twin)
        assert set(recent._index) == set[int]().union(*recent._prompts)  # nothing is kept of what left the window


def test_of_a_long_prompt_the_same_words_are_compared_each_time() -> None:
    recent = RecentPrompts(10)
    words = [f"w{n}" for n in range(4 * MOST_WORDS)]
    assert recent.add(" ".join(words)) == 0
    assert recent.add(" ".join(reversed(words))) == 1
    assert recent.add(" ".join(words[: MOST_WORDS // 2])) < 1


NEVER = Sampling(share=2**-60)  # no draw is below it but 0


def test_what_is_not_drawn_is_answered_logged_and_not_audited(make: Any, tmp_path: Path) -> None:
    model = Fake()
    safi = make(model, sampling=NEVER)
    answer = safi.invoke("q")
    assert (answer.text, answer.response_metadata["safi"]["auditStatus"]) == ("An answer.", "none")
    turn_id = answer.response_metadata["safi"]["turnId"]
    audit = safi.audit(turn_id)
    assert (audit.status, audit.score, audit.record["auditReason"]) == ("none", None, "not_drawn")
    assert safi.drain() == 0
    assert not model.asked("conscience")
    (record,) = lines(tmp_path / "log.json")
    key = read_secret(safi._auditor.store, "sampling")
    assert record["sampling"] == {"share": 2**-60, "draw": draw(key, turn_id)}
    assert (record["auditStatus"], record["spiritScore"], record["muTurn"]) == ("none", None, 0)
    for command in ("replay", "verify"):
        done = CliRunner().invoke(app, [command, str(tmp_path / "log.json"), "--store", safi.store])
        assert done.exit_code == 0, done.output
    shown = CliRunner().invoke(app, ["show", turn_id, "--store", safi.store], env={"COLUMNS": "200"})
    assert "not audited: not in the sample (share 8.7e-19, draw" in shown.output


def test_a_novel_prompt_is_audited_and_a_known_one_is_not(make: Any, tmp_path: Path) -> None:
    safi = make(sampling=Sampling(share=0, novel_below=0.5))
    for prompt in ("When is glass collected?", "when is GLASS collected", "Who repairs lamps?"):
        safi.invoke(prompt)
    assert safi.drain() == 2
    found = lines(tmp_path / "log.json")
    assert [(r["auditReason"], r["sampling"]["similarity"]) for r in found] == [
        ("novel", 0.0),
        ("not_drawn", 1.0),
        ("novel", 0.0),
    ]
    assert [r["muTurn"] for r in found] == [1, 1, 2]


def test_each_turn_has_a_reason(make: Any, tmp_path: Path) -> None:
    make().invoke("all")
    make(sampling=Sampling(share=1 - 2**-40)).invoke("drawn")
    shadow = make(Fake(will=in_turn(VIOLATION, approve())), sampling=NEVER, will_mode="shadow")
    shadow.invoke("shadow")
    shadow.invoke("not_drawn")
    make(Fake(will=VIOLATION), sampling=NEVER).invoke("refused")
    dead = make(Fake(intellect=RuntimeError("down")))
    with pytest.raises(Exception, match="no draft"):
        dead.invoke("no_draft")
    assert dead.drain() == 0
    for record in lines(tmp_path / "log.json"):
        assert record["auditReason"] == record["userPrompt"]
        assert (record["auditStatus"] == "complete") == (record["userPrompt"] in ("all", "drawn", "shadow"))
    assert len(lines(tmp_path / "log.json")) == 6


def test_a_repeated_turn_has_the_same_choice_and_other_chains_of_the_store_too(make: Any) -> None:
    sampling = Sampling(share=0.5)
    one, other = make(sampling=sampling), make(sampling=sampling)
    names = [f"t{n}" for n in range(12)]
    told = [
        [safi.invoke("q", {"configurable": {"safi_turn_id": name}}).response_metadata["safi"] for name in names]
        for safi in (one, other)
    ]
    assert told[0] == told[1]
    assert {metadata["auditStatus"] for metadata in told[0]} == {"pending", "none"}


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"share": 1.5}, r"^share: expected a number in \[0, 1\], got 1.5.$"),
        ({"share": float("nan")}, "^share: expected a number"),
        ({"share": True}, "^share: expected a number"),
        ({"share": "0.5"}, "^share: expected a number"),
        ({"share": 0}, "^share: expected a number above 0 without novel_below, got 0: nothing would be audited.$"),
        ({"novel_below": 0}, r"^novel_below: expected None or a number in \(0, 1\], got 0.$"),
        ({"novel_below": 1.1}, "^novel_below"),
        ({"window": 0}, "^window: expected a whole number from 1 to 10,000, got 0.$"),
        ({"window": 2.0}, "^window"),
    ],
)
def test_what_cannot_be_meant_is_refused(wrong: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Sampling(**wrong)
