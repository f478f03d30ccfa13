"""The streams: the changes of their data, and that a step has the same batch in every run."""

import pytest
import torch

from experiments.continual.data import load
from experiments.networks.streams import STREAMS, make


@pytest.fixture(scope="module")
def digits():
    return load("digits")


def seen(stream, task):
    """All labels of a task's batches."""
    return {y for step in range(task * stream.steps, (task + 1) * stream.steps) for y in stream.at(step).y.tolist()}


def test_classes_are_dealt_in_order(digits):
    two = make("split-two", digits, 0, steps=20)
    assert (two.length, two.changes, two.spans()) == (40, (20,), [range(40)])
    assert [seen(two, task) for task in range(2)] == [{0, 1, 2, 3, 4}, {5, 6, 7, 8, 9}]
    assert [set(tests.y.tolist()) for tests in (*two.old(), two.new())] == [set(range(5)), set(range(5, 10))]
    five = make("split-five", digits, 0, steps=20)
    assert five.changes == (20, 40, 60, 80)
    assert [seen(five, task) for task in range(5)] == [{0, 1}, {2, 3}, {4, 5}, {6, 7}, {8, 9}]
    assert len(five.old()) == 4


def test_two_fits_see_what_one_fit_sees(digits):
    one, two = (make(name, digits, 3, steps=5) for name in ("split-two", "split-two-fits"))
    assert two.spans() == [range(5), range(5, 10)]
    for span in two.spans():
        for a, b in zip(two.batches(span), one.batches(span), strict=True):
            assert torch.equal(a.x, b.x)
            assert torch.equal(a.y, b.y)


def test_permuted_images_have_the_same_pixels_in_another_order_of_the_seed(digits):
    stream = make("permuted", digits, 0)
    before, after = stream.old()[0], stream.new()
    assert torch.equal(before.y, after.y)
    assert not torch.equal(before.x, after.x)
    assert torch.equal(before.x.sort(1).values, after.x.sort(1).values)
    assert torch.equal(make("permuted", digits, 0).new().x, after.x)
    assert not torch.equal(make("permuted", digits, 1).new().x, after.x)


def test_brighter_images_and_new_labels_are_those_of_old_images(digits):
    bright = make("brighter", digits, 0)
    torch.testing.assert_close(bright.new().x, 2 * bright.old()[0].x + 1.5)
    assert torch.equal(bright.new().y, bright.old()[0].y)
    called = make("labels", digits, 0)
    assert torch.equal(called.new().x, called.old()[0].x)
    renamed = dict(zip(called.old()[0].y.tolist(), called.new().y.tolist(), strict=True))
    assert renamed == {0: 1, 1: 2, 2: 3, 3: 4, 4: 5, 5: 6, 6: 7, 7: 8, 8: 9, 9: 0}


def test_a_stationary_stream_is_long_and_never_changes(digits):
    stream = make("stationary", digits, 0, steps=250)
    assert (stream.length, stream.changes) == (5000, ())
    assert torch.equal(stream.old(7)[0].x, stream.new(7).x)
    assert len(stream.new(7).y) == 7


@pytest.mark.parametrize("name", STREAMS)
def test_a_step_has_the_same_batch_whenever_it_is_asked_for(name, digits):
    stream, again, other = (make(name, digits, seed, steps=5, batch=16) for seed in (0, 0, 1))
    asked = [stream.at(step) for step in (7, 3)] if stream.length > 7 else [stream.at(0), stream.at(3)]
    assert torch.equal(asked[1].x, again.at(3).x)
    assert torch.equal(asked[1].y, again.at(3).y)
    assert asked[1].x.shape == (16, 64)
    assert not torch.equal(stream.at(3).y, other.at(3).y)
    assert not torch.equal(stream.at(3).y, stream.at(4).y)


def test_joint_batches_come_from_all_tasks_alike(digits):
    stream = make("split-five", digits, 0, steps=40)
    labels = torch.cat([batch.y for batch in stream.batches(joint=True)])
    assert len(labels) == 200 * 32
    shares = torch.bincount(labels // 2, minlength=5) / len(labels)
    torch.testing.assert_close(shares, torch.full((5,), 0.2), rtol=0, atol=0.02)  # four standard errors


def test_what_is_no_stream_and_no_step_is_refused(digits):
    with pytest.raises(ValueError, match=r"stream to be one of .*'split-two'.*, got 'rotated'"):
        make("rotated", digits, 0)
    with pytest.raises(ValueError, match="steps and batch to be at least 1, got steps=0, batch=32"):
        make("split-two", digits, 0, steps=0)
    with pytest.raises(IndexError, match="a step from 0 to 9, got 10"):
        make("split-two", digits, 0, steps=5).at(10)
