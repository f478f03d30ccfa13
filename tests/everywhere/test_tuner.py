import pytest
import torch
from lightning.pytorch.tuner import Tuner
from torch.utils.data import DataLoader

from sal_lightning import SALCallback
from tests.everywhere import models
from tests.everywhere.models import CHANGE, LENGTH, Net, same, steps, trainer

pytestmark = pytest.mark.slow


class Tunable(Net):
    """Has what the tuner looks for: a learning rate and a batch size."""

    def __init__(self):
        super().__init__()
        self.lr, self.batch_size = 5e-3, 16

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=self.lr)

    def train_dataloader(self):
        x, y = zip(*(models.batch(int(i >= CHANGE), i, self.batch_size) for i in range(LENGTH)), strict=True)
        return DataLoader(list(zip(x, y, strict=True)), batch_size=None)


def test_a_search_for_the_learning_rate_leaves_the_following_fit_as_it_was(tmp_path):
    ended = []
    for searched in (False, True):
        model, callback = Tunable(), SALCallback()
        run = trainer(tmp_path, [callback])
        if searched:
            found = Tuner(run).lr_find(model, num_training=30, update_attr=False)
            assert len(found.results["lr"]) >= 20
            assert models.hooks(model, run.optimizers) == 0
        run.fit(model)
        assert steps(callback) == [LENGTH]
        ended.append((model, callback.state_dict()))
    assert same(ended[0][0], ended[1][0])
    assert models.equal(ended[0][1], ended[1][1])


@pytest.mark.parametrize("search", ["lr_find", "scale_batch_size"])
def test_a_search_between_two_fits_keeps_what_was_learned_and_does_not_hide_the_second(tmp_path, search):
    model, callback = Tunable(), SALCallback(consolidate_on="fit")
    trainer(tmp_path, [callback]).fit(model)
    learned = callback.state_dict()
    run = trainer(tmp_path, [callback])
    if search == "lr_find":
        Tuner(run).lr_find(model, num_training=30)
    else:
        Tuner(run).scale_batch_size(model, init_val=16, max_trials=2, steps_per_trial=3)
    assert models.equal(callback.state_dict(), learned)
    run.fit(model)
    assert steps(callback) == [2 * LENGTH]
    assert callback.events == [LENGTH]


def test_a_search_for_the_batch_size_leaves_the_callback_fresh(tmp_path):
    model, callback = Tunable(), SALCallback()
    run = trainer(tmp_path, [callback])
    assert Tuner(run).scale_batch_size(model, init_val=16, max_trials=2, steps_per_trial=3) > 16
    assert callback.events == []
    run.fit(model)
    assert steps(callback) == [LENGTH]
    assert callback.events == [CHANGE + 3]
