import pytest
import torch
from lightning.pytorch.callbacks import BaseFinetuning
from torch import nn

from sal_lightning import CommunicationLayer, SALCallback
from tests.everywhere import models
from tests.everywhere.models import OPTIMIZERS, equal, moved, names, overlapping, train, weights

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("protection", ["subspace", "element"])
@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_weights_frozen_in_mid_training_do_not_move_at_all(kind, protection):
    model = models.mlp()
    optimizer = OPTIMIZERS[kind](model.parameters())
    comm = CommunicationLayer(model, optimizer, protection=protection, consolidate_on=None)
    train(model, optimizer, comm, overlapping, task=0, steps=20)
    comm.consolidate()
    train(model, optimizer, comm, overlapping, task=1, steps=10)
    model[0].requires_grad_(False)
    frozen, free = weights(model[0]), weights(model[2])
    train(model, optimizer, comm, overlapping, task=1, steps=10)
    comm.consolidate()
    train(model, optimizer, comm, overlapping, task=2, steps=10)
    assert equal(weights(model[0]), frozen)
    assert not equal(weights(model[2]), free)


@pytest.mark.parametrize("protection", ["subspace", "element"])
def test_thawed_weights_are_protected_as_before(protection):
    drift = {}
    x, _ = overlapping(0, 999)
    for held in (False, True):
        model = models.mlp()
        optimizer = OPTIMIZERS["adamw"](model.parameters())
        comm = CommunicationLayer(model, optimizer, protection=protection, consolidate_on=None, strength=1e6)
        train(model, optimizer, comm, overlapping, task=0, steps=30)
        if held:
            comm.consolidate()
        model[0].requires_grad_(False)
        train(model, optimizer, comm, overlapping, task=1, steps=10)
        model[0].requires_grad_(True)
        before = model[0](x).detach()
        train(model, optimizer, comm, overlapping, task=1, steps=30)
        comm.settle()
        drift[held] = moved(model[0], x, before)
    assert drift[True] < 0.1 * drift[False]


@pytest.mark.parametrize("protection", ["subspace", "element"])
@pytest.mark.parametrize("how", ["thawed", "added"])
def test_weights_that_join_in_mid_training_are_covered_and_held_from_the_next_consolidation(how, protection):
    drift = {}
    x, _ = overlapping(0, 999)
    for held in (False, True):
        model = models.mlp()
        model[0].requires_grad_(how != "thawed")
        optimizer = OPTIMIZERS["adamw"](model.parameters() if how == "thawed" else model[2].parameters())
        comm = CommunicationLayer(model, optimizer, protection=protection, consolidate_on=None, strength=1e6)
        train(model, optimizer, comm, overlapping, task=0, steps=10)
        assert set(comm.coverage()) == {"2.weight", "2.bias"}
        if how == "thawed":
            model[0].requires_grad_(True)
        else:
            optimizer.add_param_group({"params": list(model[0].parameters())})
        train(model, optimizer, comm, overlapping, task=0, steps=20, start=10)
        assert set(comm.coverage()) == names(model)
        if held:
            comm.consolidate()
        before = model[0](x).detach()
        train(model, optimizer, comm, overlapping, task=1, steps=30)
        comm.settle()
        drift[held] = moved(model[0], x, before)
    assert drift[True] < 0.1 * drift[False]


@pytest.mark.parametrize("protection", ["subspace", "element"])
def test_a_state_with_weights_that_joined_continues_exactly(protection):
    ended = []
    for interrupted in (False, True):
        model = models.mlp()
        optimizer = OPTIMIZERS["adamw"](model[2].parameters())
        comm = CommunicationLayer(model, optimizer, protection=protection, consolidate_on=15)
        train(model, optimizer, comm, overlapping, task=0, steps=10)
        optimizer.add_param_group({"params": list(model[0].parameters())})
        train(model, optimizer, comm, overlapping, task=0, steps=20, start=10)
        if interrupted:
            state = comm.state_dict()
            comm.detach()
            comm = CommunicationLayer(model, optimizer, protection=protection, consolidate_on=15)
            comm.load_state_dict(state)
        train(model, optimizer, comm, overlapping, task=1, steps=20)
        ended.append(weights(model))
        assert comm.events == [15, 30, 45]
    assert equal(*ended)


class Thaw(BaseFinetuning):
    """The first layer joins in the second epoch, as a parameter group of its own."""

    def freeze_before_training(self, pl_module):
        self.freeze(pl_module.net[0])

    def finetune_function(self, pl_module, epoch, optimizer):
        if epoch == 1:
            self.unfreeze_and_add_param_group(pl_module.net[0], optimizer, lr=5e-3)


class EpochNet(models.Net):
    """Two epochs of one task, then one of another."""

    def training_step(self, batch, batch_idx):
        return super().training_step(overlapping(int(self.current_epoch == 2), self.global_step), batch_idx)


@pytest.mark.parametrize("protection", ["subspace", "element"])
def test_layers_thawed_by_a_finetuning_callback_are_covered_and_held(tmp_path, protection):
    drift, x = {}, overlapping(0, 999)[0]
    for held in (False, True):
        model, before = EpochNet(), []
        callback = SALCallback(protection, consolidate_on=40 if held else None, strength=1e6)
        early = models.At(10, lambda *_, c=callback: c.coverage())
        late = models.At(40, lambda _, m, b=before: b.append(m.net[0](x).detach()))
        run = models.trainer(tmp_path, [Thaw(), callback, early, late], max_epochs=3)
        run.fit(model, models.loader(length=20))
        assert set(early.result) == {"net.2.weight", "net.2.bias"}
        assert set(callback.coverage()) == names(model)
        drift[held] = moved(model.net[0], x, before[0])
    assert drift[True] < 0.1 * drift[False]


class TwoHeads(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Linear(12, 16)
        self.heads = nn.ModuleList(nn.Sequential(nn.Linear(16, 8), nn.LayerNorm(8), nn.Linear(8, 4)) for _ in range(2))
        self.use = 0

    def forward(self, x):
        return self.heads[self.use](self.body(x).tanh())


@pytest.mark.parametrize("protection", ["subspace", "element", "tensor"])
@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_weights_without_a_gradient_in_a_step_do_not_move_in_it(kind, protection):
    model = TwoHeads()
    optimizer = OPTIMIZERS[kind](model.parameters())
    comm = CommunicationLayer(model, optimizer, protection=protection, consolidate_on=20)
    for i in range(60):
        model.use = i // 3 % 2
        idle = weights(model.heads[1 - model.use])
        busy = weights(model.heads[model.use])
        train(model, optimizer, comm, overlapping, task=i // 30, steps=1, start=i)
        assert equal(weights(model.heads[1 - model.use]), idle)
        assert not equal(weights(model.heads[model.use]), busy)
    assert comm.events == [20, 40, 60]
