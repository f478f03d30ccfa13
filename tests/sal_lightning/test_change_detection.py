"""Change detection on networks whose first layer's rows hardly change, and on labels."""

import random
from functools import cache
from statistics import mean, pstdev

import pytest
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import nn

from sal_lightning import CommunicationLayer, SALCallback
from sal_lightning.change_detection import (
    CONFIRM,
    DIFFERENT,
    FEW,
    JUMP,
    LONGEST,
    MARGIN,
    OUTLIER,
    SHORTEST,
    SUSPECT,
    TRIAL,
    WARM,
    ChangeDetector,
    LossJumpTest,
)
from sal_lightning.consolidation_reasons import LOSS
from sal_lightning.sample_sketch import SIZE, SampleSketch, whole
from tests.everywhere.models import loader, trainer
from tests.sal_lightning.nets import Net

CHANGE = 70


class Rows(nn.Module):
    """Images as sequences of their rows."""

    def __init__(self, kind):
        super().__init__()
        self.reads, self.out = kind(8, 32, batch_first=True), nn.Linear(32, 10)

    def forward(self, x):
        return self.out(self.reads(x.view(-1, 8, 8))[0][:, -1])


class Placed(nn.Module):
    """A position embedding is called first."""

    def __init__(self):
        super().__init__()
        self.places, self.reads, self.out = nn.Embedding(8, 32), nn.Linear(8, 32), nn.Linear(32, 10)

    def forward(self, x):
        places = self.places(torch.arange(8).expand(len(x), 8))
        return self.out((self.reads(x.view(-1, 8, 8)) + places).relu().mean(1))


class Timed(nn.Module):
    """Noise at a random level, whose embedding is called first."""

    def __init__(self):
        super().__init__()
        self.level, self.reads, self.out = nn.Linear(2, 32), nn.Linear(64, 32), nn.Linear(32, 10)

    def forward(self, x):
        t = torch.rand(len(x), 1)
        level = self.level(torch.cat([t.cos(), t.sin()], 1))
        return self.out((self.reads(x + 0.1 * t * torch.randn_like(x)) + level).relu())


def convolutions(norm):
    pictures = nn.Unflatten(1, (1, 8, 8))
    return nn.Sequential(
        pictures, nn.Conv2d(1, 16, 3, padding=1), norm, nn.ReLU(), nn.Conv2d(16, 16, 3, stride=2), nn.ReLU(),
        nn.Flatten(), nn.Linear(144, 10),
    )  # fmt: skip


NETWORKS = {
    "mlp": lambda: nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10)),
    "batchnorm": lambda: convolutions(nn.BatchNorm2d(16)),
    "groupnorm": lambda: convolutions(nn.GroupNorm(4, 16)),
    "gru": lambda: Rows(nn.GRU),
    "lstm": lambda: Rows(nn.LSTM),
    "positions": Placed,
    "noise level": Timed,
}


@cache
def images():
    """All images of digits, and their labels."""
    return tuple(torch.tensor(part) for part in load_digits(return_X_y=True))


def digits(classes, steps, labels=0, seed=0, batch=32):
    """Batches of digits of these classes, with labels shifted by a constant."""
    x, y = images()
    chosen = torch.isin(y, torch.tensor(list(classes))).nonzero()[:, 0]
    numbers = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        i = chosen[torch.randint(len(chosen), (batch,), generator=numbers)]
        yield x[i].float() / 16, (y[i] + labels) % 10


def train(network, *parts, lr=2e-3):
    torch.manual_seed(0)
    model = NETWORKS[network]()
    optimizer = torch.optim.Adam(model.parameters(), lr)
    comm = CommunicationLayer(model, optimizer)
    for x, y in (batch for part in parts for batch in part):
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
        optimizer.zero_grad()
    return comm


@pytest.mark.slow
@pytest.mark.parametrize("network", NETWORKS)
def test_other_classes_are_found_on_every_network(network):
    comm = train(network, digits(range(5), CHANGE), digits(range(5, 10), 20, seed=1))
    assert len(comm.events) == 1
    assert CHANGE < comm.events[0] <= CHANGE + 20


@pytest.mark.slow
@pytest.mark.parametrize("network", ["mlp", "batchnorm", "gru"])
def test_new_labels_on_old_inputs_are_found_by_the_loss(network):
    comm = train(network, digits(range(10), 2 * CHANGE), digits(range(10), 20, labels=1, seed=1))
    assert comm.events == [2 * CHANGE + JUMP]
    assert comm.evidence == {2 * CHANGE + JUMP: LOSS}
    assert comm.state_dict()["evidence"] == comm.evidence


@pytest.mark.slow
@pytest.mark.parametrize("network", ["mlp", "batchnorm", "gru"])
def test_the_first_step_on_new_labels_is_held_back(network):
    comm = train(network, digits(range(10), 2 * CHANGE), digits(range(10), 1, labels=1, seed=1))
    assert comm.monitor.suspects


# 256 familiar batches refresh the reference twice; the other networks learn for 140 steps above.
@pytest.mark.slow
@pytest.mark.parametrize(
    ("network", "steps"), [("mlp", 300), ("groupnorm", 160), ("lstm", 160), ("positions", 160), ("noise level", 160)]
)
def test_nothing_is_found_where_nothing_changes(network, steps):
    comm = train(network, digits(range(10), steps))
    assert comm.events == []
    assert not comm.monitor.jumped


@pytest.mark.slow
def test_schedules_that_restart_and_dropout_raise_no_alarm():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Dropout(0.5), nn.Linear(64, 10))
    optimizer = torch.optim.SGD(model.parameters(), 0.3, momentum=0.9)
    schedule = torch.optim.lr_scheduler.CosineAnnealingWarmRestarts(optimizer, 100)
    comm = CommunicationLayer(model, optimizer)
    for x, y in digits(range(10), 320):
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
    assert comm.events == []


@pytest.mark.slow
def test_a_new_fit_on_the_same_data_is_held_for_a_while_and_taken_back(tmp_path):
    callback, model = SALCallback(), Net()
    trainer(tmp_path, [callback]).fit(model, loader(length=40, change=10**6))
    held = []

    class Look(type(callback).__mro__[-2]):
        def on_train_batch_end(self, *_):
            held.append(callback.layers[0].spectrum().volatile < 100)

    trainer(tmp_path, [callback, Look()]).fit(model, loader(length=TRIAL + 10, change=10**6))
    assert callback.events == []
    assert held == [True] * (TRIAL - 1) + [False] * 11


def test_a_new_fit_on_other_data_is_detected_even_if_no_single_batch_is_suspicious():
    numbers, detection = random.Random(0), ChangeDetector()
    for _ in range(200):
        detection.update({"x": numbers.gauss(0, 1)})
    assert detection.ready
    detection.begin_fit()
    evidence = [detection.detect({"x": DIFFERENT + 0.5}).evidence for _ in range(TRIAL)]
    assert evidence[:-1] == [SUSPECT] * (TRIAL - 1)
    assert evidence[-1] >= CONFIRM
    # The same difference within a fit is not enough.
    same = ChangeDetector()
    numbers = random.Random(0)
    for _ in range(200):
        same.update({"x": numbers.gauss(0, 1)})
    assert max(same.detect({"x": DIFFERENT + 0.5}).evidence for _ in range(TRIAL)) < SUSPECT


def test_a_new_fit_may_raise_the_loss_where_only_the_loss_is_known():
    model = NETWORKS["mlp"]()
    comm = CommunicationLayer(model, torch.optim.Adam(model.parameters()))
    for _ in range(LONGEST):
        comm.monitor.detector.update({LOSS: 0.0})
    comm.begin_fit()
    assert not comm.monitor.suspects
    for value in [0.0] + [5.0] * JUMP:
        assert comm.monitor.detector.detect({LOSS: value}).evidence == 0
        comm.monitor.detector.update({LOSS: value})


def test_networks_whose_last_layer_varies_are_not_compiled_anew_in_each_step(monkeypatch):
    torch.manual_seed(0)
    body, heads, renewed = nn.Linear(64, 16), nn.ModuleList(nn.Linear(16, 10) for _ in range(2)), []
    model = nn.ModuleDict({"body": body, "heads": heads})
    optimizer = torch.optim.Adam(model.parameters())
    comm = CommunicationLayer(model, optimizer)
    monkeypatch.setattr("sal_lightning.torch_compile.renew", lambda: renewed.append(comm.step))
    for i, (x, y) in enumerate(digits(range(10), 20)):
        F.cross_entropy(heads[i % 2](body(x).relu()), y).backward()
        optimizer.step()
        optimizer.zero_grad()
    assert len(renewed) <= 2


def test_a_trial_continues_from_a_saved_state():
    numbers, detection = random.Random(0), ChangeDetector()
    for _ in range(WARM):
        detection.update({"x": numbers.gauss(0, 1), LOSS: numbers.gauss(0, 1)})
    detection.begin_fit()
    values = [{"x": numbers.gauss(1.5, 1), LOSS: numbers.gauss(0, 1)} for _ in range(TRIAL)]
    for value in values[:5]:
        detection.detect(value)
    again = ChangeDetector()
    again.load_state_dict(detection.state_dict())
    assert again.state_dict() == detection.state_dict()
    assert [again.detect(v) for v in values[5:]] == [detection.detect(v) for v in values[5:]]


def test_a_batch_that_overflows_is_no_evidence_of_a_change():
    parts = [digits(range(10), 60), [(torch.full((32, 64), torch.inf), torch.zeros(32).long())], digits(range(10), 30)]
    torch.manual_seed(0)
    model = NETWORKS["mlp"]()
    optimizer = torch.optim.Adam(model.parameters())
    comm = CommunicationLayer(model, optimizer)
    for x, y in (batch for part in parts for batch in part):
        F.cross_entropy(model(x), y).nan_to_num().backward()
        for p in model.parameters():
            p.grad.nan_to_num_(0, 0, 0)
        optimizer.step()
        optimizer.zero_grad()
        assert not comm.monitor.suspects
    assert comm.events == []


# --- jumps ---


def exchangeable(kind, n, seed):
    numbers = random.Random(seed)
    draw = {"normal": lambda: numbers.gauss(0, 1), "heavy": lambda: numbers.paretovariate(0.5)}[kind]
    return [draw() for _ in range(n)]


@pytest.mark.parametrize("kind", ["normal", "heavy"])
def test_no_jump_is_detected_in_noise_of_any_distribution(kind):
    jumps = LossJumpTest()
    for value in exchangeable(kind, 20_000, seed=0):
        assert jumps.detect(value) < CONFIRM
        jumps.update(value)
    assert len(jumps.usual) == LONGEST


def test_a_jump_is_suspected_and_then_confirmed():
    jumps = LossJumpTest()
    for value in exchangeable("normal", SHORTEST, seed=1):
        jumps.update(value)
    high = max(jumps.usual) + 2 * MARGIN
    assert high - mean(jumps.usual) < OUTLIER * pstdev(jumps.usual)
    evidence = [jumps.detect(high) for _ in range(JUMP)]
    assert evidence[: FEW - 1] == [0.0] * (FEW - 1)
    assert evidence[FEW - 1] == SUSPECT
    assert evidence[-1] == CONFIRM
    assert sorted(evidence) == evidence


def test_a_value_that_stands_out_is_suspected_at_once_and_cleared_by_a_usual_one():
    jumps = LossJumpTest()
    for value in exchangeable("normal", LONGEST, seed=1):
        jumps.update(value)
    usual = list(jumps.usual)
    high = mean(usual) + (OUTLIER + 0.1) * pstdev(usual)
    assert high > max(usual) + MARGIN
    assert [jumps.detect(high) for _ in range(FEW + 1)] == [*[SUSPECT] * FEW, pytest.approx(SUSPECT + 2)]
    assert jumps.detect(usual[0]) == 0
    assert not jumps.above


@pytest.mark.parametrize("seed", range(5))
def test_a_steadily_rising_loss_is_no_jump(seed):
    jumps, noise = LossJumpTest(), random.Random(seed)
    for i in range(300):
        value = 0.1 * i + noise.gauss(0, 0.5)
        assert jumps.detect(value) == 0
        assert not jumps.long
        jumps.update(value)


def test_a_loss_that_climbs_for_some_steps_is_no_jump():
    """Log losses of a recurrent network whose training collapsed, and of one that was given other labels."""
    collapse = [-0.28, -0.16, 0.18, 0.14, 0.19, 0.22, 0.21, 0.17, 0.22, 0.25, 0.21]
    labels = [0.15, 0.17, 0.19, 0.14, 0.09, 0.18, 0.11, 0.09, 0.13, 0.1, 0.13]
    for values, found in ((collapse, False), (labels, True)):
        jumps = LossJumpTest()
        for i in range(LONGEST):
            jumps.update(-1.0 + 0.54 * (i % 8) / 7)
        evidence = []
        for value in values:
            evidence.append(jumps.detect(value))
            if evidence[-1] < SUSPECT:
                jumps.update(value)
        assert (max(evidence) >= CONFIRM) is found


def test_outliers_join_the_usual_values():
    jumps = LossJumpTest()
    for value in [0.0] * SHORTEST:
        jumps.update(value)
    for value in (1.0, 1.0):
        assert jumps.detect(value) == SUSPECT
        jumps.update(value)
    assert max(jumps.usual) == 0.0
    assert jumps.detect(0.0) == 0
    jumps.update(0.0)
    assert max(jumps.usual) == 1.0


def test_the_first_steps_of_a_fit_may_raise_the_loss():
    for first, believed in ((0.0, False), (5.0, True)):
        jumps = LossJumpTest()
        for _ in range(LONGEST):
            jumps.update(0.0)
        jumps.begin_fit()
        evidence = []
        for value in [first] + [5.0] * JUMP:
            evidence.append(jumps.detect(value))
            if evidence[-1] < SUSPECT:
                jumps.update(value)
        assert (max(evidence) >= CONFIRM) is believed


# --- whole samples ---


def test_whole_samples_are_means_over_a_grid():
    x = torch.randn(6, 3, 12, 12)
    side = int((SIZE / 3) ** 0.5)
    assert torch.equal(whole(nn.Conv2d(3, 4, 3), x), F.adaptive_avg_pool2d(x, side).flatten(1))
    x = torch.randn(6, 40, 100)
    halves = torch.stack([x[:, :20].mean(1), x[:, 20:].mean(1)], -1).flatten(1)
    torch.testing.assert_close(whole(nn.Linear(100, 4), x), halves)
    torch.testing.assert_close(whole(nn.GRU(100, 4), x.transpose(0, 1)), halves)
    torch.testing.assert_close(whole(nn.GRU(100, 4, batch_first=True), x), halves)


@pytest.mark.parametrize(
    ("module", "shape"),
    [(nn.Linear(4, 2), (5, 4)), (nn.Linear(4, 2), (4,)), (nn.Conv2d(3, 4, 3), (3, 8, 8)), (nn.Linear(4, 2), (0, 4))],
)
def test_inputs_whose_rows_are_samples_have_no_whole_samples(module, shape):
    assert whole(module, torch.ones(shape)) is None


def test_sequences_of_any_length_are_compared():
    samples, numbers = SampleSketch(), torch.Generator().manual_seed(0)
    for i in range(40):
        x = torch.randn(8, 3 + i % 5, 64, generator=numbers)
        samples.collect(whole(nn.Linear(64, 2), x))
        samples.update()
    assert samples.age == 40
    again = SampleSketch()
    again.load_state_dict(samples.state_dict(), torch.device("cpu"))
    for one in (samples, again):
        one.collect(whole(nn.Linear(64, 2), torch.ones(8, 4, 64)))
    assert torch.equal(samples.surprise, again.surprise)
    assert float(samples.surprise[0]) > 0


@pytest.mark.slow
@pytest.mark.parametrize("unscaled", [True, False])
def test_the_loss_signal_is_independent_of_the_loss_scale(unscaled):
    """The scale doubles every few steps, as it does in training."""
    found = {}
    for scale in (1.0, 1024.0):
        torch.manual_seed(0)
        model = NETWORKS["mlp"]()
        optimizer = torch.optim.Adam(model.parameters())
        scaler = torch.amp.GradScaler("cpu", init_scale=scale, growth_interval=10, enabled=scale > 1)
        comm = CommunicationLayer(model, optimizer, scaler=scaler)
        for x, y in digits(range(10), 60):
            scaler.scale(F.cross_entropy(model(x), y)).backward()
            if unscaled:
                scaler.unscale_(optimizer)
                comm.analyze()
            scaler.step(optimizer)
            scaler.update()
            optimizer.zero_grad()
        found[scale] = list(comm.monitor.detector.loss.usual)
        assert comm.events == []
    assert len(found[1.0]) == 60
    torch.testing.assert_close(found[1024.0], found[1.0], atol=1e-3, rtol=1e-3)
