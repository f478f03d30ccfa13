"""Recomputed inputs of the output projection, compared with the module's own output.

A copy in evaluation mode, with the identity for that projection, gives exactly what it multiplies.
"""

import copy

import pytest
import torch
from torch import nn

from sal_lightning import CommunicationLayer, layers
from sal_lightning.rules.input_rule import ROWS
from sal_lightning.rules.subspace import SubspaceRule
from tests.everywhere.models import close, moved, names, overlapping, train, weights

ALL = 10**6  # rows: as many as there are
N, L, S, E, HEADS = 5, 4, 6, 8, 2


def multiplied(module, args, kwargs):
    """The input of the output projection, (batch, time, embed_dim), for any layout of the call."""
    twin = copy.deepcopy(module).eval().float()
    nn.init.eye_(twin.out_proj.weight)
    if twin.out_proj.bias is not None:
        nn.init.zeros_(twin.out_proj.bias)
    float_ = lambda x: x.float() if isinstance(x, torch.Tensor) and x.is_floating_point() else x  # noqa: E731
    y = twin(*map(float_, args), **{name: float_(x) for name, x in kwargs.items()})[0].detach()
    return y[None] if y.dim() == 2 else y if module.batch_first else y.transpose(0, 1)


def projection(module):
    (layer,) = (layer for layer in layers.find(module) if layer.weight is module.out_proj.weight)
    return layer


def read(module, args, kwargs, n=ALL, step=0, real=None):
    return projection(module).read(layers.given(module, args, kwargs), n, step, real)[0][:, :E]


def apart(rows, others):
    return torch.cdist(rows, others, compute_mode="donot_use_mm_for_euclid_dist")


def same_rows(rows, expected):
    """Whether these are the same rows, with the same counts, in any order."""
    often = [(apart(x, expected) < 1e-4).sum(0) for x in (rows, expected)]
    return len(rows) == len(expected) and torch.equal(*often)


def among(rows, others):
    return bool((apart(rows, others).min(1).values < 1e-4).all())


def made(seed=0, **options):
    torch.manual_seed(seed)
    module = nn.MultiheadAttention(E, HEADS, **options)
    for p in module.parameters():  # biases too
        nn.init.normal_(p, std=0.5)
    return module


def padded(floating=False):
    mask = torch.arange(S)[None] >= torch.tensor([6, 3, 1, 5, 2])[:, None]
    return torch.zeros(N, S).masked_fill(mask, -torch.inf) if floating else mask


def pairs(heads=False, floating=False):
    shape = (N * HEADS, L, S) if heads else (L, S)
    mask = torch.rand(shape, generator=torch.Generator().manual_seed(1)) < 0.4
    mask[..., 0] = False  # every query attends to some key
    return torch.randn(shape, generator=torch.Generator().manual_seed(2)) if floating else mask


MASKS = {
    "none": {},
    "padded keys": {"key_padding_mask": padded()},
    "padded keys, floats": {"key_padding_mask": padded(floating=True)},
    "pairs": {"attn_mask": pairs()},
    "pairs, floats": {"attn_mask": pairs(floating=True)},
    "pairs of each head": {"attn_mask": pairs(heads=True)},
    "pairs of each head, floats": {"attn_mask": pairs(heads=True, floating=True)},
    "both": {"key_padding_mask": padded(), "attn_mask": pairs()},
    "both, of each head": {"key_padding_mask": padded(True), "attn_mask": pairs(True, True), "need_weights": False},
    "causal": {"attn_mask": torch.ones(L, S).triu(1).bool(), "is_causal": True, "need_weights": False},
    "causal, weights wanted": {"attn_mask": torch.ones(L, S).triu(1).bool(), "is_causal": True},
    "causal, another mask": {"attn_mask": pairs(), "is_causal": True, "need_weights": False},
    "causal, padded keys": {
        "attn_mask": torch.ones(L, S).triu(1).bool(),
        "key_padding_mask": padded(),
        "is_causal": True,
        "need_weights": False,
    },
}
KINDS = {
    "plain": {},
    "batch first": {"batch_first": True},
    "no bias": {"bias": False},
    "keys of its own": {"add_bias_kv": True},
    "zero attention": {"add_zero_attn": True, "batch_first": True},
    "both": {"add_bias_kv": True, "add_zero_attn": True},
    "other widths": {"kdim": 3, "vdim": 7, "batch_first": True},
    "dropout": {"dropout": 0.5},
    "double precision": {"dtype": torch.float64},
}


def inputs(module, batched=True):
    dtype = module.out_proj.weight.dtype
    shapes = (L, E), (S, module.kdim), (S, module.vdim)
    x = [torch.randn(N, *shape, generator=torch.Generator().manual_seed(3)).to(dtype) for shape in shapes]
    if not batched:
        return [y[0] for y in x]
    return x if module.batch_first else [y.transpose(0, 1) for y in x]


def as_numbers_of(module, masks):
    dtype = module.out_proj.weight.dtype
    floating = lambda x: isinstance(x, torch.Tensor) and x.is_floating_point()  # noqa: E731
    return {name: x.to(dtype) if floating(x) else x for name, x in masks.items()}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Support for mismatched key_padding_mask and attn_mask is deprecated")
@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("kind", KINDS)
def test_rows_are_the_inputs_of_the_output_projection(kind, mask):
    module = made(**KINDS[kind])
    args, kwargs = inputs(module), as_numbers_of(module, MASKS[mask])
    expected = multiplied(module, args, kwargs).flatten(0, 1)
    x = read(module, args, kwargs)
    assert x.dtype == module.out_proj.weight.dtype
    assert same_rows(x.float(), expected)
    some = [read(module, args, kwargs, 9, step) for step in (1, 2)]
    assert all(x.shape == (9, E) and among(x.float(), expected) for x in some)
    assert not among(some[0], some[1])


@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("mask", ["none", "padded keys", "pairs", "pairs of each head, floats"])
def test_an_unbatched_sequence_is_read(mask, batch_first):
    module = made(batch_first=batch_first)
    cut = {"key_padding_mask": lambda m: m[0], "attn_mask": lambda m: m[:HEADS] if m.dim() == 3 else m}
    kwargs = {name: cut[name](m) for name, m in MASKS[mask].items()}
    args = inputs(module, batched=False)
    expected = multiplied(module, args, kwargs)[0]
    assert same_rows(read(module, args, kwargs), expected)
    assert among(read(module, args, kwargs, 3, 5), expected)


def test_arguments_count_by_position_and_by_name():
    module = made()
    q, k, v = inputs(module)
    by_position = read(module, (q, k, v, padded(), False, pairs()), {})
    names = {"value": v, "key": k, "query": q, "attn_mask": pairs(), "key_padding_mask": padded()}
    assert torch.equal(by_position, read(module, (), names))
    assert same_rows(by_position, multiplied(module, (), names).flatten(0, 1))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_rows_of_half_precision_modules_are_computed_in_single_precision(dtype):
    module = made().to(dtype)
    args = inputs(module)
    x = read(module, args, {})
    assert x.dtype == torch.float32
    assert same_rows(x, multiplied(module, args, {}).flatten(0, 1))


def test_rows_come_from_several_sequences_and_over_steps_from_all():
    """The values of a sequence are its number."""
    batch, time = 64, 256
    module = made(batch_first=True)
    value = torch.arange(float(batch)).view(-1, 1, 1).expand(-1, time, E)
    with torch.no_grad():
        module.in_proj_weight[2 * E :].copy_(torch.eye(E))
        module.in_proj_bias.zero_()
    met = set()
    for step in range(8):
        x = read(module, (torch.randn(batch, time, E), torch.randn(batch, time, E), value), {}, ROWS, step)
        sequences, counts = x[:, 0].round().unique(return_counts=True)
        assert x.shape == (ROWS, E)
        assert counts.tolist() == [16] * 8
        met |= set(sequences.tolist())
    assert len(met) > 16


def test_every_position_is_sampled_over_many_steps():
    """Each position attends to itself alone, and the values are the positions."""
    time = 200
    module = made(batch_first=True)
    value = torch.arange(float(time)).view(1, -1, 1).expand(1, -1, E)
    with torch.no_grad():
        module.in_proj_weight[2 * E :].copy_(torch.eye(E))
        module.in_proj_bias.zero_()
    mask = {"attn_mask": ~torch.eye(time, dtype=torch.bool)}
    met = torch.cat([read(module, (value,) * 3, mask, ROWS, step)[:, 0] for step in range(16, 32)])
    assert met.round().unique().tolist() == list(range(time))


@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("floating", [True, False])
def test_padded_query_positions_are_not_sampled(batch_first, floating):
    module = made(batch_first=batch_first)
    lengths = torch.tensor([6, 0, 1, 5, 2, 3])
    mask = torch.arange(S)[None] >= lengths[:, None]
    x = torch.randn(6, S, E, generator=torch.Generator().manual_seed(0))
    given = x if batch_first else x.transpose(0, 1)
    kwargs = {"key_padding_mask": torch.zeros(6, S).masked_fill(mask, -torch.inf) if floating else mask}
    expected = multiplied(module, (given,) * 3, kwargs)[~mask]
    comm = CommunicationLayer(module, torch.optim.SGD(module.parameters(), lr=0.0), consolidate_on=None)
    module(given, given, given, **kwargs)
    (rule,) = (rule for rule in comm.rules if rule.name == "out_proj")
    assert isinstance(rule, SubspaceRule)
    rows = rule.seen[-1][0][:, :E]
    assert rows.isfinite().all()
    assert among(rows, expected)
    assert among(expected, rows)


def test_a_fully_padded_batch_is_not_read():
    module = made(batch_first=True)
    x, mask = torch.randn(2, 3, E), torch.ones(2, 3, dtype=torch.bool)
    comm = CommunicationLayer(module, torch.optim.SGD(module.parameters(), lr=0.0), consolidate_on=None)
    module(x, x, x, key_padding_mask=mask)
    assert all(rule.seen[-1][..., :E].isnan().all() for rule in comm.collector.coverage.input_rules)


def test_longer_sequences_give_more_rows():
    """Every real position is sampled equally often, in any sequence."""
    module = made(batch_first=True)
    lengths = torch.tensor([60, 4] * 32)
    mask = torch.arange(60)[None] >= lengths[:, None]
    value = lengths.view(-1, 1, 1).expand(-1, 60, E).float()
    with torch.no_grad():
        module.in_proj_weight[2 * E :].copy_(torch.eye(E))
        module.in_proj_bias.zero_()
    real = layers.Real(~mask.flatten())
    x = torch.cat([read(module, (value,) * 3, {}, ROWS, step, [real] * 4) for step in range(40)])
    assert float((x[:, 0].round() == 60).float().mean()) == pytest.approx(60 / 64, abs=0.03)


def layer_of_torch(kind, batch_first):
    torch.manual_seed(0)
    options = {"dropout": 0.0, "batch_first": batch_first}
    if kind == "encoder":
        return nn.TransformerEncoderLayer(E, HEADS, 16, **options)
    return nn.TransformerDecoderLayer(E, HEADS, 16, **options)


@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("kind", ["encoder", "decoder"])
def test_torch_transformer_layers_are_held_by_directions(kind, batch_first):
    """Their attention is called by name, with masks, and in the decoder with keys of another length."""
    model, calls = layer_of_torch(kind, batch_first), {}
    x, memory = (torch.randn(6, n, E) if batch_first else torch.randn(n, 6, E) for n in (4, 7))
    causal = nn.Transformer.generate_square_subsequent_mask(4)
    padding = torch.arange(7)[None] >= torch.tensor([7, 3, 5, 2, 6, 7])[:, None]
    for name, module in model.named_modules():
        if isinstance(module, nn.MultiheadAttention):
            module.register_forward_pre_hook(
                lambda m, args, kwargs, name=name: calls.update({name: (m, args, kwargs)}), with_kwargs=True
            )
    comm = CommunicationLayer(model, torch.optim.SGD(model.parameters(), lr=0.0), consolidate_on=None)
    if kind == "encoder":
        model(x, src_mask=causal, is_causal=True).sum().backward()
    else:
        options = {"tgt_mask": causal, "tgt_is_causal": True, "memory_key_padding_mask": padding}
        model(x, memory, **options).sum().backward()
    seen = {rule.name: rule.seen[-1][0][:, :E] for rule in comm.rules if rule.name.endswith("out_proj")}
    assert set(seen) == {f"{name}.out_proj" for name in calls}
    for name, (module, args, kwargs) in calls.items():
        assert same_rows(seen[f"{name}.out_proj"], multiplied(module, args, kwargs).flatten(0, 1))
    by_element = {name for name, grain in comm.coverage().items() if grain == "element"}
    assert by_element == {name for name in names(model) if "norm" in name}


def test_attention_is_recomputed_only_in_sampled_steps(monkeypatch):
    module, runs = made(), []
    again = layers.attention.rows
    monkeypatch.setattr(layers.attention, "rows", lambda *args: runs.append(args[2]) or again(*args))
    optimizer = torch.optim.SGD(module.parameters(), lr=0.0)
    comm = CommunicationLayer(module, optimizer, consolidate_on=None)
    for _ in range(48):
        module(*inputs(module))[0].square().sum().backward()
        optimizer.step()
    assert comm.step == 48
    assert runs == [*range(16), 17, 34]


class Attend(nn.Module):
    """Self-attention between two linear layers."""

    def __init__(self, attention=nn.MultiheadAttention, **options):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.head = nn.Linear(4, 12), nn.Linear(12, 4)
        self.attention = attention(12, 2, batch_first=True, **options)

    def forward(self, x):
        x = self.first(x.view(len(x), 3, 4)).tanh()
        return self.head(self.attention(x, x, x)[0].mean(1))


def learning(model, **options):
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=3e-3)
    return optimizer, CommunicationLayer(model, optimizer, consolidate_on=None, **options)


def only_output(model):
    """Freezes everything except the output projection."""
    model.requires_grad_(False)
    model.attention.out_proj.requires_grad_(True)
    return model


@pytest.mark.slow
def test_the_output_projection_keeps_the_first_task():
    drift, x = {}, overlapping(0, 999)[0]
    for held in (False, True):
        model = only_output(Attend())
        optimizer, comm = learning(model, strength=1e4)
        train(model, optimizer, comm, overlapping, task=0, steps=60)
        assert comm.coverage() == {f"attention.out_proj.{name}": "subspace" for name in ("weight", "bias")}
        if held:
            comm.consolidate()
        before = model(x).detach()
        train(model, optimizer, comm, overlapping, task=1, steps=40)
        drift[held] = moved(model, x, before)
    assert drift[True] < 0.3 * drift[False]


@pytest.mark.slow
def test_attention_in_evaluation_mode_is_observed_as_in_training_mode():
    ended = []
    for mode in (True, False):
        model = Attend().train(mode)
        optimizer, comm = learning(model)
        train(model, optimizer, comm, overlapping, task=0, steps=20)
        comm.consolidate()
        train(model, optimizer, comm, overlapping, task=1, steps=20)
        assert set(comm.coverage().values()) == {"subspace"}
        ended.append(weights(model))
    assert all(map(torch.equal, *ended))


# torch.compile reads .grad of intermediate tensors at graph breaks.
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")
@pytest.mark.slow
def test_attention_in_a_compiled_model_is_observed_as_in_an_eager_one():
    ended = []
    for compiled in (False, True):
        model = Attend()
        optimizer, comm = learning(model)
        run = torch.compile(model, backend="eager") if compiled else model
        train(run, optimizer, comm, overlapping, task=0, steps=20)
        comm.consolidate()
        train(run, optimizer, comm, overlapping, task=1, steps=20)
        assert set(comm.coverage().values()) == {"subspace"}
        ended.append(weights(model))
    torch._dynamo.reset()
    assert close(*ended, rtol=0, atol=1e-6)


def test_the_layer_does_not_change_the_random_numbers_of_dropout():
    ended = []
    for watched in (False, True):
        model = Attend(dropout=0.3)
        optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
        comm = CommunicationLayer(model, optimizer, consolidate_on=None) if watched else None
        torch.manual_seed(1)
        train(model, optimizer, comm, overlapping, task=0, steps=10)
        ended.append(weights(model))
    assert all(map(torch.equal, *ended))


def test_a_projection_that_two_attentions_share_is_read_at_both():
    first, second = made(0), made(1)
    second.out_proj = first.out_proj
    model = nn.ModuleList([first, second])
    comm = CommunicationLayer(model, torch.optim.SGD(model.parameters(), lr=0.0), consolidate_on=None)
    args = inputs(first)
    (first(*args)[0] + second(*args)[0]).sum().backward()
    (rule,) = (rule for rule in comm.rules if rule.name == "0.out_proj")
    assert len(rule.seen) == 2
    for module, rows in zip(model, rule.seen, strict=True):
        assert same_rows(rows[0][:, :E], multiplied(module, args, {}).flatten(0, 1))


class Own(nn.MultiheadAttention):
    def forward(self, query, key, value, **options):
        return super().forward(query * 2, key, value, **options)


@pytest.mark.filterwarnings("ignore:.*% of the trained weights are protected one by one")
@pytest.mark.filterwarnings("ignore:Layers with a forward pass of their own")
@pytest.mark.parametrize("how", ["own forward", "parametrized input", "parametrized output"])
def test_an_attention_that_cannot_be_recomputed_is_held_weight_by_weight(how):
    model = Attend(Own if how == "own forward" else nn.MultiheadAttention)
    if how == "parametrized input":
        nn.utils.parametrizations.weight_norm(model.attention, "in_proj_weight")
    elif how == "parametrized output":
        nn.utils.parametrizations.weight_norm(model.attention.out_proj)
    optimizer, comm = learning(model)
    train(model, optimizer, comm, overlapping, task=0, steps=5)
    by_element = {name for name, grain in comm.coverage().items() if grain == "element"}
    of_attention = {name for name in names(model) if name.startswith("attention")}
    left = set() if how != "parametrized output" else {"attention.in_proj_weight", "attention.in_proj_bias"}
    assert by_element == of_attention - left


class Counted(nn.Module):
    """An identity parametrization that counts its calls."""

    def __init__(self):
        super().__init__()
        self.times = 0

    def forward(self, weight):
        self.times += 1
        return weight


@pytest.mark.parametrize("of_output", [True, False])
def test_finding_layers_does_not_compute_parametrizations(of_output):
    module, counted = made(), Counted()
    where = (module.out_proj, "weight") if of_output else (module, "in_proj_weight")
    nn.utils.parametrize.register_parametrization(*where, counted)
    before = counted.times
    layers.find(module)
    assert counted.times == before


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors is in prototype stage")
def test_nested_tensors_are_not_read():
    module = made(batch_first=True)
    x = torch.nested.nested_tensor([torch.randn(n, E) for n in (3, 5)])
    assert layers.given(module, (x, x, x), {}) == ()


def test_a_call_without_a_key_raises_the_error_of_the_module():
    module = made()
    comm = CommunicationLayer(module, torch.optim.SGD(module.parameters(), lr=0.0))
    with pytest.raises(TypeError, match="key"):
        module(torch.zeros(2, 3, E))
    assert comm.step == 0


@pytest.mark.filterwarnings("ignore:.*% of the trained weights are protected one by one")
@pytest.mark.parametrize("bias", [True, False], ids=["with its bias", "its bias frozen then"])
def test_states_in_which_the_output_projection_was_held_weight_by_weight_still_load(monkeypatch, bias):
    def trained(state=None):
        model = Attend()
        if state is None:
            model.attention.out_proj.bias.requires_grad_(bias)
        optimizer, comm = learning(model, strength=1e6)
        if state is not None:
            comm.load_state_dict(state)
        return model, optimizer, comm

    with monkeypatch.context() as before:
        before.setattr(layers.attention, "can_run_again", lambda module: False)
        model, optimizer, comm = trained()
        train(model, optimizer, comm, overlapping, task=0, steps=20)
        comm.consolidate()
        saved, held = comm.state_dict(), comm.coverage()
        comm.detach()
    by_element = {f"attention.out_proj.{name}" for name in ("weight", "bias")[: 1 + bias]}
    assert set(saved["elements"]) == by_element
    again, optimizer, comm = trained(saved)
    again.load_state_dict(model.state_dict())
    comm.begin_fit()
    assert comm.coverage() == held | {"attention.out_proj.bias": "element"}
    assert comm.collector.coverage.unbound() == []
    start = again.attention.out_proj.weight.detach().clone()
    train(again, optimizer, comm, overlapping, task=1, steps=5)
    assert close([again.attention.out_proj.weight.detach()], [start], atol=1e-4)
