"""Training of layers in evaluation mode is observed; evaluation is not."""

import copy
from functools import cache

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

from sal_lightning import CommunicationLayer, SALCallback
from tests.everywhere import models
from tests.everywhere.models import Net, batch, equal, same, trainer
from tests.sal_lightning.nets import loader

pytestmark = pytest.mark.filterwarnings("ignore:Found .* module.* in eval mode")


@cache
def reference():
    """What training in training mode comes to; to be looked at only."""
    model, callback = Net(), SALCallback()
    trainer(None, [callback]).fit(model, loader())
    return model, callback


class Evaluating(Net):
    """In evaluation mode from the start, as Lightning leaves what ``from_pretrained`` returns."""

    def __init__(self, *args):
        super().__init__(*args)
        self.eval()


@pytest.mark.slow
def test_a_model_in_evaluation_mode_is_trained_as_one_in_training_mode_bit_for_bit(tmp_path):
    model, callback = Evaluating(), SALCallback()
    trainer(tmp_path, [callback]).fit(model, loader())
    assert not model.net.training
    plain, expected = reference()
    assert callback.events == expected.events == [43]
    assert same(model, plain)
    assert equal(callback.state_dict(), expected.state_dict())


@pytest.mark.slow
@pytest.mark.parametrize("part", [0, 2])
def test_a_model_half_in_evaluation_mode_is_trained_as_one_in_training_mode(tmp_path, part):
    model, callback = Net(), SALCallback()
    model.net[part].eval()
    trainer(tmp_path, [callback]).fit(model, loader())
    assert callback.events == [43]
    assert same(model, reference()[0])


@pytest.mark.slow
def test_a_frozen_batch_norm_leaves_the_layers_around_it_observed(tmp_path):
    torch.manual_seed(0)
    model, callback = (
        Net(nn.Sequential(nn.Linear(12, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, 4))),
        SALCallback(),
    )
    model.net[1].eval().requires_grad_(False)
    trainer(tmp_path, [callback]).fit(model, loader())
    assert callback.events == [43]
    assert set(callback.coverage().values()) == {"subspace"}


@pytest.mark.slow
@pytest.mark.parametrize("protection", ["subspace", "element"])
def test_remembered_data_are_held_in_a_fit_in_evaluation_mode(tmp_path, protection):
    answers, x = {}, batch(0, 999)[0]
    for kind in (Net, Evaluating):
        model, callback = kind(), SALCallback(protection, consolidate_on=None)
        callback.remember(model, loader(change=10**6), limit=20)
        held, before = callback.spectrum(), model(x).detach()
        trainer(tmp_path, [callback]).fit(model, loader(first=1, change=10**6, length=20))
        assert held.protected > 0
        assert callback.coverage() == dict.fromkeys(models.names(model), protection)
        answers[kind] = callback.spectrum(), models.moved(model, x, before), models.weights(model)
    assert equal(*answers.values())


def test_a_layer_that_is_not_reached_in_a_fit_keeps_what_it_holds(tmp_path):
    class Functional(Net):
        called = True

        def forward(self, x):
            if self.called:
                return self.net(x)
            first, _, last = self.net
            return F.linear(F.linear(x, first.weight, first.bias).relu(), last.weight, last.bias)

    model, callback, x = Functional(), SALCallback(consolidate_on=None, strength=1e6), batch(0, 999)[0]
    callback.remember(model, loader(change=10**6), limit=20)
    held, before = callback.spectrum(), model.net[0](x).detach()
    model.called = False
    with pytest.warns(UserWarning, match="No layer was called"):
        trainer(tmp_path, [callback]).fit(model, loader(first=1, change=10**6, length=40))
    assert callback.spectrum() == held
    assert set(callback.coverage().values()) == {"subspace"}
    assert models.moved(model.net[0], x, before) < 0.01


class Evaluated(Net):
    """Validates with gradients and a backward pass."""

    def validation_step(self, batch, batch_idx):
        with torch.enable_grad():
            self.training_step(batch, batch_idx).backward()
        self.zero_grad(set_to_none=False)


@pytest.mark.slow
@pytest.mark.parametrize("mode", [True, False])
def test_validation_with_a_backward_pass_is_not_observed_in_either_mode(tmp_path, mode):
    model, callback = Evaluated(), SALCallback()
    model.train(mode)
    run = trainer(tmp_path, [callback], val_check_interval=10, inference_mode=False, num_sanity_val_steps=0)
    run.fit(model, loader(), loader(length=5, first=1))
    assert callback.events == [43]
    assert same(model, reference()[0])
    assert equal(callback.state_dict(), reference()[1].state_dict())


# --- loops without a trainer ---


def loop(between=lambda model, i: None, mode=True, make=models.mlp, steps=60, change=40):
    """Trains in this mode, with something between the steps; returns what was learned and the weights."""
    model = make().train(mode)
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    comm = CommunicationLayer(model, optimizer)
    for i in range(steps):
        x, y = batch(int(i >= change), i)
        between(model, i)
        optimizer.zero_grad()
        F.mse_loss(model(x), y).backward()
        optimizer.step()
    comm.detach()
    return comm.events, models.weights(model), comm.state_dict()


def evaluate(model, i):
    """In evaluation mode, with gradients, on data that was never trained on."""
    mode = model.training
    model.eval()(batch(2, i)[0]).square().mean()
    model.train(mode)


def attack(model, i):
    """Inputs moved along their gradient, in evaluation mode: as adversarial examples are made."""
    mode, x = model.training, batch(2, i)[0].requires_grad_()
    torch.autograd.grad(model.eval()(x).square().mean(), [x])
    model.train(mode)


def copied(model, i):
    """A copy includes the hooks of the original."""
    twin = copy.deepcopy(model)
    twin(batch(2, i)[0]).square().mean().backward()


expected_loop = cache(loop)


@pytest.mark.slow
@pytest.mark.parametrize("between", [evaluate, attack, copied])
@pytest.mark.parametrize("mode", [True, False])
def test_passes_between_the_steps_of_a_plain_loop_are_not_observed(between, mode):
    expected = expected_loop()
    assert expected[0] == [43]
    assert equal(loop(between, mode), expected)


class Checkpointed(nn.Sequential):
    reentrant = False

    def forward(self, x):
        for layer in self:
            x = checkpoint(layer, x.requires_grad_() if x.is_leaf else x, use_reentrant=self.reentrant)
        return x


class Reentrant(Checkpointed):
    reentrant = True


@pytest.mark.slow
@pytest.mark.parametrize("kind", [Checkpointed, Reentrant])
def test_recomputation_is_observed_once_in_evaluation_mode(kind):
    make = lambda: kind(*models.mlp())  # noqa: E731
    ended = [loop(mode=mode, make=make, steps=90, change=60) for mode in (False, True)]
    assert equal(*ended)


def test_a_pass_with_a_frozen_weight_and_gradients_taken_by_hand_counts_where_the_weight_is_trained():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 2)).eval()
    model[0].requires_grad_(False)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    comm = CommunicationLayer(model, optimizer, consolidate_on=None)
    for _ in range(3):
        parameters = [p for p in model.parameters() if p.requires_grad]
        gradients = torch.autograd.grad(model(torch.randn(8, 4)).square().mean(), parameters)
        for p, g in zip(parameters, gradients, strict=True):
            p.grad = g
        optimizer.step()
    assert [rule.age for rule in comm.rules] == [3, 3]
    assert [rule.window.weight.item() > 0 for rule in comm.rules] == [True, True]
