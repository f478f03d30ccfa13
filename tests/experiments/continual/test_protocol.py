"""A run: what it measures, what a method can see of it, and what is filed."""

import json
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch import Callback

from experiments.continual import methods
from experiments.continual.protocol import Result, run
from experiments.continual.streams import StreamName

pytestmark = pytest.mark.slow


class ActivationObserver(Callback):
    """Remember what a method could see."""

    def __init__(self) -> None:
        self.batches: list[torch.Tensor] = []
        self.fits, self.training, self.optimizers, self.adam_steps = 0, set[bool](), set[int](), 0

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.fits += 1

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        self.batches.append(batch.x)
        self.training.add(all(m.training for m in pl_module.modules()) and torch.is_grad_enabled())
        self.optimizers.update(map(id, trainer.optimizers))  # none in closed form

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        for optimizer in trainer.optimizers:
            self.adam_steps = int(optimizer.state[pl_module.head.weight].get("step", 0))


def test_every_task_is_measured_after_each(plain: Result) -> None:
    assert [len(row) for row in plain.R] == [5] * 5
    assert all(0 <= value <= 1 for row in plain.R for value in row)


def test_plain_training_learns_and_forgets(plain: Result) -> None:
    learned, kept, lowest = (plain.measures[name] or 0.0 for name in ("just_learned", "average", "lowest"))
    assert learned > 0.9
    assert lowest < kept < learned - 0.1
    assert plain.drift is not None
    assert plain.drift > 0.1


def test_the_summary_is_that_of_the_matrix(plain: Result) -> None:
    R = plain.R
    assert plain.measures["average"] == pytest.approx(sum(R[-1]) / 5)
    assert plain.measures["worst"] == pytest.approx(min(R[-1]))
    assert plain.measures["just_learned"] == pytest.approx(sum(R[i][i] for i in range(5)) / 5)
    assert plain.measures["backward_transfer"] == pytest.approx(sum(R[-1][i] - R[i][i] for i in range(4)) / 4)


def test_the_curve_passes_through_the_matrix(plain: Result) -> None:
    steps = [40 * task + place for task in range(5) for place in (*range(1, 11), 20, 40)]
    assert [point.step for point in plain.curve] == steps
    ends = [point.accuracy for point in plain.curve if point.step % 40 == 0]
    assert ends == [row[: t + 1] for t, row in enumerate(plain.R)]


def test_the_lowest_is_that_of_the_curve(plain: Result) -> None:
    lowest = [min(p.accuracy[t] for p in plain.curve if p.step > 40 * (t + 1)) for t in range(4)]
    assert plain.measures["lowest"] == pytest.approx(sum(lowest) / 4)


def test_looking_more_often_changes_no_number_and_another_seed_is_another_run() -> None:
    seldom, often, other = (
        run("split-domain", "plain", seed, steps=12, data="digits", every=every)
        for seed, every in ((0, 12), (0, None), (1, 12))
    )
    assert len(often.curve) > len(seldom.curve)
    assert (often.R, often.drift) == (seldom.R, seldom.drift)
    assert other.R != seldom.R


def test_one_fit_one_optimizer_and_no_reset() -> None:
    watch = ActivationObserver()
    run("split-class", "plain", seed=0, steps=3, data="digits", callbacks=[watch])
    assert (watch.fits, len(watch.optimizers), watch.adam_steps) == (1, 1, 15)


def test_training_mode_and_gradients_come_back_after_each_look() -> None:
    watch = ActivationObserver()
    run("split-task", "plain", seed=0, steps=4, data="digits", every=1, callbacks=[watch])
    assert watch.training == {True}


FUZZY = ("plain", "joint", "sal", "online-ewc", "si", "lwf", "agem")  # of each kind of callback one


@pytest.mark.parametrize(
    ("stream", "names", "steps"), [("split-task", tuple(methods.METHODS), 2), ("split-domain-fuzzy", FUZZY, 4)]
)
def test_every_method_gets_the_same_batches_and_leaves_a_whole_record(
    stream: StreamName, names: tuple[str, ...], steps: int
) -> None:
    seen = {}
    for method in names:
        seen[method] = watch = ActivationObserver()
        result = run(stream, method, seed=2, steps=steps, data="digits", callbacks=[watch])
        assert json.loads(json.dumps(result.record(), allow_nan=False))["method"] == method
        assert all(isinstance(step, int) for step in result.events)
    del seen["joint"]
    reference = seen.pop("plain").batches
    for watch in seen.values():
        assert all(a.equal(b) for a, b in zip(watch.batches, reference, strict=True))


def test_one_task_has_no_drift() -> None:
    result = run("stationary", "plain", seed=0, steps=4, data="digits")
    assert (len(result.R), result.drift) == (1, None)


def test_permuted_takes_its_published_rate_unless_told() -> None:
    assert run("permuted", "plain", seed=0, steps=1, data="digits").lr == 1e-4
    assert run("split-domain", "plain", seed=0, steps=1, data="digits", lr=0.01).lr == 0.01
