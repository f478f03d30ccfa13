import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from sal_lightning import CommunicationLayer, SALCallback
from tests.everywhere import models
from tests.everywhere.models import CHANGE, LENGTH, batch, close, moved, train, weights

pytestmark = pytest.mark.slow


class Stack(nn.Module):
    def __init__(self, checkpointed):
        super().__init__()
        torch.manual_seed(0)
        self.checkpointed = checkpointed
        self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(12, 12), nn.Tanh()) for _ in range(3))
        self.head = nn.Linear(12, 4)

    def forward(self, x):
        for block in self.blocks:
            x = checkpoint(block, x, use_reentrant=False) if self.checkpointed else block(x)
        return self.head(x)


@pytest.mark.parametrize("protection", ["subspace", "element"])
def test_layers_run_again_by_gradient_checkpointing_are_watched_once(tmp_path, protection):
    plain, checkpointed = models.Net(Stack(False)), models.Net(Stack(True))
    callbacks = [SALCallback(protection), SALCallback(protection)]
    for model, callback in zip((plain, checkpointed), callbacks, strict=True):
        models.trainer(tmp_path, [callback]).fit(model, models.loader(LENGTH, CHANGE))
    assert callbacks[0].events == callbacks[1].events == [CHANGE + 3]
    assert close(weights(plain), weights(checkpointed), rtol=0, atol=1e-6)
    assert callbacks[1].spectrum() == callbacks[0].spectrum()


class Twice(nn.Module):
    """One layer reads both halves of a batch, one after the other."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.shared, self.head = nn.Linear(12, 16), nn.Linear(32, 4)

    def forward(self, x):
        first, second = x.chunk(2)
        return self.head(torch.cat([self.shared(first), self.shared(second)], 1).tanh()).repeat(2, 1)


def test_a_layer_used_twice_in_a_forward_pass_keeps_what_it_did_in_both_places():
    answers = {}
    tasks = [batch(t, 999)[0] for t in range(3)]

    def both(task, i):
        """The first half of the rows is of one task, the second of the next."""
        (x, y), (z, _) = batch(task, i), batch((task + 1) % 3, i + 500)
        return torch.cat([x[:16], z[:16]]), y

    for held in (False, True):
        model = Twice()
        optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
        comm = CommunicationLayer(model, optimizer, consolidate_on=None, strength=20.0)
        train(model, optimizer, comm, both, task=0, steps=50)
        if held:
            comm.consolidate()
        before = [model.shared(x).detach() for x in tasks]
        # Now the third task and the first: the places have changed.
        train(model, optimizer, comm, both, task=2, steps=40)
        train(model, optimizer, comm, both, task=1, steps=40)
        answers[held] = [moved(model.shared, x, b) for x, b in zip(tasks, before, strict=True)]
    first, second, third = (answers[True][t] / answers[False][t] for t in range(3))
    assert max(first, second) < 0.15
    assert third > 2 * max(first, second)
