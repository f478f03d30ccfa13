"""Texts, their parts and their batches."""

import re
from pathlib import Path

import pytest
import torch

from experiments.continual.data import DataError, md5
from experiments.language.text import MODULES, SHAKESPEARE, SHARED, Batches, library, shakespeare, split, windows


def test_the_parts_follow_one_another_and_are_the_text() -> None:
    text = bytes(range(256)) * 4
    domain = split("name", text)
    assert bytes(torch.cat(domain[2:]).tolist()) == text
    assert [len(part) for part in domain[2:]] == [1024 - 2 * 51, 51, 51]
    assert domain.md5 == md5(text)


def test_a_text_of_ones_own_takes_the_place_of_shakespeare(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_bytes(b"abc" * 100)
    domain = shakespeare(tmp_path / "mine.txt")
    assert (domain.name, domain.md5) == ("mine", md5(b"abc" * 100))


def test_a_missing_text_says_where_it_can_be_had(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=SHAKESPEARE) as caught:
        shakespeare(tmp_path)
    assert "https://" in caught.value.__notes__[0]


def test_another_text_under_its_name_is_refused(tmp_path: Path) -> None:
    (tmp_path / SHAKESPEARE).write_bytes(b"to be")
    with pytest.raises(DataError, match="expected md5"):
        shakespeare(tmp_path)


@pytest.mark.skipif(not (SHARED / SHAKESPEARE).is_file(), reason="the text is not here")
def test_the_text_is_the_published_one() -> None:
    assert sum(len(part) for part in shakespeare()[2:]) == 1_115_394


def test_the_library_is_the_chosen_modules_in_order(tmp_path: Path) -> None:
    for name in MODULES:
        (tmp_path / f"{name}.py").write_text(f"<{name}>")
    text = bytes(torch.cat(library(tmp_path)[2:]).tolist()).decode()
    assert re.findall(r"<(.*?)>", text) == sorted(MODULES)


def test_the_library_of_this_python_is_large_enough() -> None:
    assert len(library().train) > 1_000_000


def test_batches_are_pieces_of_the_text_and_the_same_for_a_seed() -> None:
    text = torch.arange(200, dtype=torch.uint8)
    first, again, other = (Batches(text, context=5, batch=3, steps=4, seed=seed) for seed in (0, 0, 1))
    assert len(first) == 4
    assert first[2].shape == (3, 6)
    assert (first[2].diff() == 1).all()
    assert torch.equal(first[2], again[2])
    assert not torch.equal(first[2], other[2])


def test_windows_predict_every_byte_but_the_first_once() -> None:
    assert windows(torch.arange(31), 5)[:, 1:].flatten().tolist() == list(range(1, 31))
