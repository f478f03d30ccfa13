"""Invalid states raise an error that names the reason, before anything is changed."""

import copy
from itertools import cycle

import pytest
import torch
from torch import nn

from sal_lightning import CommunicationLayer, SALCallback
from tests.everywhere.models import Net, equal, hooks, loader, trainer, weights


class Everything(Net):
    """Has layers, a table and a norm, so that every rule has something in its state."""

    def __init__(self):
        torch.manual_seed(0)
        super().__init__(nn.Sequential(nn.Linear(12, 8), nn.LayerNorm(8), nn.ReLU(), nn.Linear(8, 4)))
        self.table = nn.Embedding(6, 4)

    def forward(self, x):
        return self.net(x) + self.table(torch.arange(len(x)) % 6)


@pytest.fixture(scope="module")
def learned(tmp_path_factory):
    """The states of a training under each rule, with a provisional hold and filled windows."""
    states, threads = {}, torch.get_num_threads()
    torch.set_num_threads(1)
    for protection in ("subspace", "element", "tensor"):
        callback = SALCallback(protection, 20)
        folder, model = tmp_path_factory.mktemp("state"), Everything()
        trainer(folder, [callback]).fit(model, loader(length=50, change=10**6))
        callback.layers[0].monitor.provisional.consolidate()
        trainer(folder, [callback]).fit(model, loader(length=5, change=10**6))
        states[protection] = callback.state_dict()
    torch.set_num_threads(threads)
    return states


def places(state, path=()):
    """Where tensors of numbers are in a nested state."""
    for key, value in state.items() if isinstance(state, dict) else enumerate(state):
        if isinstance(value, torch.Tensor) and value.is_floating_point() and value.numel():
            yield (*path, key)
        elif isinstance(value, dict | list):
            yield from places(value, (*path, key))


def part(state, path):
    for key in path:
        state = state[key]
    return state


RULES = pytest.mark.parametrize("protection", ["subspace", "element", "tensor"])


@pytest.mark.slow
@RULES
def test_a_saved_state_is_accepted(learned, protection):
    SALCallback(protection).load_state_dict(learned[protection])
    SALCallback(protection).load_state_dict({})


@pytest.mark.slow
@RULES
def test_values_that_are_not_finite_are_refused_in_every_part(learned, protection):
    state = copy.deepcopy(learned[protection])
    found = list(places(state))
    assert len(found) > 10
    callback = SALCallback(protection)
    for path, value in zip(found, cycle([float("nan"), float("inf")])):
        numbers = part(state, path).view(-1)
        kept = numbers[-1].clone()
        numbers[-1] = value
        with pytest.raises(ValueError, match=r"to be finite, got NaN or infinity in 1 of \d+ numbers"):
            callback.load_state_dict(state)
        numbers[-1] = kept
    callback.load_state_dict(state)


@pytest.mark.slow
@RULES
def test_tensors_out_of_bounds_are_refused_in_every_part(learned, protection):
    state, callback = copy.deepcopy(learned[protection]), SALCallback(protection)
    for path in places(state):
        tensor = part(state, path)
        if float(tensor.abs().max()) < 1e-9:
            continue  # what is as good as zero stays in its bounds
        kept = tensor.clone()
        tensor.mul_(1e30)
        with pytest.raises(ValueError, match=r"to lie in|to be finite|as much energy|orthonormal|at most"):
            callback.load_state_dict(state)
        tensor.copy_(kept)
    callback.load_state_dict(state)


@pytest.mark.slow
@RULES
def test_another_version_is_refused(learned, protection):
    callback = SALCallback(protection)
    state = copy.deepcopy(learned[protection])
    for part in (state, state["layers"][0]):
        kept = part["version"]
        for version in (9, 99, "9", None, True):
            part["version"] = version
            with pytest.raises(ValueError, match=rf"of a version in \(10,\), got {version!r}"):
                callback.load_state_dict(state)
        part["version"] = kept
    callback.load_state_dict(state)


def mappings(state, path=()):
    if isinstance(state, dict) and state:
        yield path
    for key, value in state.items() if isinstance(state, dict) else enumerate(state):
        if isinstance(value, dict | list):
            yield from mappings(value, (*path, key))


# What a state may be without.
OPTIONAL = {"watch", "P", "R", "rows", "directions"}
BY_NAME = {
    "rules",
    "input_rules",
    "places",
    "means",
    "trusted",
    "previous",
    "pending",
    "evidence",
    "samples",
    "signals",
}
BY_NAME |= {"signals", "sums", "seen", "left", "paces", "targets", "steady", "priors", "shares"}
OF_ALL = ("pull", "(pull)", "adjustment", "(logit adjustment)")  # their memory is by name, too


@pytest.mark.slow
@RULES
def test_missing_keys_are_named(learned, protection):
    count, state, callback = 0, copy.deepcopy(learned[protection]), SALCallback(protection)
    for path in list(mappings(state)):
        if (path and path[-1] in BY_NAME) or "element" in path or (path[-1:] == ("memory",) and path[-2] in OF_ALL):
            continue
        mapping = part(state, path)
        for key in list(mapping):
            if key in OPTIONAL:
                continue
            kept = mapping.pop(key)
            count += 1
            with pytest.raises(ValueError, match=r"missing|to have"):
                callback.load_state_dict(state)
            mapping[key] = kept
    assert count >= 12
    callback.load_state_dict(state)


@pytest.mark.parametrize("state", [["state"], "state", {"version": 10}, {"layers": []}])
def test_other_objects_than_states_are_refused(state):
    with pytest.raises(ValueError, match=r"mapping|missing"):
        SALCallback().load_state_dict(state)


@pytest.mark.parametrize("change", ["nan", "shape", "rule"])
def test_a_refused_state_changes_nothing(learned, change):
    model = Everything()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    comm = CommunicationLayer(model, optimizer, consolidate_on=20)
    comm.load_state_dict(learned["subspace"]["layers"][0])
    before, start, count = copy.deepcopy(comm.state_dict()), weights(model), hooks(model, [optimizer])
    state = copy.deepcopy(learned["subspace"]["layers"][0])
    state["step"] = 7
    if change == "nan":
        state["rules"]["net.3"]["memory"]["A"][0, 0, 0] = float("nan")
    elif change == "shape":
        state["rules"]["net.3"]["memory"]["U"] = state["rules"]["net.3"]["memory"]["U"][:, 1:]
    else:
        state["protection"] = "element"
    with pytest.raises(ValueError, match=r"NaN|orthonormal|inputs|protection"):
        comm.load_state_dict(state)
    assert equal(comm.state_dict(), before)
    assert equal(weights(model), start)
    assert hooks(model, [optimizer]) == count


def test_a_state_of_another_model_leaves_the_callback_and_the_model_as_they_were(learned, tmp_path):
    model, callback = Net(), SALCallback()
    callback.load_state_dict(learned["subspace"])
    before = weights(model)
    with pytest.raises(ValueError, match=r"missing here: .*'table'"):
        trainer(tmp_path, [callback]).fit(model, loader(length=5))
    assert hooks(model, []) == 0
    assert equal(weights(model), before)
    trainer(tmp_path, [callback]).fit(Everything(), loader(length=5))
    assert callback.layers[0].step == 60


def test_a_gradient_that_overflowed_leaves_a_state_that_can_be_saved_and_loaded():
    model = nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for protection in ("subspace", "element"):
        comm = CommunicationLayer(model, optimizer, protection=protection, consolidate_on=None)
        for i in range(4):
            optimizer.zero_grad()
            model(torch.randn(8, 4)).square().mean().backward()
            comm.analyze()
            if i == 2:
                model[1].weight.grad[0], model[0].weight.grad[0, 0] = float("nan"), float("inf")
                comm.optimizer_step.analyzed = False
                comm.analyze()
        comm.consolidate()
        comm.load_state_dict(comm.state_dict())
        comm.detach()
