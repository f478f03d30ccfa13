import csv
from pathlib import Path

import lightning as L
import pytest
import pytorch_lightning

from sal_lightning import SALCallback
from tests.everywhere import models
from tests.everywhere.models import CHANGE, LENGTH, Net, loader, reference, same, trainer

pytestmark = pytest.mark.slow

FIELD = ("coherence", "novelty", "resonance", "emergence")
HELD = ("protected", "neutral", "volatile", "suppressed", "effect", "drift")
NAMES = {*HELD, *FIELD, "surprise", "consolidations", "step"}


class OldNet(models._Steps, pytorch_lightning.LightningModule):
    """The same under the package's older name."""


def test_both_lightnings_train_the_same_weights(tmp_path):
    plain, expected, _ = reference(LENGTH, CHANGE)
    model, callback = OldNet(), SALCallback()
    trainer(tmp_path, [callback], pytorch_lightning.Trainer).fit(model, loader(LENGTH, CHANGE))
    assert callback.events == expected.events == [CHANGE + 3]
    assert same(model, plain)
    assert models.equal(callback.state_dict(), expected.state_dict())


@pytest.mark.parametrize(("package", "net"), [(L.pytorch, Net), (pytorch_lightning, OldNet)], ids=["new", "old"])
def test_both_lightnings_loggers_get_the_values(tmp_path, package, net):
    logger = package.loggers.CSVLogger(tmp_path)
    run = trainer(tmp_path, [SALCallback()], package.Trainer, logger=logger, log_every_n_steps=16)
    run.fit(net(), loader(LENGTH, CHANGE))
    with open(Path(logger.log_dir) / "metrics.csv") as file:
        rows = [row for row in csv.DictReader(file) if row.get("sal/suppressed")]
    assert [float(row["sal/step"]) for row in rows] == [16, 32, 48]
    assert all(row[f"sal/{name}"] for row in rows for name in NAMES - {"step"})


def test_the_older_lightning_resumes_exactly_too(tmp_path):
    whole, callback = OldNet(), SALCallback(consolidate_on=12)
    trainer(tmp_path, [callback], pytorch_lightning.Trainer, max_epochs=2).fit(whole, loader(length=20))
    run = trainer(tmp_path, [SALCallback(consolidate_on=12)], pytorch_lightning.Trainer)
    run.fit(OldNet(), loader(length=20))
    run.save_checkpoint(tmp_path / "half.ckpt")
    resumed, again = OldNet(), SALCallback(consolidate_on=12)
    last = trainer(tmp_path, [again], pytorch_lightning.Trainer, max_epochs=2)
    last.fit(resumed, loader(length=20), ckpt_path=tmp_path / "half.ckpt")
    assert again.events == callback.events == [12, 24, 36]
    assert same(whole, resumed)
