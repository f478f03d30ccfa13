import pytest
import torch
from torch import nn

from sal_lightning import CommunicationLayer, coverage
from sal_lightning.rules.element import ElementRule
from sal_lightning.rules.embedding import EmbeddingRule
from sal_lightning.rules.subspace import SubspaceRule
from sal_lightning.rules.tensor import TensorRule
from sal_lightning.settings import Settings
from tests.sal_lightning.tasks import net


def model():
    return nn.Sequential(nn.Embedding(5, 4), nn.Linear(4, 4), nn.LayerNorm(4))


def kinds(protection, net):
    return [type(rule) for rule in coverage.rules_for(Settings(protection), coverage.owned(net, None), net)]


def test_each_protection_has_its_rules():
    assert kinds("subspace", model()) == [EmbeddingRule, SubspaceRule, ElementRule]
    assert kinds("element", model()) == [ElementRule]
    assert kinds("tensor", model()) == [TensorRule]
    assert kinds("subspace", nn.Linear(2, 2)) == [SubspaceRule]


@pytest.mark.parametrize("protection", ["subspace", "element", "tensor"])
def test_every_parameter_has_exactly_one_rule(protection):
    net = model()
    rules = coverage.rules_for(Settings(protection), coverage.owned(net, None), net)
    names = [name for rule in rules for name in rule.parameters]
    assert sorted(names) == sorted(name for name, _ in net.named_parameters())


def test_recurrent_layers_are_held_more_firmly():
    class Reader(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers, self.cell, self.head = nn.LSTM(3, 4), nn.GRUCell(4, 4), nn.Linear(4, 2)

    reader = Reader()
    rules = coverage.rules_for(Settings(strength=0.5), dict(reader.named_parameters()), reader)
    firm = {rule.layer.name: rule.strength for rule in rules if isinstance(rule, SubspaceRule)}
    assert firm.pop("head") == 0.5
    assert len(firm) == 4
    assert set(firm.values()) == {2.0}


@pytest.mark.parametrize(
    ("modules", "kinds"),
    [
        ([nn.Linear(4, 4), nn.Linear(4, 4)], [SubspaceRule]),
        ([nn.Embedding(5, 4), nn.Embedding(5, 4)], [EmbeddingRule]),
        ([nn.Embedding(5, 4), nn.Linear(4, 5)], [EmbeddingRule, SubspaceRule]),
        ([nn.Linear(4, 5), nn.Embedding(5, 4)], [SubspaceRule, EmbeddingRule]),
        ([nn.Linear(4, 5), nn.Embedding(5, 4), nn.Linear(4, 5)], [SubspaceRule, EmbeddingRule]),
        ([nn.Embedding(5, 4, sparse=True), nn.Linear(4, 5)], [EmbeddingRule]),
    ],
)
def test_a_shared_weight_is_covered_once_for_each_kind_of_use(modules, kinds):
    net = nn.Sequential(*modules)
    for module in net:
        module.weight = net[0].weight
    rules = coverage.rules_for(Settings(), coverage.owned(net, None), net)
    assert [type(rule) for rule in rules if any(p is net[0].weight for p in rule.parameters.values())] == kinds


def test_a_bias_alone_is_protected_weight_by_weight():
    net = nn.Linear(2, 2)
    net.weight.requires_grad_(False)
    (rule,) = coverage.rules_for(Settings(), coverage.owned(net, None), net)
    assert isinstance(rule, ElementRule)
    assert set(rule.parameters) == {"bias"}


def test_a_bias_of_another_optimizer_is_not_covered():
    net = nn.Linear(2, 2)
    (rule,) = coverage.rules_for(Settings(), coverage.owned(net, torch.optim.SGD([net.weight])), net)
    assert set(rule.parameters) == {"weight"}
    assert rule.layer.bias is None


def test_compiled_modules_keep_their_names():
    compiled = nn.Module()
    compiled._orig_mod = nn.Sequential(nn.Linear(2, 2))  # as torch.compile wraps it
    assert set(coverage.owned(compiled, None)) == {"0.weight", "0.bias"}


def test_coverage_names_every_parameter_and_its_grain():
    class Mixed(nn.Module):
        def __init__(self):
            super().__init__()
            self.table, self.norm, self.conv = nn.Embedding(5, 4), nn.LayerNorm(4), nn.Conv1d(4, 4, 1)
            self.attention, self.frozen = nn.MultiheadAttention(4, 2), nn.Linear(4, 4).requires_grad_(False)

    model = Mixed()
    comm = CommunicationLayer(model, torch.optim.Adam(model.parameters()))
    coverage = comm.coverage()
    assert set(coverage) == {n for n, p in model.named_parameters() if p.requires_grad}
    assert {n for n, grain in coverage.items() if grain == "element"} == {
        "norm.weight",
        "norm.bias",
    }
    for grain in ("element", "tensor"):
        comm = CommunicationLayer(model, torch.optim.Adam(model.parameters()), protection=grain)
        assert set(comm.coverage().values()) == {grain}


def test_only_what_the_optimizer_owns_is_covered():
    model = net()
    comm = CommunicationLayer(model, torch.optim.Adam(model[2].parameters()))
    assert set(comm.coverage()) == {"2.weight", "2.bias"}


@pytest.mark.filterwarnings("ignore:.*% of the trained weights are protected one by one")
def test_complex_weights_are_protected_weight_by_weight():
    model = nn.Linear(4, 2, dtype=torch.complex64)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    comm = CommunicationLayer(model, optimizer, consolidate_on=None, strength=4.0)
    assert set(comm.coverage().values()) == {"element"}
    for _ in range(3):
        model(torch.randn(8, 4, dtype=torch.complex64)).abs().square().mean().backward()
        comm.analyze()
        comm.protect()
        optimizer.step()
        comm.consolidate()
    assert comm.spectrum().protected > 0


def test_invalid_models_and_optimizers_are_refused():
    with pytest.raises(ValueError, match=r"optimizer.*own parameters of model"):
        CommunicationLayer(net(), torch.optim.Adam(net().parameters()))
    for model in (nn.ReLU(), net().requires_grad_(False)):
        with pytest.raises(ValueError, match=r"model.*require a gradient"):
            CommunicationLayer(model)


@pytest.mark.parametrize(
    ("net", "optimizer", "expected"),
    [
        (
            torch.optim.SGD([nn.Parameter(torch.ones(1))], 1.0),
            nn.Linear(1, 1),
            "model to be a torch.nn.Module, got SGD",
        ),
        ([torch.ones(1)], None, "model to be a torch.nn.Module, got list"),
        (nn.Linear(1, 1), torch.optim.Adam, "optimizer to be a torch.optim.Optimizer or None, got <class"),
    ],
    ids=["swapped", "data", "class"],
)
def test_the_error_names_the_type_of_an_invalid_model_or_optimizer(net, optimizer, expected):
    with pytest.raises(TypeError, match=f"Expected {expected}"):
        coverage.check(net, optimizer)
