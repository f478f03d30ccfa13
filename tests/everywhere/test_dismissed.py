import pytest
from lightning.pytorch.callbacks import (
    ModelCheckpoint,
)
from torch.utils.data import DataLoader

from sal_lightning import SALCallback, StabilitySpectrum
from tests.everywhere import models
from tests.everywhere.models import CHANGE, At, Net, Resumable, same, steps, trainer

pytestmark = pytest.mark.slow


class Interrupted(models.Batches):
    """One batch of another task in the middle."""

    def __init__(self):
        super().__init__(48, CHANGE)

    def __getitem__(self, i):
        return models.batch(int(i == self.change), i)


def test_a_lone_strange_batch_is_dismissed_in_the_middle_of_a_step(tmp_path):
    model, callback = Net(), SALCallback()
    asked = [At(at, lambda *_: callback.spectrum()) for at in (CHANGE, CHANGE + 1, CHANGE + 2)]
    trainer(tmp_path, [callback, *asked]).fit(model, DataLoader(Interrupted(), batch_size=None))
    assert [a.result.protected > 0 for a in asked] == [False, True, False]
    assert callback.events == []
    assert steps(callback) == [48]


@pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty:UserWarning")
@pytest.mark.parametrize("protection", ["subspace", "element"])
def test_a_suspicion_in_a_checkpoint_is_dismissed_as_without_one(tmp_path, protection):
    def run(callback):
        keep = ModelCheckpoint(tmp_path, "{step}", every_n_train_steps=CHANGE + 1, save_top_k=-1)
        return trainer(tmp_path, [keep, callback], max_epochs=2, enable_checkpointing=True)

    whole, callback = Net(), SALCallback(protection)
    run(callback).fit(whole, Resumable(Interrupted()))
    resumed, again = Net(), SALCallback(protection)
    run(again).fit(resumed, Resumable(Interrupted()), ckpt_path=tmp_path / f"step={CHANGE + 1}.ckpt")
    assert again.events == callback.events == []
    assert again.spectrum() == callback.spectrum() == StabilitySpectrum(0.0, 0.0, 100.0)
    assert same(whole, resumed)
    assert models.equal(again.state_dict(), callback.state_dict())
