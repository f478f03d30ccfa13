import pytest
import torch

from sal_lightning.metrics import BandPercent


def test_percent_of_counts_over_all_updates():
    bands = {band: BandPercent(band) for band in ("protected", "neutral", "volatile")}
    for counts in (torch.tensor([1.0, 2.0, 1.0]), torch.tensor([3.0, 0.0, 1.0])):
        for metric in bands.values():
            metric.update(counts)
    assert {band: metric.compute().item() for band, metric in bands.items()} == {
        "protected": 50.0,
        "neutral": 25.0,
        "volatile": 25.0,
    }


def test_large_counts_are_not_rounded_away():
    metric = BandPercent("volatile")
    for _ in range(10):
        metric.update(torch.tensor([1e9, 0.0, 1e9]))
    assert metric.compute() == 50


@pytest.mark.filterwarnings("ignore:The ``compute`` method")
def test_empty_is_nan():
    assert BandPercent("neutral").compute().isnan()


def test_an_unknown_band_is_refused():
    with pytest.raises(ValueError, match=r"'protected', 'neutral', 'volatile'.*'frozen'"):
        BandPercent("frozen")
