"""Several drafts: the one that most others agree with goes on, and of the others nothing is left anywhere."""

import asyncio
import builtins
import json
import math
import random
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from langchain_core.embeddings import DeterministicFakeEmbedding, Embeddings
from langchain_core.messages import AIMessage
from langchain_openai import ChatOpenAI

from safi_agent import IntellectError, SafiChain
from safi_agent.faculties.drafting import Choose, Chosen, LexicalEmbeddings, Panel, cascade, checked
from safi_agent.faculties.will import rules
from safi_agent.turn import Draft
from tests.safi_agent.fakes import THREE, VIOLATION, Fake, approve, in_turn
from tests.safi_agent.openai_server import serving

YES = "Yes, the permit office decides on that within four weeks."
ALSO = "Yes: within four weeks the permit office decides on that."
NO = "Bees dance to show each other where the flowers are."
OTHER = "Rivers carry sand towards their mouths every spring."


def record(folder: Path) -> dict[str, Any]:
    return dict(json.loads((folder / "log.json").read_text().splitlines()[-1]))


def cosine(p: list[float], q: list[float]) -> float:
    return sum(a * b for a, b in zip(p, q, strict=True)) / (math.hypot(*p) * math.hypot(*q))


# The choice


def test_the_words_of_a_text_are_its_vector_in_any_process() -> None:
    words = LexicalEmbeddings()
    assert words.embed_query("One two, TWO.") == words.embed_query("two one two")
    assert sorted(filter(None, words.embed_query("one two two"))) == pytest.approx([1, math.sqrt(2)])
    code = "from safi_agent.faculties.drafting import LexicalEmbeddings as L; print(L().embed_query('one').index(1.0))"
    seen = {
        subprocess.run(
            [sys.executable, "-c", code], capture_output=True, check=True, env={"PYTHONHASHSEED": seed}
        ).stdout
        for seed in ("1", "2")
    }
    assert len(seen) == 1
    assert any(words.embed_query("?!"))
    assert cosine(words.embed_query(YES), words.embed_query(ALSO)) == pytest.approx(1)
    assert cosine(words.embed_query(YES), words.embed_query(NO)) < 0.3


@settings(deadline=None)
@given(st.lists(st.sampled_from([YES, ALSO, NO, OTHER]), min_size=2, max_size=12))
def test_the_largest_group_is_chosen_as_a_count_of_meanings_says(texts: list[str]) -> None:
    meant = [{YES: 0, ALSO: 0, NO: 1, OTHER: 2}[text] for text in texts]
    counted = Counter(meant).most_common()
    found = cascade(0.6)(LexicalEmbeddings().embed_documents(texts))
    assert found.share == pytest.approx(counted[0][1] / len(texts))
    assert Counter(meant)[meant[found.place]] == counted[0][1]


def test_where_no_two_agree_it_is_the_one_closest_to_all() -> None:
    draw = random.Random(0)
    for _ in range(20):
        vectors = [[draw.gauss(0, 1) + (0.5 if i % 3 == 0 else 0) for _ in range(16)] for i in range(5)]
        close = [sum(cosine(p, q) for q in vectors) for p in vectors]
        assert cascade(0.999)(vectors) == (close.index(max(close)), pytest.approx(0.2))


def panel(count: int, choose: Choose | None = None, embeddings: Embeddings | None = None) -> Panel:
    return Panel(count, embeddings or LexicalEmbeddings(), choose or cascade(0.6))


def test_what_did_not_come_and_what_is_empty_agrees_with_none() -> None:
    picked = panel(4).pick([Draft(NO), Draft(YES, "r"), Draft(" "), Draft(ALSO, "s")])
    assert picked.answer in (YES, ALSO)
    assert (picked.drafts, picked.agreement, picked.flags) == (4, 0.5, ("drafts_missing",))
    alone = panel(4).pick([Draft(YES)])
    assert (alone.answer, alone.agreement) == (YES, 0.25)
    nothing = panel(2).pick([Draft(""), Draft(" ")])
    assert (nothing.answer, nothing.agreement) == ("", 0)
    assert asyncio.run(panel(4).apick([Draft(NO), Draft(YES), Draft(""), Draft(ALSO)])).agreement == 0.5


def test_all_drafts_cost_what_they_cost() -> None:
    usage: Any = {"input_tokens": 10, "output_tokens": 2, "total_tokens": 12}
    picked = panel(3).pick([Draft(YES, usage=usage), Draft(NO, usage=usage), Draft("", usage=usage)])
    assert picked.usage is not None
    assert picked.usage["total_tokens"] == 36


@pytest.mark.parametrize("vectors", [[[1.0]], [[1.0], [1.0, 2.0]], [[], []], [[math.nan], [1.0]], [[math.inf], [1.0]]])
def test_vectors_that_are_none_are_refused(vectors: Any) -> None:
    with pytest.raises(ValueError, match="embeddings: expected"):
        checked(vectors, 2)


# The chain


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
    code = (
        "import sys; from safi_agent import create_safi_chain as c; c('offline', store=None, log=None).invoke('a');"
        "print(*{'torch', 'sal_lightning'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""


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
    safi: SafiChain = make(Fake(intellect=secret(3), will=ruling), drafts=3)

    async def watched() -> list[Any]:
        return [event async for event in safi.astream_events("Who decides?", version="v2")]

    seen = repr(asyncio.run(watched()))
    safi.drain()
    kept = record(tmp_path)
    chosen = next(i for i in (0, 1) if CANARY.format(i) in kept["intellectDraft"])
    places = [seen, caplog.text, *(f.read_bytes().decode("latin-1") for f in tmp_path.rglob("*") if f.is_file())]
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


# Settings


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
        ({"min_agreement": 0.5}, ValueError, "min_agreement: expected 0 where there is one draft, got 0.5"),
    ],
)
def test_settings_that_cannot_be_meant_are_refused(make: Any, settings: Any, error: Any, text: str) -> None:
    with pytest.raises(error, match=text):
        make(Fake(), **settings)


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
    assert Chosen(0, 1.0) == (0, 1.0)
