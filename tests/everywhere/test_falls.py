import copy
import signal

import pytest
import torch.nn.functional as F

from sal_lightning import SALCallback
from tests.everywhere import models
from tests.everywhere.models import CHANGE, Net, loader, steps, trainer

pytestmark = pytest.mark.slow

FALL = 82  # steps before it: a change was found, and another one would be


class Falls(Net):
    """Fails in the middle of its first fit, never again."""

    def __init__(self, error, where):
        super().__init__()
        self.error, self.where = error, where

    def _fall(self, where):
        if self.error is not None and where == self.where and self.global_step == FALL:
            error, self.error = self.error, None
            raise error

    def training_step(self, batch, batch_idx):
        self._fall("before the forward pass")
        loss = super().training_step(batch, batch_idx)
        self._fall("after the forward pass")
        return loss

    def on_before_zero_grad(self, optimizer):
        self._fall("before the backward pass")

    def on_train_batch_end(self, outputs, batch, batch_idx):
        self._fall("after the step")


@pytest.mark.parametrize(
    ("error", "where"),
    [
        (RuntimeError("fell"), "before the forward pass"),
        (RuntimeError("fell"), "after the forward pass"),
        (RuntimeError("fell"), "before the backward pass"),
        (RuntimeError("fell"), "after the step"),
        (KeyboardInterrupt(), "after the forward pass"),
        (KeyboardInterrupt(), "after the step"),
    ],
    ids=lambda value: value if isinstance(value, str) else type(value).__name__,
)
def test_after_a_fall_the_hooks_are_gone_and_training_goes_on(tmp_path, error, where):
    model, callback = Falls(error, where), SALCallback()
    run, before = trainer(tmp_path, [callback]), signal.getsignal(signal.SIGINT)
    try:
        with pytest.raises((RuntimeError, SystemExit)):
            run.fit(model, loader(FALL + 2, CHANGE))
    finally:
        signal.signal(signal.SIGINT, before)  # Lightning stops listening to it when interrupted
    assert models.hooks(model, run.optimizers) == 0
    fallen = copy.deepcopy(callback.state_dict())
    assert callback.events == [CHANGE + 3]
    x, y = models.batch(2, 0)
    F.mse_loss(model(x), y).backward()
    run.optimizers[0].step()
    assert models.equal(callback.state_dict(), fallen)
    (taken,) = steps(callback)
    assert taken in (FALL, FALL + 1)
    trainer(tmp_path, [callback]).fit(model, loader(length=25, change=10**6, first=2))
    assert steps(callback) == [taken + 25]
    assert len(callback.events) == 2
    assert models.hooks(model, run.optimizers) == 0
