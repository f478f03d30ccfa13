"""Padded positions are ignored in modules that are called with a mask."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from sal_lightning import CommunicationLayer, EmergenceField, SALCallback
from sal_lightning.layers import sample
from sal_lightning.padding import Mask, Real
from sal_lightning.rules.subspace import SubspaceRule

transformers = pytest.importorskip("transformers")

PAD = 50
SIZES = {"vocab_size": 51, "bos_token_id": PAD, "eos_token_id": PAD}


def gpt2():
    torch.manual_seed(0)
    options = {"n_layer": 1, "n_embd": 32, "n_head": 2, "n_positions": 64}
    still = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
    return transformers.GPT2LMHeadModel(transformers.GPT2Config(**SIZES, **options, **still))


def bert():
    torch.manual_seed(0)
    options = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 48}
    still = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    return transformers.BertForMaskedLM(transformers.BertConfig(vocab_size=51, pad_token_id=PAD, **options, **still))


def t5():
    torch.manual_seed(0)
    options = {"d_model": 32, "d_kv": 16, "d_ff": 48, "num_layers": 1, "num_heads": 2, "dropout_rate": 0.0}
    starts = {"pad_token_id": PAD, "decoder_start_token_id": PAD}
    return transformers.T5ForConditionalGeneration(transformers.T5Config(vocab_size=51, **options, **starts))


def text(i, pads, task=0, n=16):
    """Counting in threes or, in the second task, in sevens among other tokens; ``pads`` after 8 tokens."""
    start = torch.randint(25, (n, 1), generator=torch.Generator().manual_seed(1000 * task + i))
    ids = (start + (3, 7)[task] * torch.arange(8)) % 25 + 25 * task
    pad = lambda x, value: F.pad(x, (0, pads), value=value)  # noqa: E731
    return {
        "input_ids": pad(ids, PAD),
        "attention_mask": pad(torch.ones_like(ids), 0),
        "labels": pad(ids, -100),
    }


def sequences(i, pads):
    """Likewise for a decoder, whose sequence is as long as the other one, padded elsewhere."""
    batch = text(i, pads)
    flipped = {name: x.flip(1) for name, x in text(i + 500, pads).items()}
    return batch | {
        "labels": flipped["labels"],
        "decoder_input_ids": flipped["input_ids"],
        "decoder_attention_mask": flipped["attention_mask"],
    }


def trained(model, batch, pads, steps=3, **options):
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    comm = CommunicationLayer(model, optimizer, consolidate_on=None, **options)
    for i in range(steps):
        optimizer.zero_grad()
        model(**batch(i, pads)).loss.backward()
        optimizer.step()
    return comm


def windows(comm):
    """The statistics of each layer's input, or of each weight's gradient."""
    found = {}
    for rule in comm.rules:
        if isinstance(rule, SubspaceRule):
            found[rule.name] = rule.window.Y
        else:
            found |= (
                {rule.name: rule.R} if rule.grain == "subspace" else dict(zip(rule.parameters, rule.F, strict=True))
            )
    return found


@pytest.mark.parametrize(("make", "batch"), [(gpt2, text), (bert, text)])
@pytest.mark.parametrize("protection", ["subspace", "element"])
def test_with_padding_is_seen_what_is_seen_without(make, batch, protection):
    without, padded = (windows(trained(make(), batch, pads, protection=protection)) for pads in (0, 24))
    assert without.keys() == padded.keys()
    for name, x in without.items():
        if not (name.endswith("position_embeddings") and protection == "subspace"):
            assert (padded[name] - x).norm() <= 1e-5 * x.norm(), name


def read(model, run):
    """The rows read at each Linear, and the tokens at each Embedding, in one pass."""
    comm = CommunicationLayer(model, torch.optim.SGD(model.parameters(), lr=0.0), consolidate_on=None)
    run(model)
    comm.detach()
    return {
        e.name: e.seen[-1][0] if isinstance(e, SubspaceRule) else e.counts
        for e in comm.collector.coverage.input_rules
        if e in comm.collector.inputs.now
    }


def among(rows, others):
    """Whether each row is one of the others."""
    return bool((rows[:, None] == others).all(-1).any(1).all())


def test_two_sequences_of_equal_length_keep_separate_masks():
    """The rows read at each layer are its inputs at real positions of its own sequence."""
    model, batch, given = t5(), sequences(0, 4), {}
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear):
            module.register_forward_pre_hook(lambda m, args, name=name: given.update({name: args[0].detach()}))
    seen = read(model, lambda m: m(**batch))
    masks = batch["attention_mask"].bool(), batch["decoder_attention_mask"].bool()
    checked = 0
    for name, x in given.items():
        if name not in seen:
            continue
        cross = "EncDecAttention.k" in name or "EncDecAttention.v" in name
        mask = masks[0] if name.startswith("encoder") or cross else masks[1]
        assert among(seen[name], x[mask]), name
        checked += 1
    assert checked > 10


@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("floating", [True, False])
def test_torch_masks_mark_padded_positions(batch_first, floating):
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=batch_first)
    model = nn.ModuleDict(
        {"encoder": nn.TransformerEncoder(layer, 1, enable_nested_tensor=False), "head": nn.Linear(8, 2)}
    )
    x, padded = torch.randn(6, 6, 8), torch.arange(6)[None] >= torch.arange(1, 7)[:, None]
    x[padded] = 100.0
    x = x if batch_first else x.transpose(0, 1)
    mask = torch.zeros(6, 6).masked_fill(padded, -torch.inf) if floating else padded

    def run(m):
        h = m["encoder"](x, src_key_padding_mask=mask)
        m["head"](h if batch_first else h.transpose(0, 1)).sum()

    seen = read(model, run)
    parts = {f"encoder.layers.0.{name}" for name in ("self_attn", "self_attn.out_proj", "linear1", "linear2")}
    assert set(seen) == parts | {"head"}
    rows = x[~padded] if batch_first else x.transpose(0, 1)[~padded]
    attention = seen["encoder.layers.0.self_attn"]
    assert attention[:, :8].abs().max() < 10
    assert among(attention[:, :8], rows)


def test_sampled_rows_are_those_chosen_without_padding():
    real = torch.zeros(16, 100, dtype=torch.bool)
    for i in range(16):
        real[i, : 10 + 5 * i] = True
    x = torch.randn(1600, 3)
    alone = x[real.flatten()]
    for step in (0, 1, 17):
        expected = alone[sample(len(alone), 128, step)]
        assert torch.equal(Real(real.flatten()).rows(x, 128, step), expected)
    assert torch.equal(Real(torch.ones(40, dtype=torch.bool)).rows(x[:40], 128, 3), x[:40])


def test_a_mask_fits_inputs_of_its_sizes_only():
    mask = Mask(torch.tensor([[1, 1, 0], [1, 0, 0]]))
    real = lambda *shape, ids=False: mask.fit(torch.Size(shape), ids)  # noqa: E731
    assert real(2, 3).real.tolist() == real(6).real.tolist() == [True, True, False, True, False, False]
    assert real(2, 3, 2).real.tolist() == [True] * 4 + [False] * 2 + [True] * 2 + [False] * 4
    assert real(1, 3).real.tolist() == real(3, ids=True).real.tolist() == [True, True, False]
    assert real(3) is real(2) is real(3, 2) is real(2, 4) is None


@pytest.mark.slow
def test_more_padding_of_the_same_text_is_no_change():
    model = gpt2()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    comm = CommunicationLayer(model, optimizer)
    for i in range(90):
        optimizer.zero_grad()
        model(**text(i, 8 if i < 60 else 56)).loss.backward()
        optimizer.step()
    assert comm.events == []
    assert comm.monitor.detector.tests["the input of transformer.wte"].count > 60


def old_loss(pads):
    """Loss of the first task, read without padding, after training on it and on the second with so many pads."""
    model = gpt2()
    optimizer = torch.optim.Adam(model.parameters(), lr=6e-3)
    comm = CommunicationLayer(model, optimizer, consolidate_on=None)
    for task in (0, 1):
        for i in range(40):
            optimizer.zero_grad()
            model(**text(i, pads, task)).loss.backward()
            optimizer.step()
        comm.consolidate()
    with torch.no_grad():
        return model(**text(9999, 0, n=64)).loss.item()


@pytest.mark.slow
def test_padding_does_not_change_how_much_gpt2_forgets(monkeypatch):
    without = old_loss(0)
    assert abs(old_loss(24) - without) < 1e-3
    monkeypatch.setattr(Mask, "fit", lambda *args, **options: None)  # padded positions count
    assert old_loss(24) > without + 0.005


def test_a_fully_padded_batch_changes_nothing():
    model = gpt2()
    comm = trained(model, text, 8, 30)
    before = {name: x.clone() for name, x in windows(comm).items() if name.endswith("wte")}
    optimizer = comm.optimizer
    batch = text(0, 8) | {"attention_mask": torch.zeros(16, 16, dtype=torch.long)}
    optimizer.zero_grad()
    model(**batch).logits.square().mean().backward()
    optimizer.step()
    for name, x in before.items():
        torch.testing.assert_close(windows(comm)[name] / comm.rules[0].weight, x / x.sum())
    assert all(x.isfinite().all() for x in windows(comm).values())


def test_remember_and_the_emergence_field_ignore_padding():
    found = []
    for pads in (0, 24):
        model, callback = gpt2(), SALCallback(protection="element", field="transformer.h.0.mlp.c_fc")
        callback.remember(model, [{k: v for k, v in text(i, pads).items() if k != "labels"} for i in range(3)])
        (rule,) = callback.layers[0].rules
        found.append((rule.memory, callback.watch))
    for a, b in zip(found[0][0], found[1][0], strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)
    assert isinstance(found[0][1].field, EmergenceField)


def test_a_row_of_padding_in_a_table_is_not_counted():
    model = nn.Sequential(nn.Embedding(5, 3, padding_idx=0), nn.Linear(3, 1))
    seen = read(model, lambda m: m(torch.tensor([[1, 2, 0, 0], [1, 0, 0, 0]])))
    assert seen["0"].tolist() == [0, 2, 1, 0, 0]
