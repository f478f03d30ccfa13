import copy
from functools import cache

import pytest
import torch
from lightning.pytorch.callbacks import (
    ModelCheckpoint,
)

from sal_lightning import SALCallback
from tests.everywhere import models
from tests.everywhere.models import CHANGE, At, Net, Resumable, loader, same, steps, trainer

pytestmark = pytest.mark.slow

LENGTH = 50  # batches of an epoch


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    """Of a kind of training, once: its model, callback and data at the end, its trainer, and its checkpoints."""

    @cache
    def train(kind, protection):
        folder = tmp_path_factory.mktemp("whole")
        every = 12 if kind is models.Alternating else 6  # Lightning counts the steps of all optimizers

        def run(callback):
            keep = ModelCheckpoint(folder, "{step}", every_n_train_steps=every, save_top_k=-1)
            return trainer(folder, [keep, callback], max_epochs=2, enable_checkpointing=True)

        whole, callback, data = kind(), SALCallback(protection), Resumable(models.Batches(LENGTH, CHANGE))
        run(callback).fit(whole, data)
        return (whole, callback, data), run, folder

    return train


@pytest.mark.filterwarnings("ignore:Using ModelCheckpoint with manual optimization:UserWarning")
@pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty:UserWarning")
@pytest.mark.parametrize(
    ("kind", "protection", "at"),
    [
        (Net, "subspace", 30),
        (Net, "subspace", 42),
        (Net, "subspace", 48),
        (Net, "element", 42),
        (Net, "tensor", 48),
        (models.Alternating, "subspace", 42),
        (models.Alternating, "element", 48),
    ],
)
def test_resumed_in_mid_epoch_it_ends_where_the_uninterrupted_run_does(uninterrupted, kind, protection, at):
    """Before the change, in the middle of the suspicion, and after it."""
    (whole, callback, data), run, folder = uninterrupted(kind, protection)
    resumed, again, rest = kind(), SALCallback(protection), Resumable(models.Batches(LENGTH, CHANGE))
    saved = torch.load(file := folder / f"step={at * len(callback.layers)}.ckpt", weights_only=True)
    assert [layer["step"] for layer in saved["callbacks"]["SALCallback"]["layers"]] == [at] * len(callback.layers)
    for p in resumed.parameters():
        p.data.add_(1)
    run(again).fit(resumed, rest, ckpt_path=file)
    assert rest.served == [*range(at, LENGTH), *range(LENGTH)] == data.served[at:]
    assert steps(again) == [2 * LENGTH] * len(callback.layers)
    assert same(whole, resumed)
    assert again.events == callback.events
    assert models.equal(again.state_dict(), callback.state_dict())


def test_resumed_with_another_strength_what_is_held_stays_and_what_comes_is_held_anew(tmp_path):
    # Checkpointed with one consolidation done, and another to come.
    first, make = SALCallback(strength=50.0, consolidate_on=25), lambda s: SALCallback(strength=s, consolidate_on=25)
    run = trainer(tmp_path, [first], max_epochs=1)
    run.fit(Net(), loader(length=30))
    run.save_checkpoint(tmp_path / "first.ckpt")
    held = first.spectrum()
    assert held.protected > 10
    ended, started = {}, {}
    for strength in (50.0, 0.001):
        callback = make(strength)
        asked = At(31, lambda *_, c=callback: c.spectrum())
        options = {"max_epochs": 2}
        trainer(tmp_path, [callback, asked], **options).fit(Net(), loader(length=30), ckpt_path=tmp_path / "first.ckpt")
        assert callback.events == [25, 50]
        started[strength], ended[strength] = asked.result, callback.spectrum()
    assert started[50.0] == started[0.001] == held
    assert ended[50.0].protected >= held.protected
    assert ended[0.001].protected < 0.5 * held.protected


@pytest.mark.parametrize("kind", [Net, models.Alternating])
def test_two_callbacks_are_saved_and_resumed_each_by_its_name(tmp_path, kind):
    def pair():
        return [SALCallback(name="often", consolidate_on=7), SALCallback("element", 9, name="seldom")]

    whole, both = kind(), pair()
    trainer(tmp_path, both, max_epochs=2).fit(whole, loader(length=15, change=8))
    half = pair()
    run = trainer(tmp_path, half)
    run.fit(kind(), loader(length=15, change=8))
    run.save_checkpoint(tmp_path / "half.ckpt")
    saved = torch.load(tmp_path / "half.ckpt", weights_only=True)["callbacks"]
    for callback in half:
        assert models.equal(saved[callback.state_key], callback.state_dict())
    resumed, again = kind(), pair()[::-1]
    trainer(tmp_path, again[::-1], max_epochs=2).fit(
        resumed, loader(length=15, change=8), ckpt_path=tmp_path / "half.ckpt"
    )
    assert sorted(set(again[1].events)) == [7, 14, 21, 28]
    assert sorted(set(again[0].events)) == [9, 18, 27]
    assert same(whole, resumed)
    for one, other in zip(both, again[::-1], strict=True):
        assert models.equal(one.state_dict(), other.state_dict())


def test_a_second_fit_of_the_same_trainer_goes_on(tmp_path):
    model, callback = Net(), SALCallback()
    run = trainer(tmp_path, [callback])
    run.fit(model, loader(length=CHANGE, change=10**6))
    run.fit(model, loader(length=CHANGE, change=10**6))  # nothing left to do
    assert steps(callback) == [CHANGE]
    run.fit_loop.max_epochs = 2
    run.fit(model, loader(length=CHANGE, first=1, change=10**6))
    assert steps(callback) == [2 * CHANGE]
    assert callback.events == [CHANGE + 3]
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
@pytest.mark.parametrize(("kind", "validated"), [(Net, False), (Net, True), (models.Alternating, True)])
def test_resumed_from_the_last_step_of_an_epoch_it_ends_where_the_uninterrupted_run_does(tmp_path, kind, validated):
    class Validated(kind):
        def validation_step(self, batch, batch_idx):
            pass

    make = Validated if validated else kind

    length = 45  # not a whole number of rounds after which what moved is put back
    number = 2 * length if kind is models.Alternating else length

    def run(callback):
        keep = ModelCheckpoint(tmp_path, "{step}", every_n_train_steps=number, save_top_k=-1)
        data = [loader(length, CHANGE), *([loader(length=2)] if validated else [])]
        return trainer(tmp_path, [keep, callback], max_epochs=2, enable_checkpointing=True), data

    whole, callback, resumed, again = make(), SALCallback(), make(), SALCallback()
    going, data = run(callback)
    going.fit(whole, *data)
    going, data = run(again)
    going.fit(resumed, *data, ckpt_path=tmp_path / f"step={number}.ckpt")
    assert callback.events
    assert steps(again) == [2 * length] * len(callback.layers)
    assert same(whole, resumed)
    assert models.equal(again.state_dict(), callback.state_dict())
