"""A chain of several drafts: of those that are not chosen nothing is left anywhere."""

import asyncio
import builtins
import json
from pathlib import Path
from typing import Any

import pytest
from langchain_core.embeddings import DeterministicFakeEmbedding, Embeddings
from langchain_core.messages import AIMessage
from langchain_openai import ChatOpenAI

from safi_agent import IntellectError, SafiChain
from safi_agent.faculties.self_consistency import Selection
from safi_agent.faculties.will import rules
from safi_agent.turn import Draft
from tests.safi_agent.fakes import ALSO, NO, OTHER, THREE, VIOLATION, YES, Fake, approve, in_turn
from tests.safi_agent.openai_server import serving


def record(folder: Path) -> dict[str, Any]:
    return dict(json.loads((folder / "log.json").read_text().splitlines()[-1]))


@pytest.mark.slow
def test_the_draft_that_most_agree_with_leaves_and_the_agreement_is_recorded(make: Any, tmp_path: Path) -> None:
    model = Fake(intellect=in_turn(NO, f"{YES}<reflection>r1</reflection>", f"{ALSO}<reflection>r2</reflection>"))
    safi = make(model, drafts=3)
    message = safi.invoke("Who decides?")
    assert message.content in (YES, ALSO)
    safi.drain()
    kept = record(tmp_path)
    assert (kept["drafts"], kept["agreement"]) == (3, pytest.approx(2 / 3))
    assert kept["intellectDraft"] == message.content
    assert kept["auditStatus"] == "complete"
    system = str(model.asked("will")[0][0].text)
    assert "chosen from 3 that its author wrote" in system
    assert "67 % say much the same" in system


def test_one_draft_costs_nothing_and_tells_nothing(make: Any, tmp_path: Path) -> None:
    class Never(Embeddings):
        def embed_documents(self, texts: list[str]) -> list[list[float]]:
            raise AssertionError

        embed_query = embed_documents  # type: ignore[assignment]

    model = Fake()
    safi = make(model, embeddings=Never())
    safi.invoke("a")
    safi.drain()
    assert (record(tmp_path)["drafts"], record(tmp_path)["agreement"]) == (1, None)
    assert len(model.asked("intellect")) == 1
    assert "drafts" not in str(model.asked("will")[0][0].text)


def test_too_little_agreement_is_a_violation_without_a_judge(make: Any, tmp_path: Path) -> None:
    model = Fake(intellect=in_turn(YES, NO, OTHER, ALSO))
    safi = make(model, drafts=3, min_agreement=0.5)
    assert safi.invoke("a").content == "No."
    safi.drain()
    assert "agreement_low" in record(tmp_path)["flags"]
    assert not model.asked("will")
    assert safi.invoke("b").content == ALSO  # the last reply for ever: all agree
    found = rules(Draft("x", agreement=0.5, drafts=2), THREE, 0.5)
    assert found is None


def test_a_draft_that_fails_is_done_without_and_if_all_fail_there_is_none(make: Any, tmp_path: Path) -> None:
    safi = make(Fake(intellect=in_turn(RuntimeError("canary"), YES, ALSO)), drafts=3)
    assert safi.invoke("a").content in (YES, ALSO)
    safi.drain()
    kept = record(tmp_path)
    assert (kept["agreement"], kept["flags"][0]) == (pytest.approx(2 / 3), "drafts_missing")
    with pytest.raises(IntellectError, match="RuntimeError") as caught:
        make(Fake(intellect=RuntimeError("canary")), drafts=3).invoke("a")
    assert "canary" not in str(caught.value)


class Broken(Embeddings):
    """A model of embeddings that quotes what it was given."""

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        raise RuntimeError(" ".join(texts))

    def embed_query(self, text: str) -> list[float]:
        raise RuntimeError(text)


def test_embeddings_that_fail_are_an_error_that_quotes_nothing(make: Any) -> None:
    with pytest.raises(IntellectError, match="RuntimeError") as caught:
        make(Fake(intellect=YES), drafts=2, embeddings=Broken()).invoke("a")
    error: BaseException | None = caught.value
    while error is not None:
        assert "permit" not in repr(error)
        error = error.__cause__ or error.__context__


def test_any_embeddings_of_langchain_do(make: Any, tmp_path: Path) -> None:
    safi = make(Fake(intellect=in_turn(NO, YES, YES)), drafts=3, embeddings=DeterministicFakeEmbedding(size=64))
    assert safi.invoke("a").content == YES
    assert asyncio.run(safi.ainvoke("a")).content == YES


def test_drafts_are_written_side_by_side(make: Any) -> None:
    model = Fake(intellect=YES, delay=0.05)
    make(model, drafts=4).invoke("a")
    assert model.most_at_once == 4
    model = Fake(intellect=YES, delay=0.05)
    asyncio.run(make(model, drafts=4).ainvoke("a"))
    assert model.most_at_once == 4


CANARY = "xyzzy-{}-plugh"


def secret(count: int) -> Any:
    """Drafts of which one meaning is said twice; each carries a word of its own."""
    replies = [f"{YES} {CANARY.format(0)}", f"{YES} {CANARY.format(1)}"]
    replies += [f"{NO} {CANARY.format(i)}" for i in range(2, count)]
    return in_turn(*[f"{reply}<reflection>{reply}</reflection>" for reply in replies])


@pytest.mark.parametrize("ruling", [approve(), VIOLATION])
def test_the_drafts_that_were_not_chosen_leak_nowhere(make: Any, tmp_path: Path, ruling: str, caplog: Any) -> None:
    safi: SafiChain = make(Fake(intellect=secret(3), will=ruling), drafts=3, refused="full")

    async def watched() -> list[Any]:
        return [event async for event in safi.astream_events("Who decides?", version="v2")]

    seen = repr(asyncio.run(watched()))
    safi.drain()
    kept = record(tmp_path)
    chosen = next(i for i in (0, 1) if CANARY.format(i) in kept["intellectDraft"])
    places = [
        seen,
        caplog.text,
        *(f.read_bytes().decode("latin-1") for f in tmp_path.rglob("*") if f.is_file()),
    ]
    for i in {0, 1, 2} - {chosen}:
        assert all(CANARY.format(i) not in place for place in places)
    assert (CANARY.format(chosen) in seen) is (ruling != VIOLATION)


def test_over_http_each_draft_is_a_request_and_their_tokens_add_up(make: Any, tmp_path: Path) -> None:
    with serving() as server:
        server.says["intellect"] = in_turn(YES, NO, ALSO)
        model = ChatOpenAI(model="m", base_url=server.url, api_key="k", max_retries=0, timeout=5)  # type: ignore[arg-type]
        safi = make(model, drafts=3)
        message = safi.invoke("Who decides?")
        assert message.content in (YES, ALSO)
        assert isinstance(message, AIMessage)
        assert message.usage_metadata is not None
        assert message.usage_metadata["total_tokens"] == 4 * 12
        assert len(server.asked("intellect")) == 3
        safi.drain()
        assert record(tmp_path)["agreement"] == pytest.approx(2 / 3)
        server.says["intellect"] = in_turn(500, YES, ALSO)
        assert safi.invoke("And now?").content in (YES, ALSO)
        safi.drain()
        assert "drafts_missing" in record(tmp_path)["flags"]


def test_without_sal_lightning_the_error_names_the_install(make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def missing(name: str, *args: Any) -> Any:
        if name.startswith("sal_lightning"):
            raise ModuleNotFoundError(name)
        return real(name, *args)

    monkeypatch.setattr(builtins, "__import__", missing)
    with pytest.raises(ImportError, match=r'drafts: several need sal_lightning.*pip install "sal-lightning\[safi\]"'):
        make(Fake(), drafts=2)
    assert make(Fake()).invoke("a").content == "An answer."
    assert Selection(0, 1.0) == (0, 1.0)
