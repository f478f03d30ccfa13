import pytest
import torch
import torch.nn.functional as F

from experiments.continual.data import load
from experiments.networks import networks, streams
from experiments.networks.ewc import EWC, ROWS
from experiments.networks.protocol import Run as Asked
from experiments.networks.protocol import callbacks, run
from experiments.networks.training import Learner


@pytest.fixture
def learned():
    torch.manual_seed(0)
    stream = streams.make("split-two", load("digits"), 0, 5, 32)
    learner, ewc = Learner("mlp", networks.make("mlp", 8)), EWC(100.0)
    ewc.start(learner)
    ewc.end_task(stream.tasks[:1])
    return stream, learner, ewc


def test_importance_is_the_mean_square_of_the_gradients_for_labels_that_are_drawn(learned):
    """Of the last bias it is known: the variance of the label, p (1 - p), in the mean over the images."""
    stream, learner, ewc = learned
    chosen = torch.randint(len(stream.tasks[0].train_x), (ROWS,), generator=torch.Generator().manual_seed(0))
    p = learner.net(stream.tasks[0].see(stream.tasks[0].train_x[chosen])).softmax(1)
    assert torch.allclose(ewc.F[-1] / 100, (p * (1 - p)).mean(0), atol=0.06)


def test_the_gradient_leads_back_in_proportion_to_it(learned):
    stream, learner, ewc = learned
    batch = stream.at(5)
    F.cross_entropy(learner.net(batch.x), batch.y).backward()
    before = [p.grad.clone() for p in learner.parameters()]
    with torch.no_grad():
        for p in learner.parameters():
            p += 0.5
    ewc.on_before_optimizer_step(None, learner, None)
    for p, g, f in zip(learner.parameters(), before, ewc.F, strict=True):
        assert torch.allclose(p.grad, g + f / 2, atol=1e-6)


@pytest.mark.slow
def test_importance_adds_up_over_tasks(learned):
    stream, _, ewc = learned
    first = [f.clone() for f in ewc.F]
    ewc.end_task(stream.tasks[:2])
    assert all((b >= a).all() for a, b in zip(first, ewc.F, strict=True))


@pytest.mark.parametrize("name", ["split-two", "split-two-fits"])
def test_it_is_told_where_the_first_task_ends_in_one_fit_and_in_two(name, monkeypatch):
    told = []
    monkeypatch.setattr(EWC, "learned", lambda self, tasks: told.append((len(tasks), self.steps)))
    monkeypatch.setattr(EWC, "steps", 0, raising=False)
    monkeypatch.setattr(EWC, "after_step", lambda self: setattr(self, "steps", self.steps + 1))
    run(Asked("mlp", name, "ewc:strength=1", 0, "digits", 5))
    assert told == [(1, 5)]


def test_methods_take_options():
    stream = streams.make("split-two", load("digits"), 0, 5, 32)
    ewc, _ = callbacks(Asked("mlp", "split-two", "ewc:strength=1e4", 0, "digits"), stream)
    assert ewc.factor == 1e4
    sal, _ = callbacks(Asked("mlp", "split-two", "told:pull=0,absent_prior=1", 0, "digits"), stream)
    assert (sal.settings.pull, sal.settings.absent_prior) == (0, 1)
