import copy
import csv
import pickle
from pathlib import Path

import pytest
import torch
from lightning.pytorch.loggers import CSVLogger
from torch import nn

from sal_lightning import SALCallback, StabilitySpectrum
from sal_lightning.report.reading import read
from tests import offline_wandb
from tests.everywhere import models
from tests.everywhere.models import trainer, weights
from tests.sal_lightning.nets import Net, loader

FIELD = ("coherence", "novelty", "resonance", "emergence")
BANDS = ("protected", "neutral", "volatile")
NAMES = {*BANDS, "suppressed", "effect", "drift", *FIELD, "surprise", "consolidations", "step"}


@pytest.mark.slow
@pytest.mark.parametrize("protection", ["subspace", "element", "tensor"])
def test_the_default_callback_detects_the_change_and_protects(tmp_path, protection):
    model, callback = Net(), SALCallback(protection=protection)
    trainer(tmp_path, [callback]).fit(model, loader(length=48))
    total = sum(callback.spectrum())
    assert total == pytest.approx(100)
    assert set(callback.coverage()) == {n for n, _ in model.named_parameters()}
    assert callback.memory()["model"] == 4 * sum(p.numel() for p in model.parameters())
    if protection == "subspace":
        assert callback.events == [43]
        assert callback.spectrum().protected > 0
        assert callback.coverage()["net.3.weight"] == "element"
    assert sum(callback.spectrum("observed")) == pytest.approx(100)


def test_before_the_first_fit_everything_is_volatile():
    callback = SALCallback()
    assert callback.spectrum() == callback.spectrum("observed") == StabilitySpectrum(0.0, 0.0, 100.0)
    assert callback.events == []
    assert callback.coverage() == {}
    assert callback.memory()["ratio"] == 0.0
    with pytest.raises(ValueError, match=r"'held' or 'observed'.*'both'"):
        callback.spectrum("both")


@pytest.mark.slow
def test_without_a_change_training_is_bitwise_unaffected(tmp_path):
    plain, watched = Net(), Net()
    trainer(tmp_path, []).fit(plain, loader(length=48, change=10**6))
    trainer(tmp_path, [SALCallback()]).fit(watched, loader(length=48, change=10**6))
    for a, b in zip(weights(plain), weights(watched), strict=True):
        assert torch.equal(a, b)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("protection", "consolidate_on", "length"),
    [
        ("subspace", "novelty", 44),
        ("subspace", 8, 12),
        ("element", "novelty", 44),
        ("element", "fit", 12),
        ("tensor", 8, 12),
        ("tensor", None, 12),
    ],
)
def test_two_epochs_are_one_saved_and_one_resumed_bit_for_bit(tmp_path, protection, consolidate_on, length):
    make = lambda: SALCallback(protection=protection, consolidate_on=consolidate_on)  # noqa: E731
    whole, first, second, data = Net(), Net(), Net(seed=1), loader(length)
    callbacks = [make(), make(), make()]
    trainer(tmp_path, [callbacks[0]], max_epochs=2).fit(whole, data)
    half = trainer(tmp_path, [callbacks[1]], max_epochs=1)
    half.fit(first, data)
    half.save_checkpoint(tmp_path / "half.ckpt")
    saved = torch.load(tmp_path / "half.ckpt", weights_only=True)
    assert "SALCallback" in saved["callbacks"]
    trainer(tmp_path, [callbacks[2]], max_epochs=2).fit(second, data, ckpt_path=tmp_path / "half.ckpt")
    if (protection, consolidate_on) == ("subspace", "novelty"):
        assert callbacks[1].events == [43]
    for a, b in zip(weights(whole), weights(second), strict=True):
        assert torch.equal(a, b)
    assert callbacks[2].events == callbacks[0].events
    assert callbacks[2].spectrum() == callbacks[0].spectrum()
    assert callbacks[2].spectrum("observed") == callbacks[0].spectrum("observed")


@pytest.mark.slow
def test_a_second_fit_continues_from_the_state_of_the_first(tmp_path):
    model, callback = Net(), SALCallback(consolidate_on="fit")
    for i, task in enumerate((0, 1, 2)):
        trainer(tmp_path, [callback]).fit(model, loader(first=task, length=8, change=10**6))
        assert callback.events == [8, 16][:i]
    assert max(layer.step for layer in callback.layers) == 24


@pytest.mark.slow
def test_a_change_is_detected_across_fits(tmp_path):
    model, callback = Net(), SALCallback()
    for task, length in enumerate((40, 6)):
        trainer(tmp_path, [callback]).fit(model, loader(first=task, length=length, change=10**6))
    assert callback.events == [43]


@pytest.mark.slow
def test_consolidate_and_remember_protect(tmp_path):
    model, callback = Net(), SALCallback(consolidate_on=None)
    trainer(tmp_path, []).fit(model, loader(change=10**6))
    forgetful = copy.deepcopy(model)
    x = torch.cat([models.batch(0, i)[0] for i in range(8)])
    before = model(x).detach()
    callback.remember(model, loader(change=10**6), limit=40)
    assert callback.events == [0]
    assert callback.spectrum().protected > 0
    trainer(tmp_path, [callback]).fit(model, loader(first=1, change=10**6))
    kept = (model(x) - before).norm() / before.norm()
    callback.consolidate()
    assert callback.events == [0, 60]
    trainer(tmp_path, []).fit(forgetful, loader(first=1, change=10**6))
    assert kept < 0.5 * (forgetful(x) - before).norm() / before.norm()


@pytest.mark.slow
def test_values_reach_callback_metrics_without_a_logger(tmp_path):
    callback = SALCallback()
    run = trainer(tmp_path, [callback], log_every_n_steps=10)
    run.fit(Net(), loader(length=50))
    values = {name: run.callback_metrics[f"sal/{name}"].item() for name in NAMES}
    assert sum(values[band] for band in BANDS) == pytest.approx(100)
    assert 0 < values["suppressed"] < 1
    assert 0 < values["effect"] < 1
    assert values["drift"] > 0
    assert values["consolidations"] == 1
    assert values["step"] == 50


@pytest.mark.slow
def test_values_reach_a_csv_file_on_log_steps(tmp_path):
    run = trainer(tmp_path, [SALCallback()], logger=CSVLogger(tmp_path), log_every_n_steps=10)
    run.fit(Net(), loader(length=50))
    with open(Path(run.logger.log_dir) / "metrics.csv") as file:
        rows = [row for row in csv.DictReader(file) if row.get("sal/suppressed")]
    assert [float(row["sal/step"]) for row in rows] == [10, 20, 30, 40, 50]
    assert [float(row["sal/consolidations"]) for row in rows] == [0, 0, 0, 0, 1]
    assert [float(row["sal/suppressed"]) > 0 for row in rows] == [False] * 4 + [True]
    assert all(sum(float(row[f"sal/{band}"]) for band in BANDS) == pytest.approx(100) for row in rows)


@pytest.mark.slow
def test_accumulated_batches_log_each_measured_step_once(tmp_path):
    run = trainer(tmp_path, [SALCallback()], logger=CSVLogger(tmp_path), log_every_n_steps=9, accumulate_grad_batches=3)
    run.fit(Net(), loader(length=135, change=120))
    with open(Path(run.logger.log_dir) / "metrics.csv") as file:
        rows = [row for row in csv.DictReader(file) if row.get("sal/suppressed")]
    assert [float(row["sal/step"]) for row in rows] == list(range(9, 46, 9))
    assert [float(row["sal/consolidations"]) for row in rows] == [0] * 4 + [1]


def test_an_epoch_shorter_than_log_every_n_steps_is_logged_at_its_end(tmp_path):
    run = trainer(tmp_path, [SALCallback()], log_every_n_steps=50)
    run.fit(Net(), loader(length=7))
    assert run.callback_metrics["sal/step"] == 7


@pytest.mark.slow
def test_values_reach_weights_and_biases_offline(tmp_path, monkeypatch):
    wandb = pytest.importorskip("wandb")
    from lightning.pytorch.loggers import WandbLogger

    for name in ("WANDB_MODE", "WANDB_DATA_DIR", "WANDB_CACHE_DIR", "WANDB_CONFIG_DIR"):
        monkeypatch.setenv(name, str(tmp_path / name))  # Lightning sets the first; restored afterwards
    monkeypatch.setenv("WANDB_MODE", "offline")
    logger = WandbLogger(offline=True, save_dir=tmp_path, settings=wandb.Settings(silent=True, console="off"))
    trainer(tmp_path, [SALCallback()], logger=logger, log_every_n_steps=15).fit(Net(), loader(length=45))
    wandb.finish()
    wandb.teardown()
    rows = offline_wandb.history(tmp_path)
    seen = {key.removeprefix("sal/") for row in rows for key in row if key.startswith("sal/")}
    assert seen >= NAMES
    assert not [key for key in seen if key.endswith(("_step", "_epoch")) or key.startswith(("layers/", "stability/"))]
    steps = [row["sal/step"] for row in rows if "sal/suppressed" in row]
    assert steps == [15, 30, 45]


def test_two_optimizers_have_a_layer_each(tmp_path):
    model, callback = models.Alternating(), SALCallback()
    trainer(tmp_path, [callback]).fit(model, loader(length=10))
    assert [len(layer.coverage()) for layer in callback.layers] == [2, 2]
    assert set(callback.coverage()) == {n for n, _ in model.named_parameters()}


def test_a_model_with_nothing_to_train_is_refused(tmp_path):
    class Frozen(Net):
        def configure_optimizers(self):
            self.requires_grad_(False)
            return torch.optim.Adam([nn.Parameter(torch.zeros(1))])

        def training_step(self, batch, batch_idx):
            return torch.zeros((), requires_grad=True)

    with pytest.raises(ValueError, match="require a gradient"):
        trainer(tmp_path, [SALCallback()]).fit(Frozen(), loader())


def test_hooks_are_gone_after_fit_and_after_an_exception(tmp_path):
    class Falls(Net):
        def training_step(self, batch, batch_idx):
            if batch_idx == 3:
                raise RuntimeError("fell")
            return super().training_step(batch, batch_idx)

    for model in (Net(), Falls()):
        run = trainer(tmp_path, [SALCallback()])
        if isinstance(model, Falls):
            with pytest.raises(RuntimeError, match="fell"):
                run.fit(model, loader(length=10))
        else:
            run.fit(model, loader(length=10))
        assert not any(m._forward_pre_hooks for m in model.modules())
        assert not any(o._optimizer_step_post_hooks for o in run.optimizers)


@pytest.mark.slow
def test_copies_carry_the_state_and_not_the_model(tmp_path):
    model, callback = Net(), SALCallback()
    trainer(tmp_path, [callback]).fit(model, loader(length=40))
    copies = [copy.deepcopy(callback), pickle.loads(pickle.dumps(callback))]
    assert [copied.layers for copied in copies] == [[], []]
    for c in (callback, *copies):
        again = copy.deepcopy(model)
        trainer(tmp_path, [c]).fit(again, loader(first=1, length=6, change=10**6))
        assert c.events == [43]


def test_two_callbacks_need_two_names(tmp_path):
    run = trainer(tmp_path, [SALCallback(name="a"), SALCallback(name="b", consolidate_on=None)])
    run.fit(Net(), loader(length=20))
    run.save_checkpoint(tmp_path / "both.ckpt")
    saved = torch.load(tmp_path / "both.ckpt", weights_only=True)["callbacks"]
    assert {"SALCallback[a]", "SALCallback[b]"} <= set(saved)


@pytest.mark.slow
def test_a_callback_with_a_name_logs_under_it_beside_one_without(tmp_path):
    callbacks = [SALCallback(), SALCallback(name="clock", consolidate_on=20)]
    run = trainer(tmp_path, callbacks, logger=CSVLogger(tmp_path, name="", version="run"), log_every_n_steps=15)
    run.fit(Net(), loader(length=45))
    assert {f"sal/{prefix}{name}" for prefix in ("", "clock/") for name in NAMES} <= set(run.callback_metrics)
    assert (run.callback_metrics["sal/consolidations"], run.callback_metrics["sal/clock/consolidations"]) == (1, 2)
    plain, clock = (read([tmp_path / "run"], name) for name in ("", "clock"))
    assert (plain.events, clock.events) == ([43], [20, 40])
    assert clock.series["consolidations"] == ([15, 30, 45], [0, 1, 2])
    assert sorted(clock.layers()) == sorted(plain.layers()) == ["element", "net.0", "net.2", "net.4"]


@pytest.mark.parametrize("name", ["observed", "layers"])
def test_a_name_that_is_a_log_prefix_in_use_is_refused(name):
    with pytest.raises(ValueError, match=f"name to be none of .* got '{name}'"):
        SALCallback(name=name)
