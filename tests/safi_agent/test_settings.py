"""Settings are refused where they cannot be meant, and never change; a copy is a chain of its own."""

import copy
import pickle
import time
from pathlib import Path
from typing import Any

import pytest
from langchain_core.runnables import ConfigurableField

from safi_agent import SafiChain, create_safi_chain
from tests.safi_agent.fakes import THREE, Fake, ledger
from tests.safi_agent.log_lines import lines


def test_a_pickle_of_it_is_the_same_chain(tmp_path: Path) -> None:
    with create_safi_chain("offline", "civic", store=f"sqlite:///{tmp_path}/s.db", log=tmp_path / "l.json") as safi:
        safi.invoke("a")
        again = pickle.loads(pickle.dumps(safi))
    assert again.values == safi.values
    assert again.invoke("b").response_metadata["safi"]["turn"] == 2
    assert again.close() == 1


def test_copies_are_chains_of_their_own_with_the_settings_they_are_given(make: Any, tmp_path: Path) -> None:
    safi = make(Fake(conscience=ledger(score=1)))
    copies = [copy.deepcopy(safi), safi.model_copy(update={"beta": 0.5})]
    asked = safi.configurable_fields(beta=ConfigurableField(id="beta"))
    asked.invoke("a", {"configurable": {"beta": 0.0, "safi_key": "asked"}})
    copies[1].invoke("a", {"configurable": {"safi_key": "half"}})
    for chain in (*copies, safi):
        chain.invoke("a")
        chain.close()
    deadline = time.monotonic() + 60  # the chain that was made for one call is not ours to drain
    while len(lines(tmp_path / "log.json")) < 5 and time.monotonic() < deadline:
        time.sleep(0.01)
    found = {r["memoryKey"]: r["mu"]["truth"] for r in lines(tmp_path / "log.json")}
    assert found["asked"] == pytest.approx(0.5)
    assert found["half"] == pytest.approx(0.25)
    with pytest.raises(ValueError, match="beta"):
        safi.model_copy(update={"beta": 2})


def test_an_invocation_writes_nothing_to_the_chain(make: Any) -> None:
    safi: SafiChain = make()
    before = {name: getattr(safi, name) for name in SafiChain.model_fields}, safi.__pydantic_private__.copy()
    safi.invoke("a")
    safi.drain()
    assert ({name: getattr(safi, name) for name in SafiChain.model_fields}, safi.__pydantic_private__) == before
    with pytest.raises(ValueError, match="frozen"):
        safi.beta = 0.5


@pytest.mark.parametrize(
    ("settings", "error", "words"),
    [
        ({"beta": 1}, ValueError, r"beta: expected a number in \[0, 1\), got 1"),
        ({"beta": -0.1}, ValueError, "beta"),
        ({"audit_attempts": 0}, ValueError, "audit_attempts: expected a number of at least 1, got 0"),
        ({"audit_timeout": float("nan")}, ValueError, "audit_timeout"),
        ({"log_max_bytes": 10}, ValueError, "log_max_bytes: expected None or at least 4096, got 10"),
        ({"hooks": [3]}, TypeError, "hooks: expected callables, got int"),
        ({"hooks": print}, TypeError, "hooks: expected a list, got <built-in function print>"),
        ({"audit_mode": "here"}, ValueError, "^audit_mode: expected 'in_process' or 'worker', got 'here'.$"),
        ({"conscience_calls": ["all"]}, ValueError, r"^conscience_calls: expected 'all' or 'each', got \['all'\].$"),
        ({"score_mode": None}, ValueError, "^score_mode: expected 'discrete' or 'continuous', got None.$"),
        ({"outage_message": " "}, ValueError, "^outage_message: expected None or a text, got ' '.$"),
        ({"will_mode": True}, ValueError, "^will_mode: expected 'enforce' or 'shadow', got True.$"),
        ({"sampling": 0.5}, TypeError, "^sampling: expected a Sampling, got float.$"),
        ({"refused": "none"}, ValueError, "^refused: expected 'minimal' or 'full', got 'none'.$"),
        ({"when_full": "later"}, ValueError, "^when_full: expected 'wait' or 'refuse' or 'warn', got 'later'.$"),
        ({"colour": 1}, TypeError, "unexpected keyword argument 'colour'"),
        ({"store": "mysql://x"}, ValueError, "store: expected a URL that begins with 'sqlite://'"),
        ({"store": "safi.db"}, ValueError, "store: expected None or a URL like"),
        ({"store": "sqlite:////no/where/s.db"}, ValueError, "store: expected a file in an existing folder"),
        ({"log": "/no/where/log"}, ValueError, "log: expected a file in an existing folder"),
        ({"log": 3}, TypeError, "log: expected a path or None, got int"),
        ({"will_model": 3}, TypeError, "will_model: expected a chat model or the name of one, got int"),
        (
            {"conscience_model": "openai:gpt-4o"},
            ValueError,
            "conscience_model: no model can be created from 'openai:gpt-4o'",
        ),
        ({"model": "nonsense"}, ValueError, "model: no model can be created from 'nonsense'"),
        ({"values": "nonsense"}, ValueError, "values: expected one of"),
    ],
)
def test_settings_that_cannot_be_meant_are_refused(
    tmp_path: Path, settings: dict[str, Any], error: type[Exception], words: str
) -> None:
    given = {"model": Fake(), "values": THREE, "store": None, "log": None} | settings
    with pytest.raises(error, match=words):
        create_safi_chain(**given)


@pytest.mark.parametrize(
    ("settings", "error", "text"),
    [
        ({"drafts": 0}, ValueError, "drafts: expected a whole number from 1 to 64, got 0"),
        ({"drafts": 65}, ValueError, "drafts: expected a whole number from 1 to 64, got 65"),
        (
            {"drafts": 2, "embeddings": "words"},
            TypeError,
            "embeddings: expected LangChain's Embeddings or None, got str",
        ),
        (
            {"drafts": 2, "drafts_alike": 2},
            ValueError,
            r"drafts_alike: expected a cosine similarity in \[-1, 1\], got 2",
        ),
        ({"drafts": 2, "min_agreement": 1.5}, ValueError, r"min_agreement: expected a share in \[0, 1\], got 1.5"),
        ({"min_agreement": 0.5}, ValueError, "min_agreement: expected 0 with a single draft, got 0.5"),
    ],
)
def test_settings_of_drafts_that_cannot_be_meant_are_refused(make: Any, settings: Any, error: Any, text: str) -> None:
    with pytest.raises(error, match=text):
        make(Fake(), **settings)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"max_pending": 0}, "max_pending: expected None or a whole number of at least 1, got 0"),
        ({"max_pending": -3}, "max_pending: expected None or a whole number of at least 1, got -3"),
        ({"max_pending": True}, "max_pending"),
        ({"max_pending": 2.5}, "max_pending"),
    ],
)
def test_bounds_of_the_backlog_that_cannot_be_meant_are_refused(make: Any, settings: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        make(Fake(), **settings)
