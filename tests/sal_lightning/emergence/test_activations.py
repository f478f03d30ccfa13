import lightning as L
import pytest
import torch
from lightning.pytorch.loggers import CSVLogger
from torch import nn
from torch.utils.checkpoint import checkpoint

from sal_lightning import EmergenceField, SALCallback
from sal_lightning.emergence.activations import DENSE, EVERY, ROWS, ActivationObserver
from sal_lightning.emergence.mean_shift import MeanShift
from sal_lightning.layers import find_layer
from tests.everywhere.models import loader, trainer, weights
from tests.sal_lightning.nets import Net


class Attentive(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.Linear(4, 4)
        self.attention = nn.MultiheadAttention(4, 2)


def pattern(axis, d=12):
    return torch.eye(d)[[axis] * 4] + 0.01 * torch.randn(4, d, generator=torch.Generator().manual_seed(axis))


class Expected:
    """What a field and a mean shift of their own make of states."""

    def __init__(self):
        self.field, self.shift = EmergenceField(), MeanShift()

    def observe(self, x):
        new = float(self.shift.measure(x))
        self.shift.update(x)
        seen = self.field.observe(x)
        return seen._replace(novelty=new, emergence=self.field.detect_emergence(seen.coherence, new))


def watching(layer, name="auto"):
    watch = ActivationObserver(name)
    watch.begin(layer)
    return watch


def test_the_last_linear_is_watched_unless_another_layer_is_named():
    net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Linear(4, 4), nn.Linear(4, 2), nn.ReLU())
    assert find_layer(net, "auto", "field") is net[2]
    assert find_layer(net, "0", "field") is net[0]
    assert find_layer(nn.Sequential(nn.Conv2d(1, 2, 3)), "auto", "field") is None
    attentive = Attentive()
    assert find_layer(attentive, "auto", "field") is attentive.first  # the attention's own projection is never called
    named = nn.ModuleDict({"auto": nn.ReLU(), "last": nn.Linear(2, 2)})
    assert find_layer(named, "auto", "field") is named["auto"]


def test_an_unknown_name_is_answered_with_the_nearest(tmp_path):
    with pytest.raises(ValueError, match=r"field to be the name of a layer.*got 'net\.6'\. Nearest are \['net\.\d"):
        trainer(tmp_path, [SALCallback(field="net.6")]).fit(Net(), loader())
    assert SALCallback(field="net.6").events == []
    for name in ("", 3):
        with pytest.raises(ValueError, match="field to be the name of a layer, 'auto' or None, got"):
            SALCallback(field=name)


def test_it_observes_what_the_layer_is_given_in_training_and_nothing_else():
    layer, alone = nn.Linear(12, 2), Expected()
    watch = watching(layer)
    layer.eval()(pattern(5))
    watch.update_field(measure=True)
    assert watch.seen is None
    layer.train()
    for axis in (0, 0, 1):
        layer(pattern(axis)).sum().backward()
        watch.update_field(measure=True)
        assert watch.seen.tolist() == list(alone.observe(pattern(axis)))
    watch.end()
    layer(pattern(0))
    watch.update_field(measure=True)
    assert watch.seen is None
    assert torch.equal(watch.field.window.Y, alone.field.window.Y)


def test_measuring_does_not_change_the_field():
    layer = nn.Linear(12, 2)
    often, never = watching(layer), watching(layer)
    for step in range(40):
        layer(pattern(step % 3))
        often.update_field(measure=True)
        never.update_field(measure=False)
        assert never.seen is None
    assert torch.equal(often.field.window.Y, never.field.window.Y)


def test_after_the_first_steps_one_step_enters_the_field_with_the_weight_of_several():
    layer, watch = nn.Linear(12, 2), ActivationObserver("auto")
    watch.begin(layer)
    for _ in range(16 + 10 * EVERY):
        layer(pattern(0))
        watch.update_field(measure=False)
    assert watch.field.window.weight.item() == pytest.approx(1 - 0.99 ** (16 + 10 * EVERY), rel=1e-4)


def test_rows_are_copied_only_for_steps_that_enter_the_field_or_are_measured():
    layer = nn.Linear(12, 2)
    eager, sparing = watching(layer), watching(layer)
    for step in range(60):
        sparing.wanted = step % 7 == 0
        layer(pattern(step % 3))
        assert bool(sparing._rows) == (step < DENSE or step % EVERY == 0 or step % 7 == 0)
        eager.update_field(measure=sparing.wanted)
        sparing.update_field(measure=sparing.wanted)
        assert (eager.seen is None) == (sparing.seen is None) == (not sparing.wanted)
        assert eager.seen is None or torch.equal(eager.seen, sparing.seen)
    assert torch.equal(eager.field.window.Y, sparing.field.window.Y)
    sparing.wanted = False
    sparing.begin(narrow := nn.Linear(5, 2))
    narrow(torch.ones(2, 5))
    sparing.update_field(measure=False)
    assert sparing.field.window.d == 5  # another network is met at once


@pytest.mark.parametrize("reentrant", [False, True])
def test_layers_run_again_by_checkpointing_are_read_once(reentrant):
    layer = nn.Linear(12, 2)
    watch, alone = watching(layer), watching(nn.Identity())
    checkpoint(layer, pattern(0).requires_grad_(), use_reentrant=reentrant).sum().backward()
    watch.update_field(measure=False)
    alone.field.update(pattern(0))
    assert torch.equal(watch.field.window.Y, alone.field.window.Y)
    assert len(watch._rows) == 0


def test_batches_of_one_step_are_one_observation_of_limited_size():
    layer, watch = nn.Linear(12, 2), ActivationObserver("auto")
    watch.begin(layer)
    layer(torch.randn(500, 12))
    layer(torch.randn(3, 7, 12))
    assert [len(rows) for rows in watch._rows] == [ROWS, 21]
    watch.update_field(measure=True)
    assert watch.steps == 1


def test_states_of_convolutions_and_norms_consist_of_channels():
    for layer, shape in (
        (nn.Conv2d(5, 2, 3), (2, 5, 4, 6)),
        (nn.BatchNorm1d(5), (2, 5, 7)),
        (nn.BatchNorm1d(5), (8, 5)),
    ):
        watch = watching(layer)
        layer(torch.randn(shape))
        watch.update_field(measure=False)
        assert watch.field.window.d == 5


def test_rows_are_copied_before_an_in_place_layer_overwrites_them():
    layer, watch = nn.ReLU(inplace=True), ActivationObserver("0")
    watch.begin(layer)
    layer(-torch.ones(4, 3))
    assert torch.equal(watch._rows[0], -torch.ones(4, 3))


def test_a_layer_that_is_not_given_floats_is_named():
    for layer, given in ((nn.Embedding(3, 2), torch.tensor([1])), (nn.Identity(), "words")):
        watching(layer, "words")
        with pytest.raises(ValueError, match=r"field='words' to name a layer whose input is floats, got \w+"):
            layer(given)


GIVEN = {
    "integers": torch.tensor([[1, 2]]),
    "complex": torch.ones(1, 2, dtype=torch.cfloat),
    "a number": torch.tensor(1.0),
    "sparse": torch.eye(2).to_sparse(),
    "words": "words",
}


@pytest.mark.parametrize("given", GIVEN.values(), ids=GIVEN)
def test_unreadable_inputs_of_the_default_layer_are_skipped(given):
    watch = watching(layer := nn.Identity())
    layer(given)
    watch.update_field(measure=True)
    assert watch.seen is None
    layer(pattern(0))
    watch.update_field(measure=True)
    assert watch.seen is not None


def test_an_input_of_another_width_starts_a_new_field():
    watch = watching(wide := nn.Linear(12, 2))
    wide(pattern(0))
    watch.update_field(measure=True)
    narrow = nn.Linear(5, 2)
    watch.begin(narrow)
    narrow(torch.ones(2, 5))
    watch.update_field(measure=True)
    assert watch.seen.tolist() == [1, 1, 0, 1]


# --- in a training ---


@pytest.mark.slow
def test_what_is_logged_is_what_a_field_sees_of_the_chosen_layer(tmp_path):
    class Inputs(L.Callback):
        def __init__(self):
            self.expected, self.field = [], Expected()

        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            self.expected.append(self.field.observe(batch[0]))

    inputs = Inputs()
    run = trainer(tmp_path, [inputs, SALCallback(field="net.0")], logger=CSVLogger(tmp_path), log_every_n_steps=1)
    run.fit(Net(), loader(length=16, change=10))
    rows = (tmp_path / "lightning_logs" / "version_0" / "metrics.csv").read_text().splitlines()
    header = rows[0].split(",")
    steps = [dict(zip(header, row.split(","), strict=True)) for row in rows[1:]]
    steps = [row for row in steps if row["sal/novelty"]]
    assert len(steps) == 16
    for row, seen in zip(steps, inputs.expected, strict=True):
        for name, value in seen._asdict().items():
            assert float(row[f"sal/{name}"]) == pytest.approx(float(value), abs=1e-6)
    assert inputs.expected[9].novelty < 0.1 < 0.5 < inputs.expected[10].novelty
    assert run.callback_metrics["sal/emergence"].item() == pytest.approx(float(inputs.expected[-1].emergence))


class Eager(SALCallback):
    """Has the rows of every step copied."""

    def expect(self, measured, alone=True):
        super().expect(measured, alone=False)


@pytest.mark.slow
@pytest.mark.parametrize("accumulation", [1, 3])
def test_the_field_and_what_is_logged_are_the_same_as_if_every_step_were_copied(tmp_path, accumulation):
    ended = []
    for make in (Eager, SALCallback):
        callback, logger = make(), CSVLogger(tmp_path, name="", version=make.__name__)
        options = {"log_every_n_steps": 7, "accumulate_grad_batches": accumulation}
        trainer(tmp_path, [callback], logger=logger, **options).fit(Net(), loader(length=50, change=40))
        ended.append(((tmp_path / make.__name__ / "metrics.csv").read_text(), callback.watch.field.window.Y))
    assert ended[0][0] == ended[1][0]
    assert torch.equal(ended[0][1], ended[1][1])


@pytest.mark.slow
def test_without_a_field_nothing_of_it_is_logged_and_training_is_the_same(tmp_path):
    models, callbacks = [Net(), Net()], [SALCallback(field=None), SALCallback()]
    for model, callback in zip(models, callbacks, strict=True):
        run = trainer(tmp_path, [callback])
        run.fit(model, loader(length=60, change=40))
        assert ("sal/coherence" in run.callback_metrics) == (callback.watch is not None)
        assert "sal/surprise" in run.callback_metrics
    for a, b in zip(*map(weights, models), strict=True):
        assert torch.equal(a, b)
    assert callbacks[0].memory()["state"] < callbacks[1].memory()["state"]


@pytest.mark.slow
def test_a_field_resumed_from_a_checkpoint_equals_the_uninterrupted_one(tmp_path):
    whole, first, second = SALCallback(), SALCallback(), SALCallback()
    data = loader(length=24, change=12)
    trainer(tmp_path, [whole], max_epochs=2).fit(Net(), data)
    half = trainer(tmp_path, [first])
    half.fit(Net(), data)
    half.save_checkpoint(tmp_path / "half.ckpt")
    trainer(tmp_path, [second], max_epochs=2).fit(Net(), data, ckpt_path=tmp_path / "half.ckpt")
    assert second.watch.steps == whole.watch.steps == 48
    assert torch.equal(second.watch.field.window.Y, whole.watch.field.window.Y)
    assert torch.load(tmp_path / "half.ckpt", weights_only=True)["callbacks"]["SALCallback"]["watch"]["steps"] == 24
