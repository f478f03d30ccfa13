"""Schedule-free optimizers: protection applies to the evaluated average."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from sal_lightning import CommunicationLayer
from tests.sal_lightning.tasks import net, task


class ScheduleFree(torch.optim.Optimizer):
    """Schedule-free SGD and AdamW of Defazio et al. (2024), their equations one by one.

    y = (1 − β) z + β x is where gradients are taken, z ← z − γ g, and x ← (1 − c) x + c z with c = 1 / t is evaluated.
    """

    def __init__(self, parameters, lr, adam=False, beta=0.9):
        super().__init__(parameters, {"lr": lr, "train_mode": True})
        self.adam, self.beta, self.t = adam, beta, 0

    def _exchange(self, train):
        for group in self.param_groups:
            for p in group["params"] if group["train_mode"] != train else ():
                z = self.state[p].get("z", p.data)
                b = self.beta
                p.data.copy_((1 - b) * z + b * p.data if train else (p.data - (1 - b) * z) / b)
            group["train_mode"] = train

    def train(self):
        self._exchange(True)

    def eval(self):
        self._exchange(False)

    @torch.no_grad()
    def step(self, closure=None):
        self.t += 1
        for group in self.param_groups:
            assert group["train_mode"]
            for p in group["params"]:
                if p.grad is None:
                    continue
                state, g, b = self.state[p], p.grad, self.beta
                z = state.setdefault("z", p.data.clone())
                x = (p.data - (1 - b) * z) / b
                if self.adam:
                    v = state.setdefault("v", torch.zeros_like(p))
                    v.mul_(0.999).addcmul_(g, g, value=0.001)
                    g = g / ((v / (1 - 0.999**self.t)).sqrt() + 1e-8)
                z.sub_(g, alpha=group["lr"])
                x = x + (z - x) / self.t
                p.data.copy_((1 - b) * z + b * x)


KINDS = {"sgd": (0.05, False), "adamw": (5e-3, True)}


def steps(model, optimizer, t, n):
    optimizer.train()
    for i in range(n):
        x, y = task(t, seed=i)
        optimizer.zero_grad()
        F.mse_loss(model(x), y).backward()
        optimizer.step()
    optimizer.eval()


def moved(kind, strength, dtype=torch.float32):
    """Change of the outputs on the first task's data while the second is learned, at the evaluation weights."""
    lr, adam = KINDS[kind]
    model = net().to(dtype)
    optimizer = ScheduleFree(model.parameters(), lr, adam)
    comm = None if strength is None else CommunicationLayer(model, optimizer, consolidate_on=None, strength=strength)
    steps(model, optimizer, 0, 60)
    if comm is not None:
        comm.consolidate()
    x = task(0, seed=999)[0]
    before = model(x).detach()
    weights = [p.detach().clone() for p in model.parameters()]
    steps(model, optimizer, 1, 60)
    assert any(not torch.equal(p, w) for p, w in zip(model.parameters(), weights, strict=True))
    return (model(x) - before).norm().item() / before.norm().item(), comm


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_the_evaluated_average_is_held(kind):
    plain, _ = moved(kind, None)
    firm, comm = moved(kind, 1e6)
    usual, _ = moved(kind, 4.0)
    part, whole = comm.drift().tolist()
    assert plain > 0.1
    assert firm < 1e-3
    assert firm < usual < plain / 2
    assert (part / whole) ** 0.5 < 1e-3


@pytest.mark.parametrize("training", [True, False])
def test_drift_is_measured_on_the_average_in_both_modes_without_side_effects(training):
    model = net()
    optimizer = ScheduleFree(model.parameters(), 0.05)
    comm = CommunicationLayer(model, optimizer, consolidate_on=None)
    steps(model, optimizer, 0, 20)
    comm.consolidate()
    steps(model, optimizer, 1, 20)
    comm.settle()
    expected = comm.drift()
    if training:
        optimizer.train()
    weights = [p.detach().clone() for p in model.parameters()]
    torch.testing.assert_close(comm.drift(), expected, rtol=1e-3, atol=1e-7)
    for p, w in zip(model.parameters(), weights, strict=True):
        torch.testing.assert_close(p, w, rtol=1e-5, atol=1e-6)
    assert optimizer.param_groups[0]["train_mode"] is training


def test_weights_set_by_hand_between_steps_are_accepted():
    model = nn.Sequential(nn.Linear(12, 4, bias=False))
    optimizer = ScheduleFree(model.parameters(), 1e-4)
    comm = CommunicationLayer(model, optimizer, consolidate_on=None, strength=1e6)
    steps(model, optimizer, 0, 20)
    comm.consolidate()
    steps(model, optimizer, 0, 5)
    new = torch.randn(4, 12, generator=torch.Generator().manual_seed(1))
    for weight in (model[0].weight.data, optimizer.state[model[0].weight]["z"]):
        weight.copy_(new)
    steps(model, optimizer, 0, 20)
    assert (model[0].weight - new).norm() / new.norm() < 0.05


class Wrapper:
    """Averages the weights that its inner optimizer updates, as ScheduleFreeWrapper does."""

    train_mode = True

    def __init__(self, base):
        self.base = base

    @property
    def param_groups(self):
        return self.base.param_groups

    def train(self):
        """Never called: only its presence is checked."""

    eval = train


def test_a_wrapper_whose_average_cannot_be_held_causes_a_warning():
    model = net()
    with pytest.warns(UserWarning, match="Wrapper evaluates an average"):
        CommunicationLayer(model, Wrapper(torch.optim.SGD(model.parameters(), lr=0.1)))
