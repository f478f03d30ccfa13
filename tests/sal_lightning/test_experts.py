"""Inputs of stacked experts, compared with a loop over tokens and with autograd's gradients."""

import pytest
import torch
from torch import nn

from sal_lightning import CommunicationLayer, layers

TOKENS, EXPERTS, WIDTH, INNER = 7, 4, 16, 6
INDEX = torch.tensor([[0, 1], [0, 2], [1, 0], [0, 1], [2, 0], [0, 1], [1, 2]])  # no token is routed to the last expert
ALL = 10**6


class Experts(nn.Module):
    """As in transformers 5, without its decorator; ``transposed`` ones keep their weights as (experts, in, out)."""

    def __init__(self, transposed=False):
        super().__init__()
        torch.manual_seed(0)
        shapes = (EXPERTS, 2 * INNER, WIDTH), (EXPERTS, WIDTH, INNER)
        up, down = (torch.randn(shape) / 4 for shape in shapes)
        self.transposed = transposed
        self.gate_up_proj = nn.Parameter(up.mT.contiguous() if transposed else up)
        self.down_proj = nn.Parameter(down.mT.contiguous() if transposed else down)

    def forward(self, hidden_states, top_k_index, top_k_weights):
        up, down = (w.mT if self.transposed else w for w in (self.gate_up_proj, self.down_proj))
        rows = []
        for x, chosen, shares in zip(hidden_states, top_k_index, top_k_weights, strict=True):
            made = []
            for expert in chosen:
                gate, y = (up[expert] @ x).chunk(2)
                made.append(down[expert] @ (nn.functional.silu(gate) * y))
            rows.append((torch.stack(made) * shares[:, None]).sum(0))
        return torch.stack(rows)


def inputs(width=WIDTH, tokens=TOKENS):
    return torch.randn(tokens, width, generator=torch.Generator().manual_seed(3))


def expected(x, index=INDEX):
    """The tokens routed to each expert."""
    return [[x[t] for t, chosen in enumerate(index.tolist()) if e in chosen] for e in range(EXPERTS)]


def counted(rows, tokens):
    """How often each of these tokens is among the rows; every row is one of them."""
    same = (rows[:, None] - torch.stack(tokens)).abs().amax(-1) < 1e-5
    assert same.any(1).all()
    return same.sum(0)


@pytest.mark.parametrize("named", [False, True])
@pytest.mark.parametrize("transposed", [False, True])
def test_rows_of_an_expert_are_its_routed_tokens(transposed, named):
    module, x = Experts(transposed), inputs()
    (layer,) = layers.find(module)
    assert (layer.name, layer.groups, layer.out, layer.inputs) == ("gate_up_proj", EXPERTS, 2 * INNER, WIDTH)
    arguments = {"hidden_states": x, "top_k_index": INDEX, "top_k_weights": torch.ones(TOKENS, 2)}
    given = layers.given(module, *((), arguments) if named else (tuple(arguments.values()), {}))
    rows = layer.read(given, ALL, 1)
    assert rows.shape == (EXPERTS, TOKENS * 2, WIDTH)
    assert not rows[3].any()
    for mine, tokens in zip(rows, expected(x)[:3], strict=False):
        often = counted(mine, tokens)
        assert often.min() >= 1
        assert often.max() - often.min() <= 1


def test_tokens_are_sampled_and_differ_between_steps():
    module, x = Experts(), inputs(tokens=400)
    index = torch.stack([torch.arange(400) % 3, torch.full((400,), 3)], 1)
    (layer,) = layers.find(module)
    given = layers.given(module, (x, index, torch.ones(400, 2)), {})
    one, other = (layer.read(given, 32, step) for step in (1, 2))
    for rows in (one, other):
        assert rows.shape == (EXPERTS, 32, WIDTH)
        for mine, tokens in zip(rows, expected(x, index), strict=True):
            assert counted(mine, tokens).max() == 1
    assert not torch.equal(one, other)


@pytest.mark.parametrize("transposed", [False, True])
def test_matrices_of_stacked_experts_are_read_and_written_in_place(transposed):
    (layer,) = layers.find(Experts(transposed))
    for dtype in (torch.float32, torch.bfloat16):
        weight = layer.weight.detach().to(dtype).clone()
        M = layer.matrix(weight)
        assert M.shape == (EXPERTS, 2 * INNER, WIDTH)
        layer.write(weight, M.mul_(2))
        torch.testing.assert_close(weight, (2 * layer.weight.detach().to(dtype)))


def spans(layer, given):
    """Whether the gradient of each group lies in the span of its rows."""
    rows, G = layer.read(given, ALL, 0).double(), layer.matrix(layer.weight.grad.detach()).double()
    if layer.bias is not None:
        G = torch.cat([G, layer.matrix(layer.bias.grad.detach()).double()], -1)
    left = []
    for x, g in zip(rows, G, strict=True):
        _, s, V = torch.linalg.svd(x, full_matrices=False)
        V = V[s > 1e-5 * s.max().clamp(min=1e-9)]
        assert len(V) < x.shape[1], "the rows fill the space: nothing is tested"
        left.append((g - g @ V.mT @ V).norm() / g.norm().clamp(min=1e-12) if g.any() else torch.zeros(()))
    return max(left) < 1e-4


SMALL = {"vocab_size": 50, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1}
SMALL |= {"num_attention_heads": 2, "num_key_value_heads": 2, "num_experts_per_tok": 2, "num_local_experts": 4}
SIZES = {
    "Mixtral": {},
    "Qwen2Moe": {"num_experts": 4, "moe_intermediate_size": 24, "shared_expert_intermediate_size": 24},
    "Qwen3Moe": {"num_experts": 4, "moe_intermediate_size": 24, "head_dim": 16},
    "GptOss": {"head_dim": 16, "layer_types": ["full_attention"]},
}


def language_model(kind, how="eager"):
    transformers = pytest.importorskip("transformers", minversion="5")
    torch.manual_seed(0)
    config = getattr(transformers, f"{kind}Config")(**SMALL | SIZES[kind])
    config._experts_implementation = how
    return getattr(transformers, f"{kind}ForCausalLM")(config)


@pytest.mark.parametrize("how", ["eager", "grouped_mm", "batched_mm"])
@pytest.mark.parametrize("kind", SIZES)
def test_gradients_of_experts_in_transformers_lie_in_the_directions_of_their_rows(kind, how):
    model, given = language_model(kind, how), {}
    found = {layer.name: layer for layer in layers.find(model) if layer.stacked}
    assert {name.rpartition(".")[2] for name in found} == {"gate_up_proj", "down_proj"}
    (experts,) = {layer.module for layer in found.values()}
    experts.register_forward_pre_hook(
        lambda module, args, kwargs: given.update(it=layers.given(module, args, kwargs)), with_kwargs=True
    )
    tokens = torch.arange(6)[None]
    model(input_ids=tokens, labels=tokens).loss.backward()
    for name, layer in found.items():
        assert spans(layer, given["it"]), name


@pytest.mark.parametrize("kind", SIZES)
def test_language_models_of_experts_are_covered_by_directions_but_for_routers_and_norms(kind):
    model = language_model(kind)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    comm = CommunicationLayer(model, optimizer, consolidate_on=None)
    tokens = torch.arange(16).view(2, 8)
    for _ in range(3):
        model(input_ids=tokens, labels=tokens).loss.backward()
        optimizer.step()
    sizes = {name: p.numel() for rule in comm.rules for name, p in rule.parameters.items()}
    by_element = {name for name, grain in comm.coverage().items() if grain == "element"}
    assert all(any(part in name for part in ("norm", "gate.", "router", "sinks")) for name in by_element)
    assert sum(sizes[name] for name in by_element) < 0.02 * sum(sizes.values())


class Router(nn.Module):
    """One of two experts for each half of the inputs; the others are never used."""

    def __init__(self, transposed):
        super().__init__()
        self.experts = Experts(transposed)

    def forward(self, x):
        index = (x[:, :1] > 0).long()
        return self.experts(x, index, torch.ones(len(x), 1))


@pytest.mark.parametrize("transposed", [False, True])
def test_used_experts_are_held_and_unused_ones_are_free(transposed):
    model = Router(transposed)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    comm = CommunicationLayer(model, optimizer, consolidate_on=None, strength=1e6)

    def steps(sign, n):
        for i in range(n):
            x = torch.randn(12, WIDTH, generator=torch.Generator().manual_seed(i))
            x[:, 0] = sign * x[:, 0].abs()
            x[:, 6:] = 0
            optimizer.zero_grad()
            (model(x) - 1).square().mean().backward()
            optimizer.step()

    steps(-1, 10)
    assert comm.coverage() == {"experts.gate_up_proj": "subspace", "experts.down_proj": "element"}
    comm.consolidate()
    first, second, *_ = start = model.experts.gate_up_proj.detach().clone()
    volatile = float(next(r for r in comm.rules if r.grain == "subspace").bands()[2])
    assert volatile >= 3 * start[0].numel()
    steps(1, 10)
    comm.settle()
    now = model.experts.gate_up_proj.detach()
    assert torch.allclose(now[0], first, atol=1e-3)
    assert (now[1] - second).norm() > 0.1 * second.norm()
    saved = comm.state_dict()
    again = CommunicationLayer(model, optimizer, consolidate_on=None, strength=1e6)
    again.load_state_dict(saved)
    assert again.spectrum() == comm.spectrum()


def test_experts_without_router_indices_are_held_weight_by_weight():
    class Sorted(Experts):
        def forward(self, hidden_states):
            up, down = self.gate_up_proj, self.down_proj
            gate, y = (hidden_states.view(EXPERTS, -1, WIDTH) @ up.mT).chunk(2, -1)
            return (gate.sigmoid() * y) @ down.mT

    model = nn.Sequential(nn.Linear(WIDTH, WIDTH), Sorted())
    comm = CommunicationLayer(model, optimizer := torch.optim.SGD(model.parameters(), 0.1), consolidate_on=None)

    def step():
        model(inputs(tokens=8)).sum().backward()
        optimizer.step()

    step()
    with pytest.warns(UserWarning, match="protected one by one"):
        step()
    assert comm.coverage()["1.gate_up_proj"] == comm.coverage()["1.down_proj"] == "element"
