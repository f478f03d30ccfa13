"""Of several drafts the one goes on that most others agree with."""

import asyncio
import math
import random
import subprocess
import sys
from collections import Counter
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from langchain_core.embeddings import Embeddings

from safi_agent.faculties.self_consistency import (
    DraftSelector,
    LexicalEmbeddings,
    Select,
    cascade_selector,
    checked_vectors,
)
from safi_agent.turn import Draft
from tests.safi_agent.fakes import ALSO, NO, OTHER, YES


def cosine(p: list[float], q: list[float]) -> float:
    return sum(a * b for a, b in zip(p, q, strict=True)) / (math.hypot(*p) * math.hypot(*q))


@pytest.mark.slow
def test_the_words_of_a_text_are_its_vector_in_any_process() -> None:
    words = LexicalEmbeddings()
    assert words.embed_query("One two, TWO.") == words.embed_query("two one two")
    assert sorted(filter(None, words.embed_query("one two two"))) == pytest.approx([1, math.sqrt(2)])
    code = (
        "from safi_agent.faculties.self_consistency import LexicalEmbeddings as L; "
        "print(L().embed_query('one').index(1.0))"
    )
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
    found = cascade_selector(0.6)(LexicalEmbeddings().embed_documents(texts))
    assert found.share == pytest.approx(counted[0][1] / len(texts))
    assert Counter(meant)[meant[found.place]] == counted[0][1]


def test_where_no_two_agree_it_is_the_one_closest_to_all() -> None:
    draw = random.Random(0)
    for _ in range(20):
        vectors = [[draw.gauss(0, 1) + (0.5 if i % 3 == 0 else 0) for _ in range(16)] for i in range(5)]
        close = [sum(cosine(p, q) for q in vectors) for p in vectors]
        assert cascade_selector(0.999)(vectors) == (close.index(max(close)), pytest.approx(0.2))


def panel(count: int, choose: Select | None = None, embeddings: Embeddings | None = None) -> DraftSelector:
    return DraftSelector(count, embeddings or LexicalEmbeddings(), choose or cascade_selector(0.6))


def test_missing_and_empty_drafts_agree_with_none() -> None:
    picked = panel(4).select([Draft(NO), Draft(YES, "r"), Draft(" "), Draft(ALSO, "s")])
    assert picked.answer in (YES, ALSO)
    assert (picked.drafts, picked.agreement, picked.flags) == (4, 0.5, ("drafts_missing",))
    alone = panel(4).select([Draft(YES)])
    assert (alone.answer, alone.agreement) == (YES, 0.25)
    nothing = panel(2).select([Draft(""), Draft(" ")])
    assert (nothing.answer, nothing.agreement) == ("", 0)
    assert asyncio.run(panel(4).aselect([Draft(NO), Draft(YES), Draft(""), Draft(ALSO)])).agreement == 0.5


def test_the_token_usage_of_all_drafts_is_summed() -> None:
    usage: Any = {"input_tokens": 10, "output_tokens": 2, "total_tokens": 12}
    picked = panel(3).select([Draft(YES, usage=usage), Draft(NO, usage=usage), Draft("", usage=usage)])
    assert picked.usage is not None
    assert picked.usage["total_tokens"] == 36


@pytest.mark.parametrize("vectors", [[[1.0]], [[1.0], [1.0, 2.0]], [[], []], [[math.nan], [1.0]], [[math.inf], [1.0]]])
def test_vectors_that_are_none_are_refused(vectors: Any) -> None:
    with pytest.raises(ValueError, match="embeddings: expected"):
        checked_vectors(vectors, 2)
