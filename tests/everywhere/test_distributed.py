from dataclasses import replace
from functools import cache

import pytest
import torch
from lightning.pytorch.strategies import SingleDeviceStrategy

from sal_lightning import SALCallback
from tests.everywhere import models, workers
from tests.everywhere.models import CHANGE, LENGTH, Net, loader, moved, same, trainer
from tests.everywhere.workers import Plan, fit

pytestmark = pytest.mark.slow

CLOSE = 1e-5
PROTECTIONS = ["subspace", "element", "tensor"]


def alone(folder, plan):
    """The same training in one process that sees the batches of both."""
    return fit(0, folder, replace(plan, strategy="auto"))


def furthest(a, b):
    return max(float((a[name] - b[name]).abs().max()) for name in a)


def firmness(state, layer="0"):
    """How firmly each input of a layer is held."""
    m = state["layers"][0]["rules"][f"net.{layer}"]["memory"]
    k = m["f"].shape[-1]
    return (m["s_rest"] + (m["U"][0, :, :k].square() * (1 - m["s_rest"]) * m["f"]).sum(-1))[: models.INPUTS]


def answers_moved(before, after, x, make=models.mlp):
    net = make()
    net.load_state_dict(before)
    with torch.no_grad():
        answers = net(x)
    net.load_state_dict(after)
    return moved(net, x, answers)


# --- several processes and one, and from one to the other ---

KINDS = [
    pytest.param(kind, protection, id=f"{kind[0]}-{protection}")
    for kind in [("ddp", workers.apart, models.mlp), ("sharded", workers.words, workers.Reader)]
    for protection in ["subspace", "element", "tensor"]
]


@pytest.fixture(scope="module")
def trained(both, tmp_path_factory):
    """Of a kind of training, once: its plan, what both and what one process made of it, and a checkpoint of each."""

    @cache
    def train(kind, protection):
        strategy, data, make = kind
        folder = tmp_path_factory.mktemp("-".join((strategy, protection)))
        plan = Plan(data, make, strategy, {"protection": protection})
        two, one = (replace(plan, saved=folder / name) for name in ("two", "one"))
        return plan, both(folder, fit, folder, two), alone(folder, one), two.saved, one.saved

    return train


@pytest.mark.parametrize(("kind", "protection"), KINDS)
def test_replicas_stay_equal_and_are_what_one_process_makes_of_the_same_rows(trained, kind, protection):
    _, (first, second), one, *_ = trained(kind, protection)
    assert models.equal(first.weights, second.weights)
    assert furthest(first.weights, one.weights) < CLOSE
    assert first.events == second.events == one.events == ([] if protection == "tensor" else [CHANGE + 3])
    assert first.spectrum["protected"] > 0


def test_under_the_pull_replicas_stay_equal_and_each_measures_its_rows(tmp_path, both):
    first, second = both(tmp_path, fit, tmp_path, Plan(choices={"pull": 10.0, "strength": 0.5}))
    assert models.equal(first.weights, second.weights)
    pulls = [result.state["layers"][0]["pull"] for result in (first, second)]
    assert models.equal(pulls[0]["memory"], pulls[1]["memory"])
    assert set(pulls[0]["memory"]) == {f"net.{name}" for name in first.weights}
    assert not models.equal(pulls[0]["fisher"]["sums"], pulls[1]["fisher"]["sums"])
    assert first.events == second.events == [CHANGE + 3]


@pytest.mark.parametrize(("kind", "protection"), KINDS)
def test_the_state_is_whole_and_the_same_in_every_process(trained, kind, protection):
    _, (first, second), *_ = trained(kind, protection)
    rules = first.state["layers"][0]["rules"]
    assert models.equal(rules, second.state["layers"][0]["rules"])
    for name, rule in rules.items():
        kept = rule["previous"] if protection == "tensor" else rule["memory"]
        if name in ("element", "tensor"):
            assert all(x.shape == first.weights[weight.removeprefix("net.")].shape for weight, x in kept.items())
        elif "E" in kept:
            assert kept["E"].shape[1] == len(first.weights[f"{name}.weight".removeprefix("net.")])
        else:
            assert kept["s"].shape == (11,)


@pytest.mark.parametrize(("kind", "protection"), KINDS)
def test_a_checkpoint_goes_on_in_as_many_processes_or_others(both, tmp_path, trained, kind, protection):
    plan, (whole, _), _, of_two, of_one = trained(kind, protection)
    again, second = both(tmp_path, fit, tmp_path, replace(plan, resumed=of_two))
    more, too = both(tmp_path, fit, tmp_path, replace(plan, resumed=of_one))
    fewer = alone(tmp_path, replace(plan, resumed=of_two))
    assert models.equal(again.weights, second.weights)
    assert models.equal(again.weights, whole.weights)
    assert models.equal(more.weights, too.weights)
    for result in (again, more, fewer):
        assert furthest(result.weights, whole.weights) < CLOSE
        assert result.events == whole.events
        assert result.spectrum == pytest.approx(whole.spectrum, abs=1)


# --- DDP ---


def test_accumulated_batches_count_once_in_every_process(both, tmp_path):
    first, second = both(tmp_path, fit, tmp_path, Plan(workers.quarters, accumulate=2))
    one = alone(tmp_path, Plan())
    assert models.equal(first.weights, second.weights)
    assert furthest(first.weights, one.weights) < CLOSE
    assert first.events == second.events == one.events == [CHANGE + 3]


def test_the_windows_of_all_processes_count(both, tmp_path):
    plan = Plan(workers.apart, consolidate_at=workers.CHANGE, choices={"consolidate_on": None})
    first, second = both(tmp_path, fit, tmp_path, plan)
    plain = alone(tmp_path, replace(plan, choices={"consolidate_on": None, "strength": 1e-9}))
    assert models.equal(first.weights, second.weights)
    assert models.equal(first.state, second.state)
    assert first.events == second.events == [workers.CHANGE]
    held = firmness(first.state)
    assert held[:8].min() > 0.7
    assert held[8:].max() < 0.1
    for task in (0, 1):
        x, _ = models.batch(task, 999)
        assert answers_moved(first.kept, first.weights, x) < 0.5 * answers_moved(plain.kept, plain.weights, x)


def test_a_change_that_one_process_meets_is_found_by_both(both, tmp_path):
    first, second = both(tmp_path, fit, tmp_path, Plan(workers.aside))
    one = alone(tmp_path, Plan(workers.aside))
    assert first.events == second.events == one.events == [CHANGE + 3]
    assert models.equal(first.weights, second.weights)
    assert furthest(first.weights, one.weights) < CLOSE


def test_a_lone_strange_batch_is_dismissed_though_the_processes_see_different_data(both, tmp_path):
    first, second = both(tmp_path, fit, tmp_path, Plan(workers.interrupted))
    one = alone(tmp_path, Plan(workers.interrupted))
    assert first.events == second.events == one.events == []
    assert models.equal(first.weights, second.weights)
    assert furthest(first.weights, one.weights) < CLOSE


# --- falls ---


@pytest.mark.parametrize("strategy", ["ddp", "sharded"])
def test_a_process_that_fails_does_not_wait_for_the_other(both, tmp_path, strategy):
    _, second = both(tmp_path, workers.fall, tmp_path, strategy)
    assert second < workers.DELAY / 2


# --- plain PyTorch ---


def test_a_head_that_nobody_used_is_not_held(both, tmp_path):
    first, second = both(tmp_path, workers.by_hand, workers.Heads, workers.in_turns)
    one = workers.by_hand(0, workers.Heads, workers.in_turns)
    assert first.held == second.held == one.held == [set(), {"body", "heads.0"}]
    assert models.equal(first.weights, second.weights)
    assert furthest(first.weights, one.weights) < CLOSE


@pytest.mark.parametrize(("schedule", "held"), [(workers.late, 4), (workers.later, 2)])
def test_a_network_that_comes_late_is_watched_from_then_on(both, tmp_path, schedule, held):
    first, second = both(tmp_path, workers.by_hand, workers.Towers, schedule)
    one = workers.by_hand(0, workers.Towers, schedule)
    assert first.held == second.held == one.held
    assert len(first.held[-1]) == held
    assert models.equal(first.weights, second.weights)
    assert furthest(first.weights, one.weights) < CLOSE


def test_a_layer_that_one_process_uses_is_protected_alike_in_both(both, tmp_path):
    first, second = both(tmp_path, workers.by_hand, workers.Heads, workers.one_each)
    assert first.coverage == second.coverage
    assert set(first.coverage.values()) == {"subspace"}
    assert first.held == second.held == [set(), {"body", "heads.0", "heads.1"}]
    assert models.equal(first.weights, second.weights)


def test_what_each_process_remembers_is_held_in_both(both, tmp_path):
    (before, first), (_, second) = both(tmp_path, workers.remember, True)
    (_, plain), _ = both(tmp_path, workers.remember, False)
    assert models.equal(first, second)
    for task in (0, 1):
        x, _ = models.batch(task, 999)
        far = answers_moved(before, plain, x, workers.normed)
        assert answers_moved(before, first, x, workers.normed) < 0.5 * far


@pytest.mark.parametrize("protection", PROTECTIONS)
def test_tensor_parallel_training_is_that_of_one_process(both, tmp_path, protection):
    first, second = both(tmp_path, workers.tensor_parallel, protection)
    weights, coverage, events = workers.tensor_parallel(0, protection)
    assert models.equal(first, second)
    assert first[1:] == (coverage, events)
    assert events == ([] if protection == "tensor" else [CHANGE + 3])
    assert furthest(first[0], weights) < CLOSE


def test_absent_classes_are_those_of_all_processes(both, tmp_path):
    (first, absent), (second, _) = both(tmp_path, workers.classes)
    weights, there = workers.classes(0)
    assert models.equal(first, second)
    assert furthest(first, weights) < CLOSE
    assert absent == there == 2


@pytest.mark.parametrize("original", [True, False])
def test_flattened_parameters_are_refused_by_name(both, tmp_path, original):
    assert all("FSDP1" in said for said in both(tmp_path, workers.flattened, original))


# --- strategies that hide gradients ---


class DeepSpeedStrategy(SingleDeviceStrategy):
    """Known by its name."""


class FSDPStrategy(SingleDeviceStrategy):
    """Known by its name."""


@pytest.mark.parametrize("kind", [DeepSpeedStrategy, FSDPStrategy])
def test_a_strategy_that_hides_gradients_is_named_once_and_trains_as_without_the_callback(tmp_path, kind):
    def run(*callbacks):
        model = Net()
        strategy = kind(torch.device("cpu"))
        trainer(tmp_path, list(callbacks), strategy=strategy, accelerator="auto", log_every_n_steps=1).fit(
            model, loader(LENGTH, CHANGE)
        )
        return model

    callback = SALCallback()
    with pytest.warns(UserWarning, match=kind.__name__) as said:
        model = run(callback)
    assert sum("SALCallback" in str(w.message) for w in said) == 1
    assert same(model, run())
    assert callback.events == []


def test_what_was_learned_outlasts_a_strategy_that_hides_gradients(tmp_path):
    model, callback = Net(), SALCallback()
    trainer(tmp_path, [callback]).fit(model, loader(LENGTH, CHANGE))
    learned = callback.state_dict()
    with pytest.warns(UserWarning, match="protects nothing in this fit"):
        trainer(tmp_path, [callback], strategy=FSDPStrategy(torch.device("cpu")), accelerator="auto").fit(
            model, loader(LENGTH, CHANGE)
        )
    assert models.equal(callback.state_dict(), learned)
    trainer(tmp_path, [callback]).fit(model, loader(LENGTH, CHANGE, first=1))
    assert callback.events == [CHANGE + 3, LENGTH + CHANGE + 3]
