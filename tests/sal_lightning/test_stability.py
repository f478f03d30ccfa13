import pytest
import torch
import torch.nn.functional as F
from torch import nn

from sal_lightning import StabilityAnalyzer, StabilitySpectrum
from sal_lightning.stability import BETA, SAMPLE, signals


def data(seed, labels="right", n=64):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, 10, generator=generator)
    y = x[:, :2].argmax(1) if labels == "right" else torch.randint(2, (n,), generator=generator)
    return x, y


def train(model, analyzer, optimizer, steps, labels="right", start=0):
    for i in range(start, start + steps):
        x, y = data(i, labels)
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        analyzer.update()
        optimizer.step()


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(10, 32), nn.Tanh(), nn.Linear(32, 2))


def mean(analyzer, name):
    return analyzer.scores()[name].mean().item()


def test_all_weights_are_volatile_before_the_first_update():
    assert StabilityAnalyzer(net()).classify() == StabilitySpectrum(0.0, 0.0, 100.0)


def test_a_layer_that_does_not_move_is_settled_and_one_that_learns_is_not():
    model = net()
    analyzer = StabilityAnalyzer(model)
    still, moving = list(model[0].parameters()), list(model[2].parameters())
    optimizer = torch.optim.Adam([{"params": still, "lr": 0.0}, {"params": moving, "lr": 1e-3}])
    train(model, analyzer, optimizer, 60)
    assert analyzer.scores()["0.weight"].min() > 0.6  # unmoved, though it is still pushed
    assert mean(analyzer, "0.weight") > mean(analyzer, "2.weight") + 0.2


@pytest.mark.slow
def test_a_network_settles_as_it_converges():
    model = net()
    analyzer = StabilityAnalyzer(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    train(model, analyzer, optimizer, 40)
    early = mean(analyzer, "2.weight")
    schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.995)
    for i in range(40, 600):
        train(model, analyzer, optimizer, 1, start=i)
        schedule.step()
    assert mean(analyzer, "2.weight") > early + 0.1


@pytest.mark.slow
def test_a_reinitialised_layer_becomes_volatile():
    model = net()
    analyzer = StabilityAnalyzer(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    train(model, analyzer, optimizer, 500)
    settled = mean(analyzer, "2.weight")
    other = mean(analyzer, "0.weight")
    with torch.no_grad():
        model[2].weight.normal_()
    train(model, analyzer, optimizer, 20, start=500)
    assert mean(analyzer, "2.weight") < settled - 0.15
    assert mean(analyzer, "2.weight") - settled < mean(analyzer, "0.weight") - other


@pytest.mark.slow
def test_random_labels_make_a_settled_network_volatile():
    model = net()
    analyzer = StabilityAnalyzer(model)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    train(model, analyzer, optimizer, 600)
    settled = mean(analyzer, "2.weight")
    train(model, analyzer, optimizer, 25, labels="random", start=600)
    assert mean(analyzer, "2.weight") < settled


def test_signals_on_walks_with_a_known_answer():
    """Straight on, a free random walk, and a noisy spring: (change, consistency, variance) of each."""
    generator = torch.Generator().manual_seed(0)
    n, steps = 2000, 600
    w = torch.zeros(3, n)
    means = torch.zeros(6, 3, n)
    centre = w.clone()
    for _ in range(steps):
        noise = torch.randn(2, n, generator=generator)
        step = torch.stack([torch.ones(n), noise[0], noise[1] - 0.5 * w[2]])
        w = w + step
        new = torch.stack([step, step.abs(), step, step.abs(), (w - centre) ** 2, step**2])
        means.lerp_(new, 1 - BETA)
        centre.lerp_(w, 1 - BETA)
    change, consistency, variance = (s.mean(1) for s in signals(*means))
    assert change[0] < 0.01
    assert consistency[0] < 0.01
    assert variance[0] < 0.01
    assert (change[1:] > 0.8).all()
    assert (consistency[1:] > 0.8).all()
    assert variance[1] < 0.45
    assert variance[2] > 0.85


def test_scores_do_not_depend_on_the_unit_of_weights_or_gradients():
    scores = []
    for scale in (1e-3, 1e3):
        model = nn.Linear(10, 2)
        torch.manual_seed(0)
        analyzer = StabilityAnalyzer(model)
        for _ in range(50):
            with torch.no_grad():
                model.weight.add_(scale * torch.randn(2, 10))
            model.weight.grad = torch.randn(2, 10) / scale
            analyzer.update()
        scores.append(analyzer.scores()["weight"])
    torch.testing.assert_close(*scores, atol=0.02, rtol=0)


def test_the_sample_has_a_fixed_size():
    model = nn.Linear(1000, 100)
    analyzer = StabilityAnalyzer(model)
    model(torch.randn(4, 1000)).sum().backward()
    for _ in range(3):
        analyzer.update()
    assert analyzer.scores()["weight"].shape == (SAMPLE,)
    assert analyzer.scores()["bias"].shape == (100,)
    assert sum(t.numel() for t in analyzer.means.values()) == 8 * (SAMPLE + 100)
    assert sum(analyzer.classify()) == 100


def test_state_continues_exactly():
    whole_model, part_model = net(), net()
    whole, part = StabilityAnalyzer(whole_model), StabilityAnalyzer(part_model)
    for model, analyzer in ((whole_model, whole), (part_model, part)):
        train(model, analyzer, torch.optim.SGD(model.parameters(), lr=0.1), 20)
    resumed = StabilityAnalyzer(part_model, seed=7)
    resumed.load_state_dict(part.state_dict())
    for model, analyzer in ((whole_model, whole), (part_model, resumed)):
        train(model, analyzer, torch.optim.SGD(model.parameters(), lr=0.1), 20, start=20)
    for name, scores in whole.scores().items():
        assert torch.equal(scores, resumed.scores()[name])
