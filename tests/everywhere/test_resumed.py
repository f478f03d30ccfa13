import copy

import pytest
import torch
from lightning.pytorch.callbacks import (
    ModelCheckpoint,
)

from sal_lightning import SALCallback
from tests.everywhere import models
from tests.everywhere.models import At, Net, Resumable, loader, same, steps, trainer

pytestmark = pytest.mark.slow


@pytest.mark.filterwarnings("ignore:Using ModelCheckpoint with manual optimization:UserWarning")
@pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty:UserWarning")
@pytest.mark.parametrize(
    ("kind", "protection", "at"),
    [
        (Net, "subspace", 44),
        (Net, "subspace", 62),
        (Net, "subspace", 70),
        (Net, "element", 62),
        (Net, "tensor", 70),
        (models.Alternating, "subspace", 62),
        (models.Alternating, "element", 70),
    ],
)
def test_resumed_in_mid_epoch_it_ends_where_the_uninterrupted_run_does(tmp_path, kind, protection, at):
    """Before the change, in the middle of the suspicion, and after it."""

    file = 2 * at if kind is models.Alternating else at  # Lightning counts the steps of all optimizers

    def run(callback):
        keep = ModelCheckpoint(tmp_path, "{step}", every_n_train_steps=file, save_top_k=-1)
        return trainer(tmp_path, [keep, callback], max_epochs=2, enable_checkpointing=True)

    whole, callback, data = kind(), SALCallback(protection), Resumable(models.Batches(80))
    run(callback).fit(whole, data)
    resumed, again, rest = kind(), SALCallback(protection), Resumable(models.Batches(80))
    saved = torch.load(tmp_path / f"step={file}.ckpt", weights_only=True)
    assert [layer["step"] for layer in saved["callbacks"]["SALCallback"]["layers"]] == [at] * len(callback.layers)
    for p in resumed.parameters():
        p.data.add_(1)
    run(again).fit(resumed, rest, ckpt_path=tmp_path / f"step={file}.ckpt")
    assert rest.served == [*range(at, 80), *range(80)] == data.served[at:]
    assert steps(again) == [160] * len(callback.layers)
    assert same(whole, resumed)
    assert again.events == callback.events
    assert models.equal(again.state_dict(), callback.state_dict())


def test_resumed_with_another_strength_what_is_held_stays_and_what_comes_is_held_anew(tmp_path):
    # Checkpointed with one consolidation done, and another to come.
    first, make = SALCallback(strength=50.0, consolidate_on=50), lambda s: SALCallback(strength=s, consolidate_on=50)
    run = trainer(tmp_path, [first], max_epochs=1)
    run.fit(Net(), loader(length=60))
    run.save_checkpoint(tmp_path / "first.ckpt")
    held = first.spectrum()
    assert held.protected > 10
    ended, started = {}, {}
    for strength in (50.0, 0.001):
        callback = make(strength)
        asked = At(61, lambda *_, c=callback: c.spectrum())
        options = {"max_epochs": 2}
        trainer(tmp_path, [callback, asked], **options).fit(Net(), loader(length=60), ckpt_path=tmp_path / "first.ckpt")
        assert callback.events == [50, 100]
        started[strength], ended[strength] = asked.result, callback.spectrum()
    assert started[50.0] == started[0.001] == held
    assert ended[50.0].protected >= held.protected
    assert ended[0.001].protected < 0.5 * held.protected


@pytest.mark.parametrize("kind", [Net, models.Alternating])
def test_two_callbacks_are_saved_and_resumed_each_by_its_name(tmp_path, kind):
    def pair():
        return [SALCallback(name="often", consolidate_on=25), SALCallback("element", 40, name="seldom")]

    whole, both = kind(), pair()
    trainer(tmp_path, both, max_epochs=2).fit(whole, loader(length=60, change=30))
    half = pair()
    run = trainer(tmp_path, half)
    run.fit(kind(), loader(length=60, change=30))
    run.save_checkpoint(tmp_path / "half.ckpt")
    saved = torch.load(tmp_path / "half.ckpt", weights_only=True)["callbacks"]
    for callback in half:
        assert models.equal(saved[callback.state_key], callback.state_dict())
    resumed, again = kind(), pair()[::-1]
    trainer(tmp_path, again[::-1], max_epochs=2).fit(
        resumed, loader(length=60, change=30), ckpt_path=tmp_path / "half.ckpt"
    )
    assert sorted(set(again[1].events)) == [25, 50, 75, 100]
    assert sorted(set(again[0].events)) == [40, 80, 120]
    assert same(whole, resumed)
    for one, other in zip(both, again[::-1], strict=True):
        assert models.equal(one.state_dict(), other.state_dict())


def test_a_second_fit_of_the_same_trainer_goes_on(tmp_path):
    model, callback = Net(), SALCallback()
    run = trainer(tmp_path, [callback])
    run.fit(model, loader(length=60, change=10**6))
    run.fit(model, loader(length=60, change=10**6))  # nothing left to do
    assert steps(callback) == [60]
    run.fit_loop.max_epochs = 2
    run.fit(model, loader(length=60, first=1, change=10**6))
    assert steps(callback) == [120]
    assert callback.events == [63]
    assert models.hooks(model, run.optimizers) == 0


def test_testing_a_checkpoint_between_two_fits_does_not_hide_the_second(tmp_path):
    class Tested(Net):
        def test_step(self, batch, batch_idx):
            return super().training_step(batch, batch_idx)

    model, callback = Tested(), SALCallback(consolidate_on="fit")
    run = trainer(tmp_path, [callback])
    run.fit(model, loader(length=30))
    run.save_checkpoint(tmp_path / "end.ckpt")
    learned = copy.deepcopy(callback.state_dict())
    run.test(model, loader(length=3), ckpt_path=tmp_path / "end.ckpt", verbose=False)
    assert models.equal(callback.state_dict(), learned)
    trainer(tmp_path, [callback]).fit(model, loader(length=30))
    assert callback.events == [30]
    assert steps(callback) == [60]


@pytest.mark.filterwarnings("ignore:Using ModelCheckpoint with manual optimization:UserWarning")
@pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty:UserWarning")
@pytest.mark.parametrize("kind", [Net, models.Alternating])
@pytest.mark.parametrize("validated", [False, True])
def test_resumed_from_the_last_step_of_an_epoch_it_ends_where_the_uninterrupted_run_does(tmp_path, kind, validated):
    class Validated(kind):
        def validation_step(self, batch, batch_idx):
            pass

    make = Validated if validated else kind

    def run(callback, length=74):  # not a whole number of rounds after which what moved is put back
        file = 2 * length if kind is models.Alternating else length
        keep = ModelCheckpoint(tmp_path, "{step}", every_n_train_steps=file, save_top_k=-1)
        data = [loader(length=length, change=40), *([loader(length=2)] if validated else [])]
        return trainer(tmp_path, [keep, callback], max_epochs=2, enable_checkpointing=True), data, f"step={file}.ckpt"

    whole, callback, resumed, again = make(), SALCallback(), make(), SALCallback()
    going, data, _ = run(callback)
    going.fit(whole, *data)
    going, data, file = run(again)
    going.fit(resumed, *data, ckpt_path=tmp_path / file)
    assert callback.events
    assert steps(again) == [148] * len(callback.layers)
    assert same(whole, resumed)
    assert models.equal(again.state_dict(), callback.state_dict())
