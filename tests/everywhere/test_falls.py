import copy
import signal

import pytest
import torch.nn.functional as F

from sal_lightning import SALCallback
from tests.everywhere import models
from tests.everywhere.models import Net, loader, steps, trainer

pytestmark = pytest.mark.slow


class Falls(Net):
    """Fails in the middle of its first fit, never again."""

    def __init__(self, error, where):
        super().__init__()
        self.error, self.where = error, where

    def _fall(self, where):
        if self.error is not None and where == self.where and self.global_step == 100:
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
    "where", ["before the forward pass", "after the forward pass", "before the backward pass", "after the step"]
)
@pytest.mark.parametrize("error", [RuntimeError("fell"), KeyboardInterrupt()], ids=["exception", "interrupt"])
def test_after_a_fall_the_hooks_are_gone_and_training_goes_on(tmp_path, error, where):
    model, callback = Falls(error, where), SALCallback()
    run, before = trainer(tmp_path, [callback]), signal.getsignal(signal.SIGINT)
    try:
        with pytest.raises((RuntimeError, SystemExit)):
            run.fit(model, loader())
    finally:
        signal.signal(signal.SIGINT, before)  # Lightning stops listening to it when interrupted
    assert models.hooks(model, run.optimizers) == 0
    fallen = copy.deepcopy(callback.state_dict())
    assert callback.events == [63]
    x, y = models.batch(2, 0)
    F.mse_loss(model(x), y).backward()
    run.optimizers[0].step()
    assert models.equal(callback.state_dict(), fallen)
    (taken,) = steps(callback)
    assert taken in (100, 101)
    trainer(tmp_path, [callback]).fit(model, loader(length=60, change=10**6, first=2))
    assert steps(callback) == [taken + 60]
    assert len(callback.events) == 2
    assert models.hooks(model, run.optimizers) == 0
