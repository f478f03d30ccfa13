"""Texts that a language model generates itself."""

import copy
import math
from collections import Counter
from typing import Any

import pytest
import torch
from torch import Tensor

transformers = pytest.importorskip("transformers")

from sal_lightning.integrations.huggingface import SALTrainerCallback  # noqa: E402
from sal_lightning.integrations.own_samples import own_samples  # noqa: E402

pytestmark = pytest.mark.slow
END = 3


def gpt2(seed: int = 0, **options: Any) -> Any:
    torch.manual_seed(seed)
    options = {"bos_token_id": 0, "eos_token_id": END} | options
    config = transformers.GPT2Config(n_layer=1, n_embd=16, n_head=2, vocab_size=8, n_positions=16, **options)
    return transformers.GPT2LMHeadModel(config)


def generate(model: Any, *arguments: Any, **options: Any) -> list[dict[str, Tensor]]:
    return own_samples(model, *arguments, progress=False, **options)


def equal(one: list[dict[str, Tensor]], other: list[dict[str, Tensor]]) -> bool:
    pairs = list(zip(one, other, strict=True))
    return all(a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a) for a, b in pairs)


def test_batches_have_the_number_and_lengths_that_were_asked_for() -> None:
    batches = generate(gpt2(), 10, 12, batch_size=4)
    assert [len(batch["input_ids"]) for batch in batches] == [4, 4, 2]
    assert all(batch["input_ids"].shape == batch["attention_mask"].shape for batch in batches)
    assert max(batch["input_ids"].shape[1] for batch in batches) == 12
    assert all((batch["input_ids"][:, 0] == 0).all() for batch in batches)


def test_the_mask_ends_with_the_first_end_token_after_the_first_token() -> None:
    for first in (0, END):
        for batch in generate(gpt2(), 40, 12, start=first):
            for text, mask in zip(batch["input_ids"].tolist(), batch["attention_mask"].tolist(), strict=True):
                ends = [i for i, token in enumerate(text) if token == END and i > 0]
                real = ends[0] + 1 if ends else len(text)
                assert mask == [1] * real + [0] * (len(text) - real)


@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_tokens_follow_the_models_distribution_whatever_its_generation_config_says(temperature: float) -> None:
    model = gpt2()
    with torch.no_grad():
        model.lm_head.weight.mul_(15)  # a distribution that is not flat
        p = torch.softmax(model.eval()(torch.tensor([[0]])).logits[0, -1] / temperature, 0)
    model.generation_config.update(do_sample=True, top_k=2, temperature=0.1, repetition_penalty=3.0)
    n = 4000
    (batch,) = generate(model, n, 2, batch_size=n, temperature=temperature)
    counts = Counter(batch["input_ids"][:, 1].tolist())
    for token, share in enumerate(p.tolist()):
        assert abs(counts[token] - n * share) <= 4 * math.sqrt(n * share * (1 - share)) + 1
    assert len(counts) > 2


def test_the_seed_decides_and_the_model_and_random_state_stay_as_they_were() -> None:
    model = gpt2().train()
    model.transformer.drop.eval()
    modes, config, state = [m.training for m in model.modules()], str(model.generation_config), torch.get_rng_state()
    one, again, other = generate(model, 8, 6), generate(model, 8, 6), generate(model, 8, 6, seed=1)
    assert equal(one, again)
    assert not equal(one, other)
    assert [m.training for m in model.modules()] == modes
    assert str(model.generation_config) == config
    assert torch.equal(torch.get_rng_state(), state)


class Ended(Exception):
    """Stands for an end of the process."""


def test_an_interrupted_call_continues_from_its_file(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    model, file = gpt2(), tmp_path / "own.pt"
    whole = generate(model, 12, 6, batch_size=4)
    real, calls = model.generate, []

    def failing(*arguments: Any, **options: Any) -> Any:
        calls.append(1)
        if len(calls) == 3:
            raise Ended
        return real(*arguments, **options)

    monkeypatch.setattr(model, "generate", failing)
    with pytest.raises(Ended):
        generate(model, 12, 6, batch_size=4, file=file)
    assert equal(generate(model, 12, 6, batch_size=4, file=file), whole)
    assert len(calls) == 4, "two batches before, one after"
    assert equal(generate(model, 12, 6, batch_size=4, file=file), whole)
    assert len(calls) == 4
    with pytest.raises(ValueError, match=r"Expected file to be of \{'length': 7\}, got one of \{'length': 6\}"):
        generate(model, 12, 7, batch_size=4, file=file)
    with pytest.raises(ValueError, match="Expected file to be of this model's weights"):
        generate(gpt2(1), 12, 6, batch_size=4, file=file)


def test_each_batch_is_appended_and_a_line_that_was_not_written_whole_is_generated_again(tmp_path: Any) -> None:
    model, file = gpt2(), tmp_path / "own.jsonl"
    whole = generate(model, 12, 6, batch_size=4, file=file)
    content = file.read_bytes()
    lines = content.splitlines(keepends=True)
    assert len(lines) == 4, "the arguments and three batches"
    for cut in (len(lines[0]), len(lines[0]) + 5, len(content) - 1, len(content)):
        file.write_bytes(content[:cut])
        assert equal(generate(model, 12, 6, batch_size=4, file=file), whole)
        assert file.read_bytes() == content
    file.write_bytes(b"")  # as a new temporary file
    assert equal(generate(model, 12, 6, batch_size=4, file=file), whole)
    assert [path.name for path in tmp_path.iterdir()] == ["own.jsonl"]


@pytest.mark.parametrize(
    "content",
    [
        b"a shopping list\n",
        b'{"settings": {}}\n',
        b"[1, 2]\n",
        b'{"own_samples": 2, "settings": {}, "weights": []}\n',
        b"7",
    ],
)
def test_a_file_of_something_else_is_refused_and_left_as_it_is(tmp_path: Any, content: bytes) -> None:
    file = tmp_path / "mine"
    file.write_bytes(content)
    with pytest.raises(ValueError, match=r"Expected file to be new or written by own_samples, got .*mine'"):
        generate(gpt2(), 4, 6, file=file)
    assert file.read_bytes() == content


def test_a_saved_tensor_is_refused(tmp_path: Any) -> None:
    file = tmp_path / "weights.pt"
    torch.save({"a": torch.ones(3)}, file)
    with pytest.raises(ValueError, match="Expected file to be new or written by own_samples"):
        generate(gpt2(), 4, 6, file=file)


def test_a_length_beyond_the_models_positions_is_refused_at_once(tmp_path: Any) -> None:
    file = tmp_path / "own.jsonl"
    with pytest.raises(ValueError, match="Expected length to be at most the 16 positions of the model, got 17"):
        generate(gpt2(), 4, 17, file=file)
    assert not file.exists()
    assert generate(gpt2(eos_token_id=None), 2, 16)[0]["input_ids"].shape == (2, 16)


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
@pytest.mark.parametrize("task", [None, "CAUSAL_LM"])
def test_a_model_with_adapters_samples_what_it_samples_without(task: str | None) -> None:
    peft = pytest.importorskip("peft")
    model = gpt2()
    model.generation_config.update(do_sample=True, top_k=2)
    before = generate(model, 8, 6)
    settings = peft.LoraConfig(r=2, target_modules=["c_attn"], fan_in_fan_out=True, task_type=task)
    adapted = peft.get_peft_model(model, settings)
    config = str(adapted.generation_config)
    assert equal(generate(adapted, 8, 6), before)
    assert str(adapted.generation_config) == config


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n": 0}, "Expected n to be >= 1, got 0"),
        ({"length": 1}, "Expected length to be >= 2, got 1"),
        ({"batch_size": 0}, "Expected batch_size to be >= 1, got 0"),
        ({"temperature": 0.0}, "Expected temperature to be > 0, got 0.0"),
        ({"temperature": math.nan}, "Expected temperature to be > 0, got nan"),
    ],
)
def test_arguments_outside_their_range_raise(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        generate(gpt2(), **options)


def test_a_model_without_a_first_token_needs_start_and_without_an_end_writes_on() -> None:
    model = gpt2(bos_token_id=None, eos_token_id=None)
    with pytest.raises(ValueError, match="Expected start to be a token"):
        generate(model, 2, 6)
    (batch,) = generate(model, 2, 6, start=5)
    assert batch["input_ids"].shape == (2, 6)
    assert batch["attention_mask"].all()


def test_an_encoder_decoder_model_raises() -> None:
    config = transformers.T5Config(
        vocab_size=8, d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2, decoder_start_token_id=0
    )
    with pytest.raises(ValueError, match="Expected model to be a causal language model, got T5For"):
        generate(transformers.T5ForConditionalGeneration(config), 2, 6)


def test_what_is_remembered_from_own_samples_is_held() -> None:
    model, callback = gpt2(), SALTrainerCallback()
    before = copy.deepcopy(model.state_dict())
    callback.remember(model, generate(model, 64, 12))
    assert callback.spectrum().protected > 0
    assert all(torch.equal(x, before[name]) for name, x in model.state_dict().items())
