import pytest
import torch
from torch import nn

from sal_lightning import CommunicationLayer, SALCallback
from sal_lightning.remembering import energies, run
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
