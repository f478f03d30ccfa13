import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

from sal_lightning import CommunicationLayer, SALCallback
from tests.everywhere import models
from tests.everywhere.models import CHANGE, LENGTH, batch, moved, names, overlapping, same, train

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("protection", ["subspace", "element", "tensor"])
def test_lazy_layers_are_covered_from_the_first_step_that_has_them(tmp_path, protection):
    torch.manual_seed(0)
    model = models.Net(nn.Sequential(nn.LazyLinear(32), nn.ReLU(), nn.LazyLinear(4)))
    callback = SALCallback(protection, consolidate_on=10)
    first = models.At(1, lambda *_: callback.coverage())
    models.trainer(tmp_path, [callback, first]).fit(model, models.loader(length=20))
    assert set(first.result) == names(model)
    assert set(first.result.values()) == {protection}
    assert callback.events == [10, 20]
    assert callback.memory()["model"] == sum(p.nbytes for p in model.parameters())
    if protection != "tensor":
        assert callback.spectrum().protected > 0


def test_lazy_layers_are_held_like_others(tmp_path):
    drift, x = {}, batch(0, 999)[0]
    for consolidate_on in (None, "novelty"):
        torch.manual_seed(0)
        model, before = models.Net(nn.Sequential(nn.LazyLinear(32), nn.ReLU(), nn.LazyLinear(4))), []
        callback = SALCallback(consolidate_on=consolidate_on)
        change = models.At(CHANGE, lambda _, m, b=before: b.append(m(x).detach()))
        models.trainer(tmp_path, [callback, change]).fit(model, models.loader(LENGTH, CHANGE))
        assert callback.events == ([CHANGE + 3] if consolidate_on else [])
        drift[consolidate_on] = moved(model, x, before[0])
    assert drift["novelty"] < 0.5 * drift[None]


class Spectral(nn.Module):
    """Filters its input with complex weights between two Fourier transforms."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.filter = nn.Parameter(torch.randn(7, dtype=torch.complex64))
        self.head = nn.Linear(12, 4)

    def forward(self, x):
        return self.head(torch.fft.irfft(torch.fft.rfft(x) * self.filter, n=12))


@pytest.mark.parametrize("protection", ["subspace", "element"])
def test_complex_weights_are_covered_and_held(tmp_path, protection):
    drift = {}
    for consolidate_on in (None, "novelty"):
        model, callback = models.Net(Spectral()), SALCallback(protection, consolidate_on, strength=100.0)
        change = models.At(CHANGE, lambda _, m: m.net.filter.detach().clone())
        run = models.trainer(tmp_path, [callback, change])
        run.fit(model, models.loader(LENGTH, CHANGE))
        assert set(callback.coverage()) == names(model)
        assert callback.coverage()["net.filter"] == "element"
        drift[consolidate_on] = (model.net.filter - change.result).abs().sum().item()
        run.save_checkpoint(tmp_path / "complex.ckpt")
    assert callback.events == [CHANGE + 3]
    assert drift["novelty"] < 0.2 * drift[None]
    assert "SALCallback" in torch.load(tmp_path / "complex.ckpt", weights_only=True)["callbacks"]


def normed(how):
    model = models.mlp()
    how(model[0])
    how(model[2])
    return model


PARAMETRIZED = [
    parametrizations.weight_norm,
    parametrizations.spectral_norm,
    parametrizations.orthogonal,
    nn.utils.spectral_norm,
]


@pytest.mark.filterwarnings("ignore:.*% of the trained weights are protected one by one")
@pytest.mark.parametrize("protection", ["subspace", "element"])
@pytest.mark.parametrize("how", PARAMETRIZED, ids=lambda how: f"{how.__module__.split('.')[-1]}.{how.__name__}")
def test_watching_parametrized_weights_changes_nothing(how, protection):
    plain, watched = normed(how), normed(how)
    optimizer = torch.optim.Adam(plain.parameters(), lr=5e-3)
    train(plain, optimizer, None, overlapping, task=0, steps=20)
    optimizer = torch.optim.Adam(watched.parameters(), lr=5e-3)
    comm = CommunicationLayer(watched, optimizer, protection=protection)
    comm.coverage(), comm.memory(), comm.spectrum(), comm.state_dict()
    train(watched, optimizer, comm, overlapping, task=0, steps=20)
    assert same(plain, watched)
    assert comm.events == []


@pytest.mark.filterwarnings("ignore:.*% of the trained weights are protected one by one")
@pytest.mark.parametrize("how", PARAMETRIZED, ids=lambda how: f"{how.__module__.split('.')[-1]}.{how.__name__}")
def test_parametrized_weights_are_covered_by_their_true_names_and_held(how):
    drift, x = {}, overlapping(0, 999)[0]
    for held in (False, True):
        model = normed(how)
        optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
        comm = CommunicationLayer(model, optimizer, consolidate_on=None, strength=1e4, pull=0)
        train(model, optimizer, comm, overlapping, task=0, steps=40)
        assert set(comm.coverage()) == names(model)
        if held:
            comm.consolidate()
        before = model.eval()(x).detach()
        train(model.train(), optimizer, comm, overlapping, task=1, steps=40)
        drift[held] = moved(model.eval(), x, before)
    assert drift[True] < 0.3 * drift[False]
