import pytest
import torch

from sal_lightning import CommunicationLayer, StabilityAnalyzer
from sal_lightning.report.histograms import BINS, banded, histogram, views, whole
from sal_lightning.rules.scores import Scores, bands


def trained(protection="subspace"):
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(6, 8), torch.nn.ReLU(), torch.nn.LayerNorm(8), torch.nn.Linear(8, 2))
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    layer = CommunicationLayer(model, optimizer, protection=protection)
    layer.collector.analyzer = StabilityAnalyzer(model, optimizer)
    for step in range(60):
        optimizer.zero_grad()
        model(torch.randn(16, 6)).square().mean().backward()
        optimizer.step()
        if step == 40:
            layer.consolidate()
    return layer


def test_a_histogram_counts_each_weight_once():
    """Against numpy, on scores of many sizes."""
    import numpy as np

    s = torch.rand(1000, generator=torch.Generator().manual_seed(0))
    expected, _ = np.histogram(s.numpy(), bins=BINS, range=(0, 1))
    assert histogram([Scores(s[:400], 3.0), Scores(s[400:], 3.0)]).tolist() == pytest.approx(3.0 * expected)


@pytest.mark.parametrize("protection", ["subspace", "element", "tensor"])
def test_every_layer_s_spectrum_is_that_of_its_rule(protection):
    layer = trained(protection)
    seen = views([layer])
    assert list(seen) == [rule.name for rule in layer.rules]
    for rule in layer.rules:
        counts = rule.bands()
        assert banded(seen[rule.name].held) == pytest.approx((100 * counts / counts.sum()).tolist(), abs=1e-3)
        assert sum(seen[rule.name].held) == pytest.approx(rule.numel())
        assert sum(seen[rule.name].observed) == pytest.approx(rule.numel())


def test_observed_histograms_agree_with_the_analyzers_scores():
    layer = trained()
    analyzer = layer.collector.analyzer
    counts = sum(bands(s, 1.0) * analyzer.parameters[n].numel() / len(s) for n, s in analyzer.scores().items())
    assert banded(whole(views([layer])).observed) == pytest.approx((100 * counts / counts.sum()).tolist(), abs=1e-3)


def test_before_the_first_step_all_weights_are_in_the_lowest_bin():
    model = torch.nn.Linear(3, 2)
    layer = CommunicationLayer(model, torch.optim.SGD(model.parameters()))
    (view,) = views([layer]).values()
    assert view.held == view.observed == (8.0, *[0.0] * (BINS - 1))
    assert views([]) == {}


@pytest.mark.slow
def test_layers_of_one_name_under_two_optimizers_are_added_up():
    a, b = trained("element"), trained("element")
    one, both = views([a])["element"], views([a, b])["element"]
    assert both.weights == 2 * one.weights
    assert both.held == pytest.approx([2 * n for n in one.held])
