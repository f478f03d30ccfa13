import pytest
import torch
from torch import nn
from transformers import BertConfig, BertForSequenceClassification

from sal_lightning import CommunicationLayer, SALCallback
from sal_lightning.remembering import energies, importance_values, independent_surprisals, run, surprisals
from tests.sal_lightning.tasks import loss, net, task, train


@pytest.mark.parametrize(
    "output",
    [
        torch.tensor([[3.0, 4.0], [0.0, 5.0]]),
        (torch.tensor([1, 2]), torch.tensor([[3.0, 4.0], [0.0, 5.0]])),
        {"labels": torch.tensor([1.0]), "logits": torch.tensor([[3.0, 4.0], [0.0, 5.0]])},
        [(torch.tensor([[3.0, 4.0], [0.0, 5.0]]), "state")],
    ],
    ids=["tensor", "tuple", "mapping", "nested"],
)
def test_energy_is_half_the_mean_squared_norm_of_the_output(output):
    assert energies(output).mean() == 12.5


def test_surprisals_have_the_gradients_of_the_fisher_information():
    """By hand: the square of the gradient of -log p(y) at logit k is (p_k - [y = k])², whose mean is p_k (1 - p_k)."""
    logits = torch.tensor([2.0, 0.0, -1.0, 1.0]).repeat(40_000, 1).requires_grad_()
    (gradient,) = torch.autograd.grad(surprisals(logits, seed=3).sum(), logits)
    p = logits.detach()[0].softmax(-1)
    torch.testing.assert_close(gradient.square().mean(0), p * (1 - p), rtol=0.05, atol=0)
    torch.testing.assert_close(gradient.mean(0), torch.zeros(4), rtol=0, atol=0.01)


def test_labels_of_one_sample_are_drawn_independently_where_it_has_several():
    """By hand: the square of the gradient at logit k is (σ(z_k) - y_k)², whose mean is σ(z_k) (1 - σ(z_k))."""
    logits = torch.tensor([2.0, 0.0, -1.0]).repeat(40_000, 1).requires_grad_()
    (gradient,) = torch.autograd.grad(independent_surprisals(logits, seed=3).sum(), logits)
    p = logits.detach()[0].sigmoid()
    torch.testing.assert_close(gradient.square().mean(0), p * (1 - p), rtol=0.05, atol=0)
    mixed = gradient.sign().sum(1).abs() < 3
    assert mixed.float().mean() > 0.5  # several labels, or none, which a softmax never draws


@pytest.mark.parametrize(
    ("problem", "values"),
    [
        ("multi_label_classification", independent_surprisals),
        ("single_label_classification", lambda logits: surprisals(logits)),
        (None, lambda logits: surprisals(logits)),
        ("regression", lambda logits: energies(logits)),
    ],
)
def test_labels_are_drawn_as_the_configuration_says(problem, values):
    config = BertConfig(
        vocab_size=9, hidden_size=4, num_hidden_layers=1, num_attention_heads=1, intermediate_size=4, num_labels=3
    )
    config.problem_type = problem
    model = BertForSequenceClassification(config).eval()
    output = model(input_ids=torch.arange(8).view(2, 4))
    for held in (model, nn.ModuleDict({"inside": model})):
        torch.testing.assert_close(importance_values(held, output), values(output.logits))


class Language(nn.Module):
    """A language model of seven tokens; its output is a tensor, or a mapping as in transformers."""

    def __init__(self, mapping=False):
        super().__init__()
        self.embedding, self.head, self.mapping = nn.Embedding(7, 4), nn.Linear(4, 7), mapping

    def forward(self, input_ids, attention_mask=None):
        logits = self.head(self.embedding(input_ids))
        return {"logits": logits} if self.mapping else logits


@pytest.mark.parametrize("mapping", [False, True], ids=["tensor", "mapping"])
def test_a_language_model_has_a_value_at_each_position(mapping):
    model = Language(mapping)
    output = model(torch.arange(6).view(2, 3))
    logits = output["logits"] if mapping else output
    torch.testing.assert_close(importance_values(model, output, seed=5), surprisals(logits, seed=5))
    assert importance_values(model, output).shape == (6,)


@pytest.mark.parametrize(
    "output",
    [torch.ones(2, 7), torch.ones(2, 3, 5), {"logits": torch.ones(2, 1)}, {"logits": torch.ones(2, 4, 3, 3)}],
    ids=["two dimensions", "another size", "regression", "pictures"],
)
def test_other_outputs_are_not_taken_as_logits(output):
    torch.testing.assert_close(importance_values(Language(), output), energies(output))


def test_padded_positions_have_no_importance():
    """A fully padded batch has none either."""
    found = []
    for ids, mask in (([[1, 2, 3]], [[1, 1, 1]]), ([[1, 2, 3, 4, 4]], [[1, 1, 1, 0, 0]])):
        torch.manual_seed(0)
        model = Language(mapping=True)
        comm = CommunicationLayer(model, torch.optim.Adam(model.parameters()), consolidate_on=None)
        batch = {"input_ids": torch.tensor(ids), "attention_mask": torch.tensor(mask)}
        comm.remember([batch] * 20)
        found.append(comm.state_dict()["pull"]["memory"]["head.weight"]["columns"])
    torch.testing.assert_close(*found)
    comm.remember([batch | {"attention_mask": torch.zeros(1, 5, dtype=torch.long)}])
    torch.testing.assert_close(comm.state_dict()["pull"]["memory"]["head.weight"]["columns"], found[1])


def test_every_batch_to_remember_counts():
    """By hand: the first and the last five of ten batches use one input each, and only that column has a gradient."""
    model = nn.Linear(2, 1, bias=False)
    nn.init.ones_(model.weight)
    comm = CommunicationLayer(model, torch.optim.Adam(model.parameters()), consolidate_on=None)
    comm.remember([torch.tensor([[1.0, 0.0]])] * 5 + [torch.tensor([[0.0, 1.0]])] * 5)
    first, last = comm.state_dict()["pull"]["memory"]["weight"]["columns"]
    assert 0.9 < first / last < 1


def test_batches_as_loaders_give_them():
    model, x = nn.Linear(2, 1), torch.ones(3, 2)
    expected = model(x)
    for batch in (x, (x, torch.zeros(3)), [x], {"input": x}):
        torch.testing.assert_close(run(model, batch), expected)


@pytest.mark.slow
def test_remember_protects_a_pretrained_model_without_labels():
    forgotten = {}
    for remembered in (False, True):
        model = net()
        optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
        train(model, optimizer, 0, 200)
        model.train()
        comm = CommunicationLayer(model, optimizer, consolidate_on=None)
        if remembered:
            grads = [p.grad for p in model.parameters()]
            comm.remember([task(0, seed=i) for i in range(30)])
            assert model.training
            assert all(p.grad is g for p, g in zip(model.parameters(), grads, strict=True))
            assert comm.events == [0]
        first = loss(model, 0)
        train(model, optimizer, 1, 150, comm)
        forgotten[remembered] = loss(model, 0) - first
        assert loss(model, 1) < 0.15
    assert forgotten[True] < 0.35 * forgotten[False]


def test_remember_takes_mappings_a_forward_of_ones_own_and_a_limit():
    class Named(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer, self.norm, self.calls = nn.Linear(4, 2), nn.LayerNorm(2), 0

        def forward(self, values):
            self.calls += 1
            return {"logits": self.norm(self.layer(values))}

    model = Named()
    comm = CommunicationLayer(model, torch.optim.Adam(model.parameters()), consolidate_on=None)
    comm.remember(({"values": torch.randn(8, 4)} for _ in range(100)), limit=3)
    assert model.calls == 3
    comm.remember([torch.randn(8, 4)], forward=lambda x: model(2 * x))
    assert model.calls == 4
    assert len(comm.events) == 2


def test_modules_in_evaluation_mode_stay_in_it():
    model = nn.Sequential(nn.Linear(12, 4), nn.BatchNorm1d(4))
    model[1].eval()
    CommunicationLayer(model, torch.optim.Adam(model.parameters())).remember([task(0)])
    assert model.training
    assert model[0].training
    assert not model[1].training


def test_empty_batches_and_invalid_models_are_refused():
    with pytest.raises(ValueError, match="Expected batches to have at least one to remember, got none"):
        SALCallback().remember(nn.Linear(2, 1), [])
    with pytest.raises(TypeError, match=r"Expected model to be a torch\.nn\.Module, got list"):
        SALCallback().remember([torch.ones(3, 2)], nn.Linear(2, 1))
