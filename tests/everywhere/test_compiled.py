import pytest
import torch

from sal_lightning import SALCallback
from tests.everywhere import models
from tests.everywhere.models import close, names, weights


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
    plain, compiled, backend = models.Net(), models.Net(), Counting()
    callbacks = [SALCallback(), SALCallback()]
    models.trainer(tmp_path, [callbacks[0]]).fit(plain, models.loader())
    counts = [models.At(steps, lambda *_: backend.calls) for steps in (40, 60, 80, 120)]
    run = models.trainer(tmp_path, [callbacks[1], *counts])
    run.fit(how(compiled, backend), models.loader())
    calls = [count.result for count in counts]
    assert set(callbacks[1].coverage()) == names(plain)
    assert callbacks[1].coverage() == callbacks[0].coverage()
    assert callbacks[1].events == callbacks[0].events == [63]
    assert close(weights(compiled), weights(plain), rtol=0, atol=1e-6)
    assert calls[0] > 0, "nothing was compiled"
    assert calls[0] == calls[1]
    assert calls[2] == calls[3]
    assert calls[3] <= 8
