import math

import pytest
import torch
from sklearn.metrics import roc_auc_score

from experiments.detection.protocol import Heard, auroc, delays, false_alarms, kinds, listen, measures
from experiments.detection.sources import named, pictures
from sal_lightning import SALCallback
from sal_lightning.change_detection import WARM
from tests.sal_lightning.test_callback import Net, loader, trainer

NAN = float("nan")


def heard(excess, changes=(), events=()):
    return Heard(tuple(changes), excess, list(events))


def test_delays_and_false_alarms_by_hand():
    run = heard([0.0] * 50, changes=(10, 20, 40), events=(5, 13, 14, 41, 50))
    assert delays(run) == [3, None, 1]
    assert false_alarms(run) == 3
    assert kinds(run)[9:14] == [0, 1, None, None, 0]
    assert kinds(run)[20:22] == [1, 0]


def test_auroc_is_that_of_another_library_ties_apart_and_none_without_both_kinds():
    scores = torch.randn(200, generator=torch.Generator().manual_seed(0)).tolist()
    changes = tuple(range(10, 200, 10))
    for change in changes:
        scores[change] += 1.5
    labels = [int(i in changes) for i in range(200)]
    assert auroc([heard(scores, changes)]) == pytest.approx(roc_auc_score(labels, scores))
    half = [heard(scores[:100], changes[:9]), heard(scores[100:], [c - 100 for c in changes[10:]])]
    both = [label for i, label in enumerate(labels) if i != 100]
    assert auroc(half) == pytest.approx(roc_auc_score([*both[:100], 0, *both[100:]], scores))
    assert auroc([heard([0.0, 1.0])]) is None


def test_what_is_not_known_yet_counts_as_neither():
    run = heard([NAN] * 5 + [0.1, 0.2, 0.3, 0.05], changes=(7,))
    assert auroc([run]) == 1.0


def test_known_changes_of_pictures_are_found_and_only_they():
    source = named("split-domain", "digits", 60, seed=0)
    run = listen(source)
    assert source.changes == (60, 120, 180, 240)
    assert len(run.excess) == 300
    assert math.isnan(run.excess[WARM])
    assert run.events == [63, 123, 183, 243]
    found = measures([run])
    assert (found["found"], found["false_alarms"], found["longest_delay"]) == (4, 0, 3)
    assert found["auroc"] == 1.0


@pytest.mark.slow
def test_it_hears_what_the_callback_does_in_a_training(tmp_path):
    """Nothing is trained here, yet novelty and events are those of a real fit on the same batches."""
    source = pictures("split-domain", "digits", 1, seed=0)
    data = loader(length=80)
    batches = [x for x, _ in data]
    net = torch.nn.Linear(12, 3)
    run = listen(source._replace(changes=(40,), length=len(batches), batches=lambda: iter(batches), net=net))
    callback = SALCallback()
    trainer(tmp_path, [callback]).fit(Net(), data)
    assert run.events == callback.events == [43]
    assert callback.layers[0].monitor.detector.excess == pytest.approx(run.excess[-1], abs=1e-4)


@pytest.mark.slow
def test_a_gradual_change_is_found_while_it_lasts():
    source = named("split-domain-fuzzy", "digits", 200, seed=0)
    assert (source.changes, source.lasting) == ((150, 350, 550, 750), 100)
    run = listen(source)
    found = measures([run])
    assert (found["found"], found["false_alarms"], found["auroc"]) == (4, 0, None)
    assert found["longest_delay"] <= 100
