"""Missing protection is reported by one warning, with its cause and remedy."""

from functools import cache

import lightning as L
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from experiments.language.model import GPT, next_byte
from sal_lightning import CommunicationLayer, SALCallback
from sal_lightning.layers import find
from sal_lightning.rules import subspace
from tests.everywhere import models
from tests.everywhere.models import Net, batch, loader, trainer, weights


class SAM(torch.optim.Optimizer):
    """Sharpness-aware minimization: up along the gradient, then down from where it was by the gradient found there."""

    def __init__(self, params, rho=0.05, base=None):
        super().__init__(params, {"rho": rho})
        self.base_optimizer = base or torch.optim.Adam(self.param_groups, lr=5e-3)
        self.param_groups = self.base_optimizer.param_groups

    @torch.no_grad()
    def first_step(self):
        norm = torch.stack([p.grad.norm() for g in self.param_groups for p in g["params"]]).norm()
        for p in (p for g in self.param_groups for p in g["params"]):
            self.state[p]["old"] = p.data.clone()
            p.add_(p.grad * 0.05 / norm)
        self.zero_grad()

    @torch.no_grad()
    def second_step(self):
        for p in (p for g in self.param_groups for p in g["params"]):
            p.data = self.state[p]["old"]
        self.base_optimizer.step()
        self.zero_grad()

    @torch.no_grad()
    def step(self, closure=None):
        closure = torch.enable_grad()(closure)
        self.first_step()
        closure()
        self.second_step()


def sharp(how, strength, explicit=False, change=25):
    """Trains by SAM, by its two parts or by its step; returns the layer, and how far held answers moved."""
    model = models.mlp()
    optimizer = SAM(list(model.parameters()))
    comm = CommunicationLayer(model, optimizer, consolidate_on=None, strength=strength)
    x, before = batch(0, 999)[0], None
    for i in range(2 * change):
        if i == change:
            comm.consolidate()
            before = model[0](x).detach()

        def loss(i=i):
            inputs, y = batch(int(i >= change), i)
            value = F.mse_loss(model(inputs), y)
            value.backward()
            return value

        loss()
        if explicit:
            comm.analyze()
            comm.protect()
        if how == "parts":
            optimizer.first_step()
            loss()
            optimizer.second_step()
        else:
            optimizer.step(loss)
    comm.settle()
    return comm, models.moved(model[0], x, before)


@cache
def freely(how):
    """How far the same answers move where nothing is held."""
    return sharp(how, 1e-30)[1]


@pytest.mark.slow
@pytest.mark.parametrize("how", ["parts", "step", "parts after the two lines"])
def test_an_optimizer_stepped_by_parts_is_seen_and_protects(how):
    comm, moved = sharp(how.split()[0], 1e6, explicit="lines" in how)
    assert comm.step == 50
    assert comm.events == [25]
    assert moved < 1e-3
    assert freely(how.split()[0]) > 0.05


@pytest.mark.slow
@pytest.mark.parametrize("how", ["parts", "step"])
def test_an_optimizer_with_partial_steps_protects_in_a_lightning_module(tmp_path, how):
    class Sharp(Net):
        def __init__(self):
            super().__init__()
            self.automatic_optimization = False

        def training_step(self, batch, batch_idx):
            optimizer = self.optimizers(use_pl_optimizer=False)

            def loss():
                value = F.mse_loss(self(batch[0]), batch[1])
                self.manual_backward(value)
                return value

            loss()
            if how == "step":
                optimizer.step(loss)
            else:
                optimizer.first_step()
                loss()
                optimizer.second_step()

        def configure_optimizers(self):
            return SAM(list(self.parameters()))

    callback = SALCallback()
    trainer(tmp_path, [callback]).fit(Sharp(), loader(length=48, change=40))
    assert models.steps(callback) == [48]
    assert len(callback.events) == 1
    assert 40 <= callback.events[0] <= 45
    assert callback.spectrum().protected > 0


class Lookahead(torch.optim.Optimizer):
    """Steps another optimizer, and pulls the weights back half of the way every few steps."""

    def __init__(self, inner):
        super().__init__(inner.param_groups, {})
        self.optimizer, self.count = inner, 0
        self.slow = [p.detach().clone() for g in inner.param_groups for p in g["params"]]

    @torch.no_grad()
    def step(self, closure=None):
        self.optimizer.step()
        self.count += 1
        if self.count % 5 == 0:
            for p, slow in zip((p for g in self.optimizer.param_groups for p in g["params"]), self.slow, strict=True):
                slow.lerp_(p, 0.5)
                p.copy_(slow)


class Wrapper:
    """Wraps an optimizer and supports no hooks, as accelerate's wrapper."""

    def __init__(self, optimizer):
        self.optimizer = optimizer

    param_groups = property(lambda self: self.optimizer.param_groups)

    def step(self):
        self.optimizer.step()

    def zero_grad(self):
        self.optimizer.zero_grad()


def accelerated(optimizer):
    accelerate = pytest.importorskip("accelerate")
    return accelerate.Accelerator(cpu=True).prepare_optimizer(optimizer)


@pytest.mark.slow
@pytest.mark.parametrize("wrap", [Lookahead, Wrapper, accelerated])
def test_an_inner_optimizer_is_found(wrap):
    moved = {}
    for strength in (1e6, 1e-30):
        model = models.mlp()
        optimizer = wrap(torch.optim.Adam(model.parameters(), lr=5e-3))
        comm = CommunicationLayer(model, optimizer, consolidate_on=None, strength=strength)
        models.train(model, optimizer, None, batch, task=0, steps=25)
        comm.consolidate()
        x = batch(0, 999)[0]
        before = model[0](x).detach()
        models.train(model, optimizer, None, batch, task=1, steps=25)
        comm.settle()
        moved[strength] = models.moved(model[0], x, before)
        assert comm.step == 50
        assert comm.events == [25]
    assert moved[1e6] < 1e-3 < 0.05 < moved[1e-30]


def test_an_optimizer_without_hooks_is_refused():
    class Bare:
        def __init__(self, params):
            self.param_groups = [{"params": list(params)}]

    model = models.mlp()
    with pytest.raises(TypeError, match=r"take step hooks .*got Bare, which has none"):
        CommunicationLayer(model, Bare(model.parameters()))


class Unhooked(torch.optim.SGD):
    """Updates the weights in a custom method, not in step()."""

    def move(self):
        for group in self.param_groups:
            for p in group["params"]:
                p.data.add_(p.grad, alpha=-0.01)


@pytest.mark.parametrize("mode", [True, False])
@pytest.mark.parametrize("explicit", [True, False])
def test_no_step_seen_is_said_once_after_the_first_passes_of_a_plain_loop(explicit, mode):
    model = models.mlp().train(mode)
    optimizer = Unhooked(model.parameters())
    comm = CommunicationLayer(model, optimizer)

    def train():
        for i in range(40):
            F.mse_loss(model(batch(0, i)[0]), batch(0, i)[1]).backward()
            if explicit:
                comm.analyze()
                comm.protect()
            optimizer.move()
            optimizer.zero_grad()

    with pytest.warns(
        UserWarning, match=r"No optimizer step was observed in \d+ forward .*Unhooked .*Pass the optimizer"
    ) as seen:
        train()
    assert len(seen) == 1


def twice(tmp_path, callback, model, **options):
    for _ in range(2):
        trainer(tmp_path, [callback], **options).fit(model, loader(length=5))


def test_unobserved_steps_warn_once_after_a_short_epoch(tmp_path):
    class Moved(Net):
        def __init__(self):
            super().__init__(optimize=Unhooked)
            self.automatic_optimization = False

        def training_step(self, batch, batch_idx):
            self.manual_backward(super().training_step(batch, batch_idx))
            self.optimizers(use_pl_optimizer=False).move()

    callback = SALCallback()
    with pytest.warns(UserWarning, match=r"No optimizer step was observed in 5 forward passes.*Unhooked") as seen:
        twice(tmp_path, callback, Moved(), max_epochs=2)
    assert len([w for w in seen if "step was observed" in str(w.message)]) == 1


def test_accumulation_over_many_passes_does_not_warn():
    model = models.mlp()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    comm = CommunicationLayer(model, optimizer)
    for i in range(70):
        F.mse_loss(model(batch(0, i)[0]), batch(0, i)[1]).backward()
    optimizer.step()
    assert comm.step == 1


class Functional(Net):
    """Uses the weights of its layers without calling them."""

    def forward(self, x):
        first, _, last = self.net
        return F.linear(F.linear(x, first.weight, first.bias).relu(), last.weight, last.bias)


def test_uncalled_layers_warn_once_over_several_fits(tmp_path):
    callback = SALCallback(field=None)
    with pytest.warns(UserWarning, match=r"No layer was called .*functional_call.*Call the layers") as seen:
        twice(tmp_path, callback, Functional())
    assert len([w for w in seen if "No layer was called" in str(w.message)]) == 1
    assert set(callback.coverage().values()) == {"element"}


class Free(Net):
    """A layer that is written by hand, of free parameters."""

    def __init__(self):
        super().__init__()
        self.memory, self.head = nn.ParameterDict({"first": torch.randn(32, 12) / 4}), nn.Linear(32, 4)

    def forward(self, x):
        return self.head((x @ self.memory["first"].T).relu())


def test_a_majority_of_weights_held_one_by_one_warns_once(tmp_path):
    model, callback = Free(), SALCallback()
    del model.net
    match = r"7\d% of the trained weights are protected one by one.*memory\.first.*Linear, convolution"
    with pytest.warns(UserWarning, match=match) as seen:
        twice(tmp_path, callback, model)
    assert len([w for w in seen if "one by one" in str(w.message)]) == 1
    trainer(tmp_path, [SALCallback("element")]).fit(model, loader(length=5))  # asked for


def thawed_and_frozen(freeze, protection="subspace"):
    """A model of free parameters, a norm and a layer, parts of which are frozen after the first step."""
    torch.manual_seed(0)
    model = nn.ModuleDict({"norm": nn.LayerNorm(32), "head": nn.Linear(32, 4)})
    model["free"] = nn.ParameterDict({"first": torch.randn(32, 12), "second": torch.randn(32, 32)})
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    comm = CommunicationLayer(model, optimizer, protection=protection, consolidate_on=6)
    for i in range(8):
        if i == 1:
            for name in freeze:
                model.get_parameter(name).requires_grad_(False)
        optimizer.zero_grad(set_to_none=False)
        h = batch(0, i)[0] @ model["free"]["first"].T @ model["free"]["second"]
        loss = model["head"](model["norm"](h)).square().mean()
        if loss.requires_grad:
            loss.backward()
        optimizer.step()
    return model, comm


def test_only_trainable_weights_count_as_held_one_by_one():
    """196 are trained then, and 1472 free parameters are not."""
    _, comm = thawed_and_frozen(["free.first", "free.second"])
    assert "elements" not in comm.checks.warnings.given
    match = r"^91% of the trained weights .*: free\.first, free\.second\. This"
    with pytest.warns(UserWarning, match=match):  # 1408 of 1540
        thawed_and_frozen(["norm.weight", "norm.bias"])


@pytest.mark.parametrize("protection", ["subspace", "element", "tensor"])
@pytest.mark.filterwarnings("ignore:.*% of the trained weights are protected one by one")
def test_the_spectrum_and_its_bands_are_of_the_weights_in_training(protection):
    for freeze in (["free.first", "free.second"], ["free.first", "norm.bias", "head.bias"], ["head.weight"]):
        model, comm = thawed_and_frozen(freeze, protection)
        trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
        assert float(comm.collector.coverage.bands().sum()) == pytest.approx(trained)
        assert sum(comm.spectrum()) == pytest.approx(100)


def test_bands_are_empty_when_everything_is_frozen_during_training():
    names = ["free.first", "free.second", "norm.weight", "norm.bias", "head.weight", "head.bias"]
    _, comm = thawed_and_frozen(names)
    assert comm.collector.coverage.bands().tolist() == [0, 0, 0]
    assert comm.spectrum() == (0, 0, 100)
    assert comm.checks.warnings.given == {}


def test_remember_without_a_called_layer_warns(tmp_path):
    model, callback = Functional(), SALCallback(field=None)
    with pytest.warns(UserWarning, match=r"remember\(\) called no layer.*functional_call.*Call the layers") as seen:
        callback.remember(model, loader(length=5))
    assert len([w for w in seen if "layer" in str(w.message)]) == 1
    callback.remember(model, loader(length=5))
    trainer(tmp_path, [callback]).fit(model, loader(length=5))
    assert list(callback.user_warnings.given) == ["not remembered"]
    assert "Warnings   - remember() called no layer" in callback.summary()


# --- at the end of a fit ---


@pytest.mark.slow
def test_an_unreachable_number_of_steps_warns_once(tmp_path):
    callback = SALCallback(consolidate_on=50)
    with pytest.warns(UserWarning, match=r"Nothing is held: consolidate_on=50 is more than the 20 steps") as seen:
        twice(tmp_path, callback, Net(), max_epochs=4)
    assert len([w for w in seen if "consolidate_on=50" in str(w.message)]) == 1
    assert "- Nothing is held: consolidate_on=50" in callback.summary()
    for every in (20, 40):  # in this fit, or in another one as long
        callback = SALCallback(consolidate_on=every)
        trainer(tmp_path, [callback]).fit(Net(), loader(length=20))
        assert callback.user_warnings.given == {}


@pytest.mark.slow
@pytest.mark.parametrize("before", [False, True])
def test_a_jump_without_an_event_warns_once_at_the_end_of_the_fit(tmp_path, before):
    """The jump is set by the test instead of change detection."""
    model, callback = Net(), SALCallback()
    if before:
        callback.remember(model, loader(length=5))
    jump = models.At(10, lambda *_: setattr(callback.layers[0].monitor, "jumped", True))
    held = "only what was consolidated before is held" if before else "nothing is held"
    match = rf"No change of the data was detected in the 20 steps of this fit.*jumped: {held}.*Call consolidate\(\)"
    with pytest.warns(UserWarning, match=match) as seen:
        trainer(tmp_path, [callback, jump]).fit(model, loader(length=20, change=10**6))
    assert len([w for w in seen if "jumped" in str(w.message)]) == 1
    again = models.At(10, lambda *_: setattr(callback.layers[0].monitor, "jumped", True))
    trainer(tmp_path, [callback, again]).fit(model, loader(length=20, change=10**6))
    assert callback.layers[0].monitor.jumped


@pytest.mark.slow
def test_a_jump_with_an_event_or_without_novelty_does_not_warn(tmp_path):
    for trigger in ("novelty", None):
        callback = SALCallback(consolidate_on=trigger)
        jump = models.At(39, lambda *_, one=callback: setattr(one.layers[0].monitor, "jumped", True))
        trainer(tmp_path, [callback, jump]).fit(Net(), loader(length=50, change=40))
        assert callback.user_warnings.given == {}
    assert not callback.events


def after(tmp_path, first, second):
    """Fits a model twice: changed by ``first`` before the first fit, by ``second`` after it; returns the callback."""
    model, callback = Net(), SALCallback(consolidate_on=None)
    first(model)
    trainer(tmp_path, [callback]).fit(model, loader(length=20))
    callback.consolidate()
    second(model)
    trainer(tmp_path, [callback]).fit(model, loader(length=20))
    return callback


def normed(model):
    model.net[0] = Normed(12, 32)


def biases(model):
    model.requires_grad_(False)
    model.net[0].bias.requires_grad_(True)


@pytest.mark.parametrize(
    ("first", "second", "name"),
    [
        (lambda model: None, normed, "net.0.weight"),
        (biases, lambda model: model.requires_grad_(True), "net.0.bias"),
    ],
    ids=["a layer of another kind", "a bias that was trained alone"],
)
def test_loaded_state_of_weights_under_another_rule_is_named(tmp_path, first, second, name):
    with pytest.warns(UserWarning, match="loaded state|one by one|forward pass of their own") as seen:
        callback = after(tmp_path, first, second)
    said = [str(w.message) for w in seen if "loaded state" in str(w.message)]
    assert len(said) == 1
    assert f"although they were trained in this fit: {name}. " in said[0]
    assert "remember()" in said[0]
    assert f"loaded state of weights that another rule covers now: {name};" in callback.summary().replace("\n", " ")


def test_loaded_state_of_frozen_weights_does_not_warn(tmp_path):
    callback = after(tmp_path, lambda model: None, lambda model: model.net[0].requires_grad_(False))
    assert callback.user_warnings.given == {}
    assert "416 frozen weights" in callback.summary()


def test_a_strategy_without_gradients_warns_that_the_state_is_kept():
    notices = SALCallback().user_warnings
    with pytest.warns(UserWarning, match="learned before is kept in its state, and not used in this fit"):
        notices.closed("FSDPStrategy", waiting=True)


class Convolutional(Net):
    def __init__(self):
        torch.manual_seed(0)
        convolutions = nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3, stride=2)
        super().__init__(nn.Sequential(*convolutions, nn.ReLU(), nn.Flatten(), nn.Linear(72, 4)))

    def training_step(self, batch, batch_idx):
        x = torch.randn(16, 1, 8, 8, generator=torch.Generator().manual_seed(batch_idx))
        return F.mse_loss(self(x), x[:, 0, :4, 0])


class Language(Net):
    def __init__(self):
        torch.manual_seed(0)
        super().__init__(GPT(layers=1, width=16, heads=2, context=16))

    def training_step(self, batch, batch_idx):
        chain = torch.randint(0, 3, (16, 17), generator=torch.Generator().manual_seed(batch_idx)).cumsum(1) % 32
        return next_byte(self, chain)


@pytest.mark.slow
@pytest.mark.parametrize("kind", [Net, Convolutional, Language])
def test_a_fit_without_a_change_does_not_warn(tmp_path, kind):
    callback = SALCallback()
    trainer(tmp_path, [callback]).fit(kind(), loader(length=100, change=10**6))
    assert models.steps(callback) == [100]
    assert callback.events == []
    assert callback.user_warnings.given == {}
    assert callback.summary().startswith("Nothing is held: no change of the data was detected in 100 steps.")


# --- layers with a custom forward pass ---


class Normed(nn.Linear):
    def forward(self, x):
        return F.linear(x, F.normalize(self.weight, dim=1), self.bias)


class Standardized(nn.Conv1d):
    def forward(self, x):
        weight = self.weight - self.weight.mean((1, 2), keepdim=True)
        return F.conv1d(x, weight / weight.std((1, 2), keepdim=True), self.bias)


class Prepared(nn.Linear):
    def forward(self, x):
        return super().forward(x.relu())


class Logged(nn.Linear):
    """A Linear with an additional side effect."""

    calls = 0

    def forward(self, x):
        self.calls += 1
        return 0.5 * (x @ self.weight.T + self.bias) + torch.zeros(1)


class Adapted(nn.Linear):
    def __init__(self, *args):
        super().__init__(*args)
        self.down, self.up = nn.Linear(args[0], 2, bias=False), nn.Linear(2, args[1], bias=False)

    def forward(self, x):
        return super().forward(x) + self.up(self.down(x))


def test_only_custom_forward_passes_that_change_the_weight_are_left_out():
    kinds = {"normed": Normed(4, 3), "standardized": Standardized(2, 3, 2), "prepared": Prepared(4, 3)}
    plain = {"logged": Logged(4, 3), "adapted": Adapted(4, 3), "plain": nn.Linear(4, 3), "conv": nn.Conv2d(2, 4, 3)}
    patched = nn.Linear(4, 3)
    patched.forward = lambda x: F.linear(x, patched.weight.sign())
    model, other = nn.ModuleDict(kinds | plain | {"patched": patched}), []
    before, state = weights(model), torch.get_rng_state()
    found = {layer.name for layer in find(model, other)}
    assert found == {*plain, "adapted.down", "adapted.up"}
    assert set(other) == {*kinds, "patched"}
    assert models.equal(weights(model), before)
    assert torch.equal(torch.get_rng_state(), state)
    assert plain["logged"].calls == 0


def test_a_layer_that_normalises_its_weight_is_held_one_by_one_and_named_once(tmp_path):
    class Mixed(L.LightningModule):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.first, self.last = nn.Linear(12, 32), Normed(32, 4)

        def training_step(self, batch, batch_idx):
            return F.mse_loss(self.last(self.first(batch[0]).relu()), batch[1])

        def configure_optimizers(self):
            return torch.optim.Adam(self.parameters(), lr=5e-3)

    model, callback = Mixed(), SALCallback()
    with pytest.warns(UserWarning, match=r"changes their weight or their input.*: last\. .*plain one") as seen:
        twice(tmp_path, callback, model)
    assert len([w for w in seen if "forward pass of their own" in str(w.message)]) == 1
    assert {n for n, grain in callback.coverage().items() if grain == "element"} == {"last.weight", "last.bias"}


# --- weights that are set from outside ---


def held(strength=1e6, settle=3):
    torch.manual_seed(0)
    net, x = nn.Sequential(nn.Linear(4, 4)), torch.randn(60, 8, 4, generator=torch.Generator().manual_seed(0))
    optimizer = torch.optim.SGD(net.parameters(), lr=1e-2)
    comm = CommunicationLayer(net, optimizer, consolidate_on=None, strength=strength)

    def steps(some):
        for inputs in some:
            optimizer.zero_grad()
            net(inputs).square().mean().backward()
            optimizer.step()

    steps(x[:10])
    comm.consolidate()
    steps(x[10 : 10 + settle])
    return net, comm, lambda n: steps(x[20 : 20 + n])


@pytest.mark.slow
@pytest.mark.parametrize("at_once", [("cpu",), ()], ids=["at once", "as on a device that is not waited for"])
@pytest.mark.parametrize(
    ("part", "settle"), [("all", 1), ("all", 15), ("a row", 16), ("rows exchanged", 15), ("the bias", 15)]
)
def test_data_that_is_copied_into_a_held_weight_is_taken_as_set(monkeypatch, part, settle, at_once):
    monkeypatch.setattr(subspace, "AT_ONCE", at_once)
    net, comm, steps = held(settle=settle)
    weight, bias = net[0].weight, net[0].bias
    if part == "all":
        weight.data.copy_(torch.randn(4, 4))
    elif part == "a row":
        weight.data[1] = 1.0
    elif part == "rows exchanged":
        weight.data = weight.data.flip(0).clone()
    else:
        bias.data.fill_(3.0)
    start = weights(net)
    steps(20)
    comm.settle()
    for now, then in zip(weights(net), start, strict=True):
        assert (now - then).norm() < 1e-3 * then.norm()


def test_data_copied_just_before_settle_are_accepted():
    net, comm, _ = held(settle=5)
    net[0].weight.data.copy_(new := torch.randn(4, 4))
    comm.settle()
    assert torch.equal(net[0].weight, new)


def test_weights_changed_and_reset_between_two_steps_count_as_unchanged():
    ended = []
    for swapped in (False, True):
        net, comm, steps = held(strength=4.0)
        for _ in range(10):
            if swapped:
                kept = weights(net)
                with torch.no_grad():
                    for p in net.parameters():
                        p.mul_(2)
                    for p, w in zip(net.parameters(), kept, strict=True):
                        p.copy_(w)
            steps(3)
        ended.append((weights(net), comm.spectrum()))
    assert models.equal(*ended)


class Transposed(nn.Module):
    """The linear layer of GPT-2: its weight is kept as (in, out)."""

    def __init__(self, inputs, out):
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.randn(inputs, out)), nn.Parameter(torch.zeros(out))

    def forward(self, x):
        return x @ self.weight + self.bias


Transposed.__name__ = "Conv1D"
LAYERS = {
    "linear": (lambda: nn.Linear(4, 6), (8, 4)),
    "without bias": (lambda: nn.Linear(4, 6, bias=False), (8, 4)),
    "convolution in groups": (lambda: nn.Conv2d(4, 6, 3, groups=2), (8, 4, 5, 5)),
    "transposed": (lambda: Transposed(4, 6), (8, 4)),
    "double": (lambda: nn.Linear(4, 6).double(), (8, 4)),
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", LAYERS)
def test_a_single_weight_set_through_data_is_accepted(kind):
    torch.manual_seed(0)
    make, shape = LAYERS[kind]
    net = nn.Sequential(make())
    optimizer = torch.optim.SGD(net.parameters(), lr=1e-3)
    comm = CommunicationLayer(net, optimizer, consolidate_on=None, strength=1e6)

    def steps(n):
        for _ in range(n):
            optimizer.zero_grad()
            net(torch.randn(shape, dtype=next(net.parameters()).dtype)).square().mean().backward()
            optimizer.step()

    steps(5)
    comm.consolidate()
    steps(3)
    for p in net.parameters():
        for at in (0, p.numel() - 1):
            p.data.view(-1)[at] += 1.0
            start = weights(net)
            steps(20)
            comm.settle()
            for now, then in zip(weights(net), start, strict=True):
                assert (now - then).norm() < 1e-2
    assert set(comm.coverage().values()) == {"subspace"}
