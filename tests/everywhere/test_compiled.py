import pytest
import torch
import torch.nn.functional as F

from sal_lightning import CommunicationLayer, SALCallback
from tests.everywhere import models
from tests.everywhere.models import CHANGE, LENGTH, batch, close, names, train, weights

pytestmark = pytest.mark.slow


class Counting:
    """The eager backend, counting how often it is asked to compile."""

    def __init__(self):
        self.calls = 0

    def __call__(self, graph, inputs):
        self.calls += 1
        return graph.forward


@pytest.fixture
def dynamo():
    torch._dynamo.reset()
    with torch._dynamo.config.patch(fail_on_recompile_limit_hit=True):
        yield
    torch._dynamo.reset()


def wrap(model, backend):
    model.net = torch.compile(model.net, backend=backend)
    return model


def in_place(model, backend):
    model.net.compile(backend=backend)
    return model


def whole(model, backend):
    return torch.compile(model, backend=backend)


# torch.compile asks intermediate tensors for their gradient where a graph breaks.
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")
@pytest.mark.usefixtures("dynamo")
@pytest.mark.parametrize("how", [wrap, in_place, whole])
def test_compiled_modules_learn_and_are_protected_like_others(tmp_path, how):
    plain, expected, _ = models.reference(LENGTH, CHANGE)
    compiled, backend, callback = models.Net(), Counting(), SALCallback()
    counts = [models.At(steps, lambda *_: backend.calls) for steps in (25, CHANGE, 47, LENGTH)]
    run = models.trainer(tmp_path, [callback, *counts])
    run.fit(how(compiled, backend), models.loader(LENGTH, CHANGE))
    calls = [count.result for count in counts]
    assert set(callback.coverage()) == names(plain)
    assert callback.coverage() == expected.coverage()
    assert callback.events == expected.events == [CHANGE + 3]
    assert close(weights(compiled), weights(plain), rtol=0, atol=1e-6)
    assert calls[0] > 0, "nothing was compiled"
    assert calls[0] == calls[1]
    assert calls[2] == calls[3]
    assert calls[3] <= 8


def compiled_first(how, mode, prepare):
    """Compiles a model and runs it; only then are the hooks added."""
    model = models.mlp().train(mode)
    compiled = how(models.Net(model), "eager")
    train(compiled, torch.optim.SGD(model.parameters(), lr=0.0), None, batch, task=0, steps=3)
    return prepare(model, compiled)


def plainly(model, compiled):
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    comm = CommunicationLayer(model, optimizer)
    for i in range(47):
        train(compiled, optimizer, None, batch, task=int(i >= CHANGE), steps=1, start=i)
    return comm.events, comm.coverage(), weights(model)


@pytest.mark.parametrize(("how", "mode"), [(wrap, True), (wrap, False), (in_place, True), (whole, False)])
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")
@pytest.mark.usefixtures("dynamo")
def test_a_model_that_ran_compiled_before_is_observed(how, mode):
    plain = models.mlp()
    expected, got = plainly(plain, plain), compiled_first(how, mode, plainly)
    assert got[:2] == expected[:2]
    assert got[0] == [CHANGE + 3]
    assert close(got[2], expected[2], rtol=0, atol=1e-6)


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")
@pytest.mark.usefixtures("dynamo")
def test_a_model_fitted_compiled_before_keeps_what_it_remembers(tmp_path):
    model, callback, data = models.Net(), SALCallback(consolidate_on=None), models.loader(length=20)
    compiled = torch.compile(model, backend="eager")
    models.trainer(tmp_path, []).fit(compiled, data)
    callback.remember(model, data)
    held = callback.spectrum()
    models.trainer(tmp_path, [callback]).fit(compiled, data)
    assert held.protected > 0
    assert callback.spectrum() == held
    assert set(callback.coverage().values()) == {"subspace"}
    assert [rule.age for rule in callback.layers[0].rules] == [20, 20]


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")
@pytest.mark.usefixtures("dynamo")
def test_a_compiled_function_that_calls_the_model_and_layers_thawed_later_are_observed():
    model = models.mlp()
    model[0].requires_grad_(False)
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    step = torch.compile(lambda x, y: F.mse_loss(model(x), y), backend="eager")
    step(*batch(0, 0))
    comm = CommunicationLayer(model, optimizer)
    for i in range(20):
        model[0].requires_grad_(i >= 10)
        optimizer.zero_grad()
        step(*batch(0, i)).backward()
        optimizer.step()
    assert set(comm.coverage().values()) == {"subspace"}
    assert {rule.name: rule.age for rule in comm.rules} == {"2": 20, "0": 10}


def in_place_whole(model):
    model.compile(backend="eager", fullgraph=True)
    return model


@pytest.mark.usefixtures("dynamo")
@pytest.mark.parametrize("how", [lambda m: torch.compile(m, backend="eager", fullgraph=True), in_place_whole])
def test_a_model_compiled_as_one_graph_is_refused_before_anything_is_trained(tmp_path, how):
    model, part = models.Net(), models.mlp()
    before, callback = weights(model), SALCallback()
    with pytest.raises(ValueError, match=r"without fullgraph=True, got one with it at 'the model itself'.*hooks"):
        models.trainer(tmp_path, [callback]).fit(how(model), models.loader())
    assert models.equal(weights(model), before)
    assert models.hooks(model, []) == 0
    outer = torch.nn.Sequential(how(part))
    with pytest.raises(ValueError, match=r"without fullgraph=True, got one with it at '0'"):
        CommunicationLayer(outer, torch.optim.Adam(outer.parameters()))


@pytest.mark.usefixtures("dynamo")
def test_a_function_compiled_as_one_graph_is_told_how_to_be_compiled():
    model = models.mlp()
    step = torch.compile(lambda x: model(x).sum(), backend="eager", fullgraph=True)
    CommunicationLayer(model, torch.optim.Adam(model.parameters()))
    with pytest.raises(Exception, match=r"sal_lightning observes layers by forward hooks.*without fullgraph=True"):
        step(batch(0, 0)[0])
