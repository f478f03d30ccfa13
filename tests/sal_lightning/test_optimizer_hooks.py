import pytest
import torch
import torch.nn.functional as F
from torch import nn

from sal_lightning import CommunicationLayer
from tests.sal_lightning.tasks import net, task, train


@pytest.mark.slow
def test_a_closure_gives_the_same_weights_as_a_plain_step():
    results = []
    for closed in (False, True):
        model = net()
        optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
        comm = CommunicationLayer(model, optimizer)
        for i in range(60):
            x, y = task(i // 40, seed=i)

            def closure(x=x, y=y, optimizer=optimizer, model=model, comm=comm):
                optimizer.zero_grad()
                value = F.mse_loss(model(x), y)
                value.backward()
                comm.analyze()
                comm.protect()
                return value

            if closed:
                optimizer.step(closure)
            else:
                closure()
                optimizer.step()
        results.append([p.detach().clone() for p in model.parameters()])
    for a, b in zip(*results, strict=True):
        assert torch.equal(a, b)


@pytest.mark.slow
def test_an_optimizer_that_calls_super_step_is_restored_once(monkeypatch):
    class Child(torch.optim.Adam):
        def step(self, closure=None):
            return super().step(closure)

    torch.optim.Adam([nn.Parameter(torch.zeros(1))])  # from here on torch also hooks the parent's step
    results, counts = [], []
    for kind in (torch.optim.Adam, Child):
        model = net()
        optimizer = kind(model.parameters(), lr=5e-3)
        comm = CommunicationLayer(model, optimizer)
        restore, restored = comm.restore, []
        monkeypatch.setattr(comm, "restore", lambda restore=restore, restored=restored: restored.append(restore()))
        for i in range(60):
            train(model, optimizer, i // 40, 1, comm, start=i)
        results.append([p.detach().clone() for p in model.parameters()])
        counts.append(len(restored))
    assert counts == [60, 60]
    for a, b in zip(*results, strict=True):
        assert torch.equal(a, b)
