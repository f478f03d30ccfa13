import pytest
import torch
from torch import nn

from sal_lightning import layers
from sal_lightning.sampling import sample


def outputs(layer, x):
    """The product of the layer's sampled rows and matrices, (groups, n, out), in order."""
    W = layer.weight.detach().reshape(layer.groups, layer.weight.shape[0] // layer.groups, -1)
    rows = layer.rows(layer.module, x, 10**6, 0, (None,) * 3)
    y = rows @ W.mT
    return y if layer.bias is None else y + layer.bias.detach().reshape(layer.groups, 1, -1)


CONVS = [
    (nn.Conv1d(4, 6, 3), (2, 4, 9)),
    (nn.Conv1d(4, 6, 3, stride=2, dilation=2, padding=2, bias=False), (2, 4, 11)),
    (nn.Conv2d(4, 6, 3, padding=1), (2, 4, 5, 6)),
    (nn.Conv2d(4, 6, (3, 2), stride=(2, 1), dilation=(1, 2), groups=2), (2, 4, 7, 8)),
    (nn.Conv2d(4, 4, 3, groups=4, padding="same", padding_mode="reflect"), (2, 4, 5, 5)),
    (nn.Conv2d(4, 8, 3, padding="same"), (4, 5, 5)),
    (nn.Conv3d(2, 4, 2, groups=2), (1, 2, 3, 4, 3)),
    (nn.Conv1d(3, 2, 3, padding=2, padding_mode="circular"), (2, 3, 7)),
    pytest.param(
        *(nn.Conv2d(3, 4, (2, 4), padding="same"), (2, 3, 5, 6)),
        marks=pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel"),
    ),
    (nn.Conv3d(2, 4, 3, padding=(0, 1, 2), padding_mode="replicate"), (2, 2, 4, 3, 5)),
]


@pytest.mark.parametrize(("module", "shape"), CONVS, ids=lambda v: str(v)[:60])
def test_patches_times_matrix_are_the_convolution(module, shape):
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    (layer,) = layers.find(module)
    expected = module(x).detach()
    expected = expected if len(shape) == module.weight.dim() else expected[None]
    expected = expected.movedim(1, -1).reshape(-1, layer.groups, module.out_channels // layer.groups).transpose(0, 1)
    torch.testing.assert_close(outputs(layer, (x,)), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("shape", [(5,), (3, 5), (2, 3, 5)])
def test_rows_of_a_linear_layer(shape):
    module = nn.Linear(5, 4)
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    (layer,) = layers.find(module)
    torch.testing.assert_close(outputs(layer, (x,))[0], module(x).detach().reshape(-1, 4))


def test_attention_is_read_as_its_three_projections():
    module = nn.MultiheadAttention(4, 2, batch_first=True)
    q, k, v = torch.randn(3, 2, 5, 4, generator=torch.Generator().manual_seed(0))
    layer, _ = layers.find(module)
    W, b = module.in_proj_weight.detach().chunk(3), module.in_proj_bias.detach().chunk(3)
    expected = torch.stack(
        [nn.functional.linear(x, w, c).flatten(0, 1) for x, w, c in zip((q, k, v), W, b, strict=True)]
    )
    torch.testing.assert_close(outputs(layer, (q, k, v)), expected)


def test_projections_of_different_widths_are_read_separately():
    module = nn.MultiheadAttention(6, 2, kdim=4, vdim=5)
    q, k, v = (torch.randn(n, 2, d, generator=torch.Generator().manual_seed(n)) for n, d in ((3, 6), (7, 4), (7, 5)))
    for args, kwargs in (((q, k, v), {}), ((q,), {"value": v, "key": k})):
        found = {layer.name: layer for layer in layers.find(module)}
        assert [*found] == ["q_proj_weight", "k_proj_weight", "v_proj_weight", "out_proj"]
        given = layers.given(module, args, kwargs)
        for layer, x in zip(found.values(), (q, k, v), strict=False):
            torch.testing.assert_close(layer.read(given, 10**6, 0)[0], x.flatten(0, 1))


def test_queries_and_keys_of_different_lengths_yield_equally_many_rows():
    module = nn.MultiheadAttention(4, 2)
    q, k = torch.randn(3, 2, 4), torch.randn(7, 2, 4)
    layer, _ = layers.find(module)
    rows = layer.rows(module, (q, k, k), 128, 1, (None, None, None))
    assert rows.shape == (3, 6, 4)
    for group, x in zip(rows, (q, k, k), strict=True):
        assert all((row == x.flatten(0, 1)).all(-1).any() for row in group)


class Scaled(nn.Embedding):
    def forward(self, tokens):
        return 3 * super().forward(tokens)


class Normed(nn.Embedding):
    """Normalizes its rows separately."""

    def forward(self, tokens):
        return nn.functional.embedding(tokens, nn.functional.normalize(self.weight, dim=1))


class Centred(nn.Embedding):
    def forward(self, tokens):
        return nn.functional.embedding(tokens, self.weight - self.weight.mean(0))


class Positions(nn.Embedding):
    """As in OPT and BART: computes positions from the tokens."""

    def forward(self, tokens):
        return super().forward(torch.arange(tokens.shape[1]).expand_as(tokens) + 2)


class Offset(nn.Embedding):
    def forward(self, tokens):
        return super().forward(tokens + 2)


class Attention(nn.MultiheadAttention):
    def forward(self, query, key, value, **options):
        return super().forward(query.sign(), key, value, **options)


class Cell(nn.GRUCell):
    def forward(self, x, hx=None):
        return super().forward(x.sign(), hx)


def test_modules_that_change_their_input_are_left_out():
    plain = {"scaled": Scaled(99, 4, padding_idx=50), "normed": Normed(9, 4), "embedding": nn.Embedding(9, 4)}
    own = {"centred": Centred(9, 4), "positions": Positions(9, 4), "offset": Offset(9, 4)}
    own |= {"attention": Attention(4, 2), "cell": Cell(4, 4)}
    other = []
    found = layers.find(nn.ModuleDict(plain | own), other)
    assert [layer.name for layer in found] == [*plain]
    assert other == [*own]


def test_modules_that_share_a_weight_make_one_layer():
    first, second, third = nn.Linear(3, 3), nn.Linear(3, 3), nn.Linear(3, 3)
    second.weight = third.weight = first.weight
    (layer,) = layers.find(nn.Sequential(first, second, third))
    assert layer.name == "0"
    assert layer.modules == (first, second, third)
    assert layer.bias is first.bias


def test_supported_and_unsupported_layers():
    model = nn.ModuleDict(
        {
            "linear": nn.Linear(2, 2),
            "frozen": nn.Linear(2, 2).requires_grad_(False),
            "lazy": nn.LazyLinear(2),
            "norm": nn.LayerNorm(2),
            "embedding": nn.Embedding(3, 2),
            "transposed": nn.ConvTranspose1d(2, 2, 1),
            "weight_only": nn.Linear(2, 2),
        }
    )
    model["weight_only"].bias.requires_grad_(False)
    found = {layer.name: layer for layer in layers.find(model)}
    assert set(found) == {"linear", "embedding", "weight_only"}
    assert found["weight_only"].bias is None


@pytest.mark.parametrize("total", [1, 7, 128, 129, 1000, 4096])
def test_samples_are_distinct_rows_of_the_batch(total):
    chosen = sample(total, 128, step=3)
    places = torch.arange(total)[chosen]
    assert len(places.unique()) == len(places) == min(total, 128)


def test_samples_reach_every_position_of_a_sequence():
    met = torch.cat([sample(64 * 32, 128, step) % 64 for step in range(20)])
    assert len(met.unique()) == 64
