import csv
from pathlib import Path

import pytest
import torch
from lightning.pytorch.callbacks import (
    EMAWeightAveraging,
    LearningRateMonitor,
    RichProgressBar,
    TQDMProgressBar,
    WeightAveraging,
)
from lightning.pytorch.loggers import CSVLogger

from sal_lightning import SALCallback
from tests.everywhere.models import CHANGE, LENGTH, Net, loader, reference, same, trainer

pytestmark = pytest.mark.slow


@pytest.mark.parametrize(("kind", "validated"), [("mean", True), ("exponential", False)])
def test_averages_are_those_of_the_protected_weights_in_either_order(tmp_path, kind, validated):
    average = WeightAveraging if kind == "mean" else lambda: EMAWeightAveraging(decay=0.9)
    _, _, trail = reference(LENGTH, CHANGE)
    expected = trail[0]
    for n, now in enumerate(trail[1:], start=1):
        share = 1 / (n + 1) if kind == "mean" else 0.1
        expected = [a + share * (w - a) for a, w in zip(expected, now, strict=True)]

    class Validated(Net):
        def validation_step(self, batch, batch_idx):
            return super().training_step(batch, batch_idx)

    results = []
    for first in (True, False):
        model, callback = Validated() if validated else Net(), SALCallback()
        both = [callback, average()] if first else [average(), callback]
        run = trainer(tmp_path, both, val_check_interval=26, num_sanity_val_steps=2)
        run.fit(model, loader(LENGTH, CHANGE), loader(length=3, first=1) if validated else None)
        assert callback.events == [CHANGE + 3]
        assert all(torch.allclose(p, e, atol=1e-5) for p, e in zip(model.parameters(), expected, strict=True))
        results.append(model)
    assert same(*results)


class Scheduled(Net):
    def configure_optimizers(self):
        optimizer = torch.optim.Adam(self.parameters(), lr=5e-3)
        scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 15, gamma=0.5)
        return [optimizer], [{"scheduler": scheduler, "interval": "step"}]


@pytest.mark.filterwarnings("ignore:.*does not have many workers")
@pytest.mark.parametrize("bar", [RichProgressBar, TQDMProgressBar])
def test_progress_bars_and_a_learning_rate_monitor_change_nothing(tmp_path, capsys, bar):
    results = []
    for company in (False, True):
        model, callback, logger = Scheduled(), SALCallback(), CSVLogger(tmp_path, version=int(company))
        others = [LearningRateMonitor("step"), bar()] if company else []
        options = {"logger": logger, "log_every_n_steps": 10, "enable_progress_bar": company}
        trainer(tmp_path, [*others, callback], **options).fit(model, loader(60, CHANGE))
        with open(Path(logger.log_dir) / "metrics.csv") as file:
            rows = list(csv.DictReader(file))
        results.append((model, [row["sal/step"] for row in rows if row.get("sal/suppressed")]))
    rates = [float(row["lr-Adam"]) for row in rows if row.get("lr-Adam")]
    assert rates == pytest.approx([5e-3, 2.5e-3, 2.5e-3, 1.25e-3, 6.25e-4, 6.25e-4])
    assert same(results[0][0], results[1][0])
    assert results[0][1] == results[1][1]
    assert len(results[1][1]) == 6
    assert "60/60" in capsys.readouterr().out
