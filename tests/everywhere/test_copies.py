import copy
import pickle

import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch import Callback

from sal_lightning import SALCallback
from tests.everywhere import models
from tests.everywhere.models import CHANGE, LENGTH, At, Net, loader, reference, same, steps, trainer

pytestmark = pytest.mark.slow

COPIES = {"deepcopy": copy.deepcopy, "pickle": lambda callback: pickle.loads(pickle.dumps(callback))}


@pytest.mark.parametrize("way", COPIES)
def test_a_copy_made_before_training_trains_the_same(tmp_path, way):
    model, callback = Net(), COPIES[way](SALCallback("element", 15, 2.0, 0.1, 0.9, "other"))
    assert callback.state_key == SALCallback(name="other").state_key
    trainer(tmp_path, [callback]).fit(model, loader(length=30))
    again = Net()
    trainer(tmp_path, [SALCallback("element", 15, 2.0, 0.1, 0.9, "other")]).fit(again, loader(length=30))
    assert callback.events == [15, 30]
    assert same(model, again)


@pytest.mark.parametrize("way", COPIES)
def test_a_copy_made_in_or_after_training_carries_all_that_was_learned_then(tmp_path, way):
    """Before the change, in the middle of the suspicion, after it, and at the end."""
    model, callback = Net(), SALCallback()

    def make(*_):
        return COPIES[way](callback), copy.deepcopy(callback.state_dict())

    asked = [At(at, make) for at in (20, CHANGE + 1, 47)]
    trainer(tmp_path, [callback, *asked]).fit(model, loader(LENGTH, CHANGE))
    assert same(model, reference(LENGTH, CHANGE)[0])
    copies = {at.steps: at.result for at in asked} | {LENGTH: make()}
    for taken, (copied, state) in copies.items():
        assert copied.layers == []
        assert models.equal(copied.state_dict(), state)
        assert copied.state_dict()
        trainer(tmp_path, [copied]).fit(copy.deepcopy(model), loader(length=10))
        assert steps(copied) == [taken + 10]


def test_a_copy_of_the_model_made_in_training_is_neither_observed_nor_protected(tmp_path):
    """A teacher, say: trained on other data beside the student, it is neither watched nor protected."""

    class Teacher(Callback):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            if trainer.global_step == 20:
                self.model = copy.deepcopy(pl_module.net)
            if trainer.global_step > 20:
                with torch.enable_grad():
                    x, y = models.batch(2, batch_idx)
                    F.mse_loss(self.model(x), y).backward()

    model, callback = Net(), SALCallback()
    trainer(tmp_path, [callback, Teacher()]).fit(model, loader(LENGTH, CHANGE))
    plain, expected, _ = reference(LENGTH, CHANGE)
    assert callback.events == [CHANGE + 3]
    assert same(model, plain)
    assert models.equal(callback.state_dict(), expected.state_dict())
