import copy
import csv
import pickle
import signal
from pathlib import Path

import lightning as L
import pytest
import pytorch_lightning
import torch
import torch.nn.functional as F
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import (
    EMAWeightAveraging,
    LearningRateMonitor,
    ModelCheckpoint,
    RichProgressBar,
    TQDMProgressBar,
    WeightAveraging,
)
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.tuner import Tuner
from torch.utils.data import DataLoader

from sal_lightning import SALCallback, StabilitySpectrum
from tests.everywhere import models
from tests.everywhere.models import At, Net, loader, same, trainer

FIELD = ("coherence", "novelty", "resonance", "emergence")
HELD = ("protected", "neutral", "volatile", "suppressed", "effect", "drift")
NAMES = {*HELD, *FIELD, "surprise", "consolidations", "step"}


def steps(callback):
    return [layer.step for layer in callback.layers]


def reference(folder):
    """What training with the callback and nothing else comes to."""
    model, callback = Net(), SALCallback()
    trainer(folder, [callback]).fit(model, loader())
    return model, callback


class Resumable:
    """Batches in order, and where the next one is: as Lightning asks it of a loader that resumes in mid-epoch."""

    def __init__(self, batches):
        self.batches, self.next, self.served = batches, 0, []

    def __len__(self):
        return len(self.batches)

    def __iter__(self):
        if self.next == len(self):
            self.next = 0
        while self.next < len(self):
            i, self.next = self.next, self.next + 1
            self.served.append(i)
            yield self.batches[i]

    def state_dict(self):
        return {"next": self.next}

    def load_state_dict(self, state):
        self.next = state["next"]


# --- averages of the weights ---


@pytest.mark.parametrize("validated", [False, True])
@pytest.mark.parametrize("kind", ["mean", "exponential"])
def test_averages_are_those_of_the_protected_weights_in_either_order(tmp_path, kind, validated):
    average = WeightAveraging if kind == "mean" else lambda: EMAWeightAveraging(decay=0.9)
    trail = models.Trail()
    trainer(tmp_path, [SALCallback(), trail]).fit(Net(), loader())
    expected = trail.weights[0]
    for n, now in enumerate(trail.weights[1:], start=1):
        share = 1 / (n + 1) if kind == "mean" else 0.1
        expected = [a + share * (w - a) for a, w in zip(expected, now, strict=True)]

    class Validated(Net):
        def validation_step(self, batch, batch_idx):
            return super().training_step(batch, batch_idx)

    results = []
    for first in (True, False):
        model, callback = Validated() if validated else Net(), SALCallback()
        both = [callback, average()] if first else [average(), callback]
        run = trainer(tmp_path, both, val_check_interval=40, num_sanity_val_steps=2)
        run.fit(model, loader(), loader(length=3, first=1) if validated else None)
        assert callback.events == [63]
        assert all(torch.allclose(p, e, atol=1e-5) for p, e in zip(model.parameters(), expected, strict=True))
        results.append(model)
    assert same(*results)


# --- a change that was none ---


class Interrupted(models.Batches):
    """One batch of another task in the middle."""

    def __getitem__(self, i):
        return models.batch(int(i == self.change), i)


def test_a_lone_strange_batch_is_dismissed_in_the_middle_of_a_step(tmp_path):
    model, callback = Net(), SALCallback()
    asked = [At(at, lambda *_: callback.spectrum()) for at in (60, 61, 62)]
    trainer(tmp_path, [callback, *asked]).fit(model, DataLoader(Interrupted(), batch_size=None))
    assert [a.result.protected > 0 for a in asked] == [False, True, False]
    assert callback.events == []
    assert steps(callback) == [120]


@pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty:UserWarning")
@pytest.mark.parametrize("protection", ["subspace", "element"])
def test_a_suspicion_in_a_checkpoint_is_dismissed_as_without_one(tmp_path, protection):
    def run(callback):
        keep = ModelCheckpoint(tmp_path, "{step}", every_n_train_steps=61, save_top_k=-1)
        return trainer(tmp_path, [keep, callback], max_epochs=2, enable_checkpointing=True)

    whole, callback = Net(), SALCallback(protection)
    run(callback).fit(whole, Resumable(Interrupted()))
    resumed, again = Net(), SALCallback(protection)
    run(again).fit(resumed, Resumable(Interrupted()), ckpt_path=tmp_path / "step=61.ckpt")
    assert again.events == callback.events == []
    assert again.spectrum() == callback.spectrum() == StabilitySpectrum(0.0, 0.0, 100.0)
    assert same(whole, resumed)
    assert models.equal(again.state_dict(), callback.state_dict())


# --- searches before training ---


class Tunable(Net):
    """Has what the tuner looks for: a learning rate and a batch size."""

    def __init__(self):
        super().__init__()
        self.lr, self.batch_size = 5e-3, 16

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=self.lr)

    def train_dataloader(self):
        x, y = zip(*(models.batch(int(i >= 60), i, self.batch_size) for i in range(120)), strict=True)
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
        assert steps(callback) == [120]
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
    assert steps(callback) == [240]
    assert callback.events == [120]


def test_a_search_for_the_batch_size_leaves_the_callback_fresh(tmp_path):
    model, callback = Tunable(), SALCallback()
    run = trainer(tmp_path, [callback])
    assert Tuner(run).scale_batch_size(model, init_val=16, max_trials=2, steps_per_trial=3) > 16
    assert callback.events == []
    run.fit(model)
    assert steps(callback) == [120]
    assert callback.events == [63]


# --- unusual ways to run ---


def test_a_fast_development_run_watches_one_step(tmp_path):
    callback = SALCallback()
    trainer(tmp_path, [callback], fast_dev_run=True).fit(Net(), loader())
    assert steps(callback) == [1]


def test_a_barebones_run_protects_the_same_and_logs_nothing(tmp_path):
    model, callback = Net(), SALCallback()
    run = L.Trainer(barebones=True, accelerator="cpu", max_epochs=1, default_root_dir=tmp_path, callbacks=[callback])
    run.fit(model, loader())
    assert callback.events == [63]
    assert run.callback_metrics == {}
    assert same(model, reference(tmp_path)[0])


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
    run = trainer(tmp_path, [callback], val_check_interval=10, num_sanity_val_steps=2, inference_mode=False)
    run.fit(model, loader(), loader(length=5, first=1))
    plain, expected = reference(tmp_path)
    assert model.validated == 2 + 12 * 5
    assert steps(callback) == [120]
    assert callback.events == [63]
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
    trainer(tmp_path, [callback]).fit(model, loader(), loader(length=2))
    learned, weights, bands = copy.deepcopy(callback.state_dict()), copy.deepcopy(model), callback.spectrum()
    getattr(run, way)(model, loader(length=5, first=2), **options)
    assert models.equal(callback.state_dict(), learned)
    assert callback.spectrum() == bands
    assert same(model, weights)
    assert models.hooks(model, run.optimizers) == 0


@pytest.mark.parametrize(("options", "taken"), [({"limit_train_batches": 7}, 14), ({"max_steps": 9}, 9)])
def test_limits_are_counted_as_what_they_left(tmp_path, options, taken):
    callback = SALCallback(consolidate_on=4)
    run = trainer(tmp_path, [callback], max_epochs=2, log_every_n_steps=1, **options)
    run.fit(Net(), loader(length=20))
    assert steps(callback) == [taken]
    assert callback.events == list(range(4, taken + 1, 4))
    assert run.callback_metrics["sal/step"] == taken


# --- falls and interruptions ---


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


# --- copies ---

COPIES = {"deepcopy": copy.deepcopy, "pickle": lambda callback: pickle.loads(pickle.dumps(callback))}


@pytest.mark.parametrize("way", COPIES)
def test_a_copy_made_before_training_trains_the_same(tmp_path, way):
    model, callback = Net(), COPIES[way](SALCallback("element", 30, 2.0, 0.1, 0.9, "other"))
    assert callback.state_key == SALCallback(name="other").state_key
    trainer(tmp_path, [callback]).fit(model, loader(length=60))
    again = Net()
    trainer(tmp_path, [SALCallback("element", 30, 2.0, 0.1, 0.9, "other")]).fit(again, loader(length=60))
    assert callback.events == [30, 60]
    assert same(model, again)


@pytest.mark.parametrize("at", [30, 61, 90, "end"])
@pytest.mark.parametrize("way", COPIES)
def test_a_copy_made_in_or_after_training_carries_all_that_was_learned_then(tmp_path, way, at):
    model, callback = Net(), SALCallback()

    def make(*_):
        return COPIES[way](callback), copy.deepcopy(callback.state_dict())

    asked = At(at, make)
    trainer(tmp_path, [callback, asked]).fit(model, loader())
    copied, state = make() if at == "end" else asked.result
    assert copied.layers == []
    assert models.equal(copied.state_dict(), state)
    assert copied.state_dict()
    assert same(model, reference(tmp_path)[0])
    taken = 120 if at == "end" else at
    trainer(tmp_path, [copied]).fit(copy.deepcopy(model), loader(length=10))
    assert steps(copied) == [taken + 10]


def test_a_copy_of_the_model_made_in_training_is_nobodys_business(tmp_path):
    """A teacher, say: trained on other data beside the student, it is neither watched nor protected."""

    class Teacher(Callback):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            if trainer.global_step == 30:
                self.model = copy.deepcopy(pl_module.net)
            if trainer.global_step > 30:
                with torch.enable_grad():
                    x, y = models.batch(2, batch_idx)
                    F.mse_loss(self.model(x), y).backward()

    model, callback = Net(), SALCallback()
    trainer(tmp_path, [callback, Teacher()]).fit(model, loader())
    plain, expected = reference(tmp_path)
    assert callback.events == [63]
    assert same(model, plain)
    assert models.equal(callback.state_dict(), expected.state_dict())


# --- checkpoints ---


@pytest.mark.filterwarnings("ignore:Using ModelCheckpoint with manual optimization:UserWarning")
@pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty:UserWarning")
@pytest.mark.parametrize(
    ("kind", "protection", "at"),
    [
        (Net, "subspace", 44),
        (Net, "subspace", 62),
        (Net, "subspace", 100),
        (Net, "element", 62),
        (Net, "tensor", 100),
        (models.Alternating, "subspace", 62),
        (models.Alternating, "element", 100),
    ],
)
def test_resumed_in_mid_epoch_it_ends_where_the_uninterrupted_run_does(tmp_path, kind, protection, at):
    """Before the change, in the middle of the suspicion, and after it."""

    file = 2 * at if kind is models.Alternating else at  # Lightning counts the steps of all optimizers

    def run(callback):
        keep = ModelCheckpoint(tmp_path, "{step}", every_n_train_steps=file, save_top_k=-1)
        return trainer(tmp_path, [keep, callback], max_epochs=2, enable_checkpointing=True)

    whole, callback, data = kind(), SALCallback(protection), Resumable(models.Batches())
    run(callback).fit(whole, data)
    resumed, again, rest = kind(), SALCallback(protection), Resumable(models.Batches())
    saved = torch.load(tmp_path / f"step={file}.ckpt", weights_only=True)
    assert [layer["step"] for layer in saved["callbacks"]["SALCallback"]["layers"]] == [at] * len(callback.layers)
    for p in resumed.parameters():
        p.data.add_(1)
    run(again).fit(resumed, rest, ckpt_path=tmp_path / f"step={file}.ckpt")
    assert rest.served == [*range(at, 120), *range(120)] == data.served[at:]
    assert steps(again) == [240] * len(callback.layers)
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


# --- both names of Lightning ---


class OldNet(models._Steps, pytorch_lightning.LightningModule):
    """The same under the package's older name."""


def test_both_lightnings_train_the_same_weights(tmp_path):
    plain, expected = reference(tmp_path)
    model, callback = OldNet(), SALCallback()
    trainer(tmp_path, [callback], pytorch_lightning.Trainer).fit(model, loader())
    assert callback.events == expected.events == [63]
    assert same(model, plain)
    assert models.equal(callback.state_dict(), expected.state_dict())


@pytest.mark.parametrize(("package", "net"), [(L.pytorch, Net), (pytorch_lightning, OldNet)], ids=["new", "old"])
def test_both_lightnings_loggers_get_the_values(tmp_path, package, net):
    logger = package.loggers.CSVLogger(tmp_path)
    run = trainer(tmp_path, [SALCallback()], package.Trainer, logger=logger, log_every_n_steps=20)
    run.fit(net(), loader())
    with open(Path(logger.log_dir) / "metrics.csv") as file:
        rows = [row for row in csv.DictReader(file) if row.get("sal/step_step")]
    assert [float(row["sal/step_step"]) for row in rows] == [20, 40, 60, 80, 100, 120]
    assert all(row[f"sal/{name}_step"] for row in rows for name in NAMES)


def test_the_older_lightning_resumes_exactly_too(tmp_path):
    whole, callback = OldNet(), SALCallback(consolidate_on=25)
    trainer(tmp_path, [callback], pytorch_lightning.Trainer, max_epochs=2).fit(whole, loader(length=40))
    run = trainer(tmp_path, [SALCallback(consolidate_on=25)], pytorch_lightning.Trainer)
    run.fit(OldNet(), loader(length=40))
    run.save_checkpoint(tmp_path / "half.ckpt")
    resumed, again = OldNet(), SALCallback(consolidate_on=25)
    last = trainer(tmp_path, [again], pytorch_lightning.Trainer, max_epochs=2)
    last.fit(resumed, loader(length=40), ckpt_path=tmp_path / "half.ckpt")
    assert again.events == callback.events == [25, 50, 75]
    assert same(whole, resumed)


# --- company ---


class Scheduled(Net):
    def configure_optimizers(self):
        optimizer = torch.optim.Adam(self.parameters(), lr=5e-3)
        scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 30, gamma=0.5)
        return [optimizer], [{"scheduler": scheduler, "interval": "step"}]


@pytest.mark.filterwarnings("ignore:.*does not have many workers")
@pytest.mark.parametrize("bar", [RichProgressBar, TQDMProgressBar])
def test_progress_bars_and_a_learning_rate_monitor_change_nothing(tmp_path, capsys, bar):
    results = []
    for company in (False, True):
        model, callback, logger = Scheduled(), SALCallback(), CSVLogger(tmp_path, version=int(company))
        others = [LearningRateMonitor("step"), bar()] if company else []
        options = {"logger": logger, "log_every_n_steps": 20, "enable_progress_bar": company}
        trainer(tmp_path, [*others, callback], **options).fit(model, loader())
        with open(Path(logger.log_dir) / "metrics.csv") as file:
            rows = list(csv.DictReader(file))
        results.append((model, [row["sal/step_step"] for row in rows if row.get("sal/step_step")]))
    rates = [float(row["lr-Adam"]) for row in rows if row.get("lr-Adam")]
    assert rates == pytest.approx([5e-3, 2.5e-3, 2.5e-3, 1.25e-3, 6.25e-4, 6.25e-4])
    assert same(results[0][0], results[1][0])
    assert results[0][1] == results[1][1]
    assert len(results[1][1]) == 6
    assert "120/120" in capsys.readouterr().out
