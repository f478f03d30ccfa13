import pytest
import torch
from torchmetrics import MetricCollection

from sal_lightning import EmergenceField
from sal_lightning.metrics import Coherence, EmergenceRate, Novelty, Resonance

KINDS = [Coherence, Novelty, Resonance, EmergenceRate]
OBSERVED = [(0.5, 1.0, 0.0, 1.0), (1.0, 0.5, 0.5, 1.0), (0.75, 0.25, 0.25, 0.0)]


@pytest.mark.parametrize(("kind", "expected"), list(zip(KINDS, (0.75, 1.75 / 3, 0.25, 2 / 3), strict=True)))
def test_each_metric_is_the_mean_of_its_component(kind, expected):
    metric = kind()
    for observed in OBSERVED:
        metric.update(torch.tensor(observed))
    assert metric.compute().item() == pytest.approx(expected)
    assert metric(torch.zeros(4)).item() == 0.0  # the value of a step is its own
    metric.reset()
    metric.update(OBSERVED[1])
    assert metric.compute().item() == OBSERVED[1][KINDS.index(kind)]


@pytest.mark.filterwarnings("ignore:The ``compute`` method")
@pytest.mark.parametrize("kind", KINDS)
def test_without_an_observation_it_is_nan(kind):
    assert kind().compute().isnan()


def test_metrics_accept_observations_of_a_field_and_share_one_state():
    field, metrics = EmergenceField(), MetricCollection([kind() for kind in KINDS])
    seen = [field.observe(torch.randn(9, 5, generator=torch.Generator().manual_seed(i))) for i in range(3)]
    for observed in seen:
        metrics.update(observed)
    expected = torch.tensor(seen, dtype=torch.float64).mean(0)
    for name, value in zip(("Coherence", "Novelty", "Resonance", "EmergenceRate"), expected, strict=True):
        assert metrics.compute()[name].item() == pytest.approx(float(value))
    assert len(metrics.compute_groups) == 1


def seen(rank):
    """What is said in one process, that saw the first observation, or the other two."""
    metrics = [kind() for kind in KINDS]
    for metric in metrics:
        for observed in OBSERVED[:1] if rank == 0 else OBSERVED[1:]:
            metric.update(observed)
    return [metric.compute().item() for metric in metrics]


@pytest.mark.slow
def test_two_processes_count_what_both_saw(both, tmp_path):
    for answers in both(tmp_path, seen):
        assert answers == pytest.approx([0.75, 1.75 / 3, 0.25, 2 / 3])
