"""Which pictures, which labels, which outputs."""

import math

import pytest
import torch

from experiments.continual import data
from experiments.continual.batches import StreamBatches, StreamData
from experiments.continual.data import Arrays, digits
from experiments.continual.streams import STREAMS, Stream, StreamName, count, make, rotate

SPLITS: tuple[StreamName, ...] = ("split-task", "split-domain", "split-class")


@pytest.fixture(scope="module")
def arrays() -> Arrays:
    return digits()


def tiny_mnist() -> Arrays:
    x, y = torch.rand(40, 784, generator=torch.Generator().manual_seed(0)), torch.arange(40) % 10
    return Arrays(x, y, x[:20], y[:20])


@pytest.mark.parametrize("name", STREAMS)
def test_labels_lie_within_the_outputs_in_play(name: StreamName, arrays: Arrays) -> None:
    stream = make(name, arrays, seed=1)
    for task in stream.tasks:
        played = set(range(task.classes.start, task.classes.stop))
        assert set(task.train_y.tolist()) <= played
        assert set(task.test_y.tolist()) <= played <= set(range(stream.outputs))


@pytest.mark.parametrize("name", SPLITS)
def test_split_deals_every_picture_to_one_task(name: StreamName, arrays: Arrays) -> None:
    stream = make(name, arrays, seed=1)
    assert len(stream.tasks) == 5
    assert sum(len(task.train_x) for task in stream.tasks) == len(arrays.train_x)
    assert all(len(task.train_y.unique()) == 2 for task in stream.tasks)
    assert stream.outputs == (2 if name == "split-domain" else 10)


def test_the_three_splits_hold_the_same_pictures(arrays: Arrays) -> None:
    streams = [make(name, arrays, seed=3) for name in SPLITS]
    for task, domain, classes in zip(*(stream.tasks for stream in streams), strict=True):
        assert task.train_x.equal(domain.train_x)
        assert task.train_y.equal(classes.train_y)
        assert (task.train_y % 2).equal(domain.train_y)
        assert classes.classes == slice(0, 10)


def test_ordered_splits_take_the_digits_as_they_come(arrays: Arrays) -> None:
    for t, task in enumerate(make("split-class-ordered", arrays, seed=5).tasks):
        assert set(task.train_y.tolist()) == {2 * t, 2 * t + 1}
        pictures = arrays.test_x[torch.isin(arrays.test_y, torch.tensor([2 * t, 2 * t + 1]))]
        assert task.test_x.equal(pictures)


def classes_of_first_task(seed: int, arrays: Arrays) -> set[int]:
    first = make("split-class", arrays, seed).tasks[0]
    known = {tuple(x.tolist()): int(y) for x, y in zip(arrays.test_x, arrays.test_y, strict=True)}
    return {known[tuple(x.tolist())] for x in first.test_x}


def test_the_seed_deals_the_classes(arrays: Arrays) -> None:
    dealt = [classes_of_first_task(seed, arrays) for seed in range(4)]
    assert all(len(pair) == 2 for pair in dealt)
    assert len({frozenset(pair) for pair in dealt}) > 1
    assert classes_of_first_task(0, arrays) == dealt[0]


def test_permuted_mnist_is_padded_and_every_task_has_its_own_order() -> None:
    stream = make("permuted", tiny_mnist(), seed=0)
    assert (len(stream.tasks), stream.inputs, stream.outputs) == (10, 1024, 10)
    orders = [task.see(torch.arange(1024)[None])[0] for task in stream.tasks]
    assert all(order.sort().values.equal(torch.arange(1024)) for order in orders)
    assert len({tuple(order.tolist()) for order in orders}) == 10
    assert not torch.equal(orders[0], torch.arange(1024))


def test_permuted_tasks_show_the_same_pixels_and_share_one_copy() -> None:
    first, second, *_ = make("permuted", tiny_mnist(), seed=0).tasks
    assert first.train_x is second.train_x
    assert not first.see(first.train_x).equal(second.see(second.train_x))
    assert first.see(first.train_x).sort().values.equal(second.see(second.train_x).sort().values)
    assert torch.allclose(first.see(first.test_x).sum(1), tiny_mnist().test_x.sum(1))


def test_the_stream_of_owm_has_a_class_a_task_in_order(arrays: Arrays) -> None:
    stream = make("owm-class", arrays, seed=4)
    assert [task.train_y.unique().tolist() for task in stream.tasks] == [[t] for t in range(10)]
    assert stream.outputs == 10
    assert all(task.classes == slice(0, 10) for task in stream.tasks)


def test_permuted_streams_of_other_papers_are_not_padded() -> None:
    arrays = tiny_mnist()
    owm, gpm = (make(name, arrays, seed=0).tasks for name in ("owm-permuted", "gpm-permuted"))
    assert len(owm) == len(gpm) == 10
    assert owm[0].see(owm[0].train_x).equal(arrays.train_x)
    assert not owm[1].see(owm[1].train_x).equal(arrays.train_x)
    pixels = gpm[0].see(gpm[0].train_x).sort(1).values
    torch.testing.assert_close(pixels, ((arrays.train_x - 0.1307) / 0.3081).sort(1).values)


@pytest.mark.parametrize("name", STREAMS)
def test_every_stream_takes_fashion_mnist(name: StreamName, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(data.NAMED, "fashion-mnist", tiny_mnist)
    data.load.cache_clear()
    batches = StreamData(name, "fashion-mnist", steps=2, batch=8)
    assert len(batches.stream.tasks) == count(name)
    assert next(iter(batches.train_dataloader())).x.shape == (8, batches.inputs)
    data.load.cache_clear()


def test_permuted_digits_keep_their_size(arrays: Arrays) -> None:
    assert make("permuted", arrays, seed=0).inputs == 64


def test_stationary_is_one_task_of_everything(arrays: Arrays) -> None:
    stream = make("stationary", arrays, seed=0)
    assert len(stream.tasks) == 1
    assert stream.tasks[0].train_x is arrays.train_x


def test_an_unknown_stream_is_refused(arrays: Arrays) -> None:
    with pytest.raises(ValueError, match=r"Expected stream to be one of .*got 'split'"):
        make("split", arrays, seed=0)  # type: ignore[arg-type]


class TestBatches:
    def batches(self, stream: Stream, seed: int = 0) -> StreamBatches:
        return StreamBatches(stream, steps=6, batch=16, seed=seed)

    def test_tasks_follow_one_another_in_one_dataset(self, arrays: Arrays) -> None:
        batches = self.batches(make("split-task", arrays, seed=0))
        assert len(batches) == 30
        assert [batches[step].classes.start // 2 for step in range(30)] == [t for t in range(5) for _ in range(6)]

    def test_the_same_seed_draws_the_same_batches(self, arrays: Arrays) -> None:
        stream = make("permuted", arrays, seed=0)
        one, same, other = self.batches(stream), self.batches(stream), self.batches(stream, seed=1)
        assert all(one[step].x.equal(same[step].x) for step in (0, 29))
        assert not one[0].x.equal(other[0].x)

    def test_drawing_leaves_the_global_generator_alone(self, arrays: Arrays) -> None:
        torch.manual_seed(0)
        expected = torch.rand(1)
        torch.manual_seed(0)
        self.batches(make("split-domain", arrays, seed=0))[0]
        assert torch.rand(1).equal(expected)

    def test_the_loader_hands_out_whole_batches_in_order(self) -> None:
        data = StreamData("split-domain", "digits", steps=2, batch=8)
        loaded = list(data.train_dataloader())
        assert len(loaded) == 10
        assert all(batch.x.shape == (8, 64) and batch.classes == slice(0, 2) for batch in loaded)

    def test_bad_settings_are_refused(self) -> None:
        with pytest.raises(ValueError, match="at least 1, got steps=0"):
            StreamData(steps=0)


class TestMixtures:
    def test_sharp_streams_show_one_task_at_a_time(self, arrays: Arrays) -> None:
        stream = make("split-domain", arrays, seed=0)
        for step in range(5 * 7):
            assert stream.shares(step, 7).tolist() == [float(t == step // 7) for t in range(5)]

    @pytest.mark.slow
    def test_fuzzy_streams_shade_into_the_next_task(self, arrays: Arrays) -> None:
        stream = make("split-domain-fuzzy", arrays, seed=0)
        shares = torch.stack([stream.shares(step, 2000) for step in range(10_000)])
        torch.testing.assert_close(shares.sum(1), torch.ones(10_000))
        assert shares.min() >= 0
        # Each task has as much of the stream as if it were sharp, but for the halves at its two ends.
        torch.testing.assert_close(shares.sum(0), torch.full((5,), 2000.0), atol=0.1, rtol=0)
        assert shares[1499, 1] == 0 < shares[1500, 1]
        torch.testing.assert_close(shares[2000, 1], torch.tensor(0.5), atol=1e-3, rtol=0)
        assert shares[2499, 0] > 0 == shares[2500, 0]

    def test_a_mixed_batch_holds_both_tasks(self, arrays: Arrays) -> None:
        stream = make("split-class-fuzzy", arrays, seed=0)
        batches = StreamBatches(stream, steps=8, batch=600, seed=0)
        tasks = [(batches[step].y // 2).bincount(minlength=5) / 600 for step in (0, 8)]
        assert tasks[0].tolist() == [1, 0, 0, 0, 0]
        torch.testing.assert_close(tasks[1][:2], stream.shares(8, 8)[:2], atol=0.07, rtol=0)


class TestRotation:
    def test_a_right_angle_is_a_permutation(self) -> None:
        x = torch.rand(2, 64, generator=torch.Generator().manual_seed(0))
        turned = rotate(math.pi / 2, x).view(2, 8, 8)
        torch.testing.assert_close(turned, x.view(2, 8, 8).rot90(-1, (1, 2)), atol=1e-5, rtol=0)

    def test_tasks_differ_by_their_angle_alone(self, arrays: Arrays) -> None:
        tasks = make("rotated", arrays, seed=0).tasks
        assert len(tasks) == 20
        assert len({t.see(t.test_x[:1]).sum().item() for t in tasks}) == 20
        assert all(t.train_x is arrays.train_x for t in tasks)
