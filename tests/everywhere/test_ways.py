import copy

import lightning as L
import pytest
import torch

from sal_lightning import SALCallback
from tests.everywhere import models
from tests.everywhere.models import CHANGE, LENGTH, Net, loader, reference, same, steps, trainer

pytestmark = pytest.mark.slow


def test_a_fast_development_run_watches_one_step(tmp_path):
    callback = SALCallback()
    trainer(tmp_path, [callback], fast_dev_run=True).fit(Net(), loader())
    assert steps(callback) == [1]


def test_a_barebones_run_protects_the_same_and_logs_nothing(tmp_path):
    model, callback = Net(), SALCallback()
    run = L.Trainer(barebones=True, accelerator="cpu", max_epochs=1, default_root_dir=tmp_path, callbacks=[callback])
    run.fit(model, loader(LENGTH, CHANGE))
    assert callback.events == [CHANGE + 3]
    assert run.callback_metrics == {}
    assert same(model, reference(LENGTH, CHANGE)[0])


class Validates(Net):
    """Validates on whatever it is given, with or without gradients."""

    def __init__(self, gradients=False):
        super().__init__()
        self.gradients, self.validated = gradients, 0

    def validation_step(self, batch, batch_idx):
        self.validated += 1
        with torch.set_grad_enabled(self.gradients):
            self.log("loss", super().training_step(batch, batch_idx).detach())


@pytest.mark.parametrize("gradients", [False, True])
def test_validation_before_and_during_training_is_not_observed(tmp_path, gradients):
    model, callback = Validates(gradients), SALCallback()
    run = trainer(tmp_path, [callback], val_check_interval=26, num_sanity_val_steps=2, inference_mode=False)
    run.fit(model, loader(LENGTH, CHANGE), loader(length=5, first=1))
    plain, expected, _ = reference(LENGTH, CHANGE)
    assert model.validated == 2 + 2 * 5
    assert steps(callback) == [LENGTH]
    assert callback.events == [CHANGE + 3]
    assert same(model, plain)
    assert models.equal(callback.state_dict(), expected.state_dict())


@pytest.mark.parametrize("way", ["validate", "test", "predict"])
def test_evaluation_alone_asks_nothing_of_the_callback(tmp_path, way):
    class Evaluated(Net):
        def validation_step(self, batch, batch_idx):
            return super().training_step(batch, batch_idx)

        test_step = validation_step

        def predict_step(self, batch, batch_idx):
            return self(batch[0])

    model, callback = Evaluated(), SALCallback()
    run = trainer(tmp_path, [callback])
    options = {} if way == "predict" else {"verbose": False}
    getattr(run, way)(model, loader(length=5), **options)
    assert callback.events == []
    assert callback.coverage() == {}
    trainer(tmp_path, [callback]).fit(model, loader(LENGTH, CHANGE), loader(length=2))
    learned, weights, bands = copy.deepcopy(callback.state_dict()), copy.deepcopy(model), callback.spectrum()
    getattr(run, way)(model, loader(length=5, first=2), **options)
    assert models.equal(callback.state_dict(), learned)
    assert callback.spectrum() == bands
    assert same(model, weights)
    assert models.hooks(model, run.optimizers) == 0


@pytest.mark.parametrize(("options", "taken"), [({"limit_train_batches": 7}, 14), ({"max_steps": 9}, 9)])
def test_steps_are_counted_under_limits_of_batches_and_steps(tmp_path, options, taken):
    callback = SALCallback(consolidate_on=4)
    run = trainer(tmp_path, [callback], max_epochs=2, log_every_n_steps=1, **options)
    run.fit(Net(), loader(length=20))
    assert steps(callback) == [taken]
    assert callback.events == list(range(4, taken + 1, 4))
    assert run.callback_metrics["sal/step"] == taken
