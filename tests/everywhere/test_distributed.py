from dataclasses import replace

import pytest
import torch
from lightning.pytorch.strategies import SingleDeviceStrategy

from sal_lightning import SALCallback
from tests.everywhere import models, workers
from tests.everywhere.models import Net, loader, moved, same, trainer
from tests.everywhere.workers import Plan, fit

CLOSE = 1e-5
PROTECTIONS = ["subspace", "element", "tensor"]


@pytest.fixture(scope="module")
def both():
    with workers.Processes() as processes:
        yield processes


def alone(folder, plan):
    """The same training in one process that sees the batches of both."""
    return fit(0, folder, replace(plan, strategy="auto"))


def furthest(a, b):
    return max(float((a[name] - b[name]).abs().max()) for name in a)


def firmness(state, layer="0"):
    """How firmly each input of a layer is held."""
    m = state["layers"][0]["rules"][f"net.{layer}"]["memory"]
    k = m["s"].shape[-1]
    return (m["s_rest"] + (m["U"][0, :, :k].square() * (m["s"] - m["s_rest"])).sum(-1))[: models.INPUTS]


def answers_moved(before, after, x, make=models.mlp):
    net = make()
    net.load_state_dict(before)
    with torch.no_grad():
        answers = net(x)
    net.load_state_dict(after)
    return moved(net, x, answers)


# --- DDP ---


@pytest.mark.parametrize("protection", PROTECTIONS)
def test_replicas_stay_equal_and_are_what_one_process_makes_of_the_same_rows(both, tmp_path, protection):
    plan = Plan(choices={"protection": protection})
    first, second = both(tmp_path, fit, tmp_path, plan)
    one = alone(tmp_path, plan)
    assert models.equal(first.weights, second.weights)
    assert furthest(first.weights, one.weights) < CLOSE
    assert first.events == second.events == one.events == ([] if protection == "tensor" else [63])
    assert first.spectrum == second.spectrum
    assert first.spectrum["protected"] > 0


def test_accumulated_batches_count_once_in_every_process(both, tmp_path):
    first, second = both(tmp_path, fit, tmp_path, Plan(workers.quarters, accumulate=2))
    one = alone(tmp_path, Plan())
    assert models.equal(first.weights, second.weights)
    assert furthest(first.weights, one.weights) < CLOSE
    assert first.events == second.events == one.events == [63]


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
    assert first.events == second.events == one.events == [63]
    assert models.equal(first.weights, second.weights)
    assert furthest(first.weights, one.weights) < CLOSE


def test_a_lone_strange_batch_is_dismissed_though_the_processes_see_different_data(both, tmp_path):
    first, second = both(tmp_path, fit, tmp_path, Plan(workers.interrupted))
    one = alone(tmp_path, Plan(workers.interrupted))
    assert first.events == second.events == one.events == []
    assert models.equal(first.weights, second.weights)
    assert furthest(first.weights, one.weights) < CLOSE


# --- checkpoints ---


@pytest.mark.parametrize(
    ("strategy", "data", "make"),
    [("ddp", workers.apart, models.mlp), ("sharded", workers.words, workers.Reader)],
    ids=["ddp", "sharded"],
)
@pytest.mark.parametrize("protection", PROTECTIONS)
def test_a_checkpoint_goes_on_in_as_many_processes_or_others(both, tmp_path, strategy, data, make, protection):
    plan = Plan(data, make, strategy, {"protection": protection})
    whole, _ = both(tmp_path, fit, tmp_path, replace(plan, saved=tmp_path / "of two"))
    again, second = both(tmp_path, fit, tmp_path, replace(plan, resumed=tmp_path / "of two"))
    one = alone(tmp_path, replace(plan, resumed=tmp_path / "of two", saved=None))
    alone(tmp_path, replace(plan, saved=tmp_path / "of one"))
    from_one, too = both(tmp_path, fit, tmp_path, replace(plan, resumed=tmp_path / "of one"))
    assert models.equal(again.weights, whole.weights)
    assert models.equal(again.weights, second.weights)
    assert models.equal(from_one.weights, too.weights)
    assert furthest(one.weights, whole.weights) < CLOSE
    assert furthest(from_one.weights, whole.weights) < CLOSE
    expected = [] if protection == "tensor" else [63]
    assert all(r.events == expected for r in (whole, again, second, one, from_one, too))
    saved = torch.load(tmp_path / "of two")["callbacks"]["SALCallback"]
    rules = {name: rule["memory"] for name, rule in saved["layers"][0]["rules"].items() if "memory" in rule}
    assert protection == "tensor" or any(rules.values())


# --- FSDP2 ---


@pytest.mark.parametrize("protection", PROTECTIONS)
def test_sharded_training_is_that_of_one_process(both, tmp_path, protection):
    plan = Plan(workers.words, workers.Reader, "sharded", {"protection": protection})
    first, second = both(tmp_path, fit, tmp_path, plan)
    one = alone(tmp_path, plan)
    assert models.equal(first.weights, second.weights)
    assert furthest(first.weights, one.weights) < CLOSE
    assert first.events == second.events == one.events == ([] if protection == "tensor" else [63])
    assert first.spectrum["protected"] > 0


# --- falls ---


@pytest.mark.parametrize("strategy", ["ddp", "sharded"])
def test_a_process_that_fails_does_not_wait_for_the_other(both, tmp_path, strategy):
    _, second = both(tmp_path, workers.fall, tmp_path, strategy)
    assert second < workers.DELAY


# --- plain PyTorch ---


def test_a_head_that_nobody_used_is_not_held(both, tmp_path):
    first, second = both(tmp_path, workers.in_turns)
    one = workers.in_turns(0)
    assert first.held == second.held == one.held == [False, True]
    assert models.equal(first.weights, second.weights)
    assert furthest(first.weights, one.weights) < CLOSE


def test_a_layer_that_one_process_uses_is_protected_alike_in_both(both, tmp_path):
    first, second = both(tmp_path, workers.one_each)
    assert first.coverage == second.coverage
    assert set(first.coverage.values()) == {"subspace"}
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
    one = workers.tensor_parallel(0, protection)
    assert models.equal(first, second)
    assert first.coverage == one.coverage
    assert first.held == one.held == [protection != "tensor"]
    assert furthest(first.weights, one.weights) < CLOSE


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
            model, loader()
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
    trainer(tmp_path, [callback]).fit(model, loader())
    learned = callback.state_dict()
    with pytest.warns(UserWarning, match="nothing back in this fit"):
        trainer(tmp_path, [callback], strategy=FSDPStrategy(torch.device("cpu")), accelerator="auto").fit(
            model, loader()
        )
    assert models.equal(callback.state_dict(), learned)
    trainer(tmp_path, [callback]).fit(model, loader(first=1))
    assert callback.events == [63, 183]
