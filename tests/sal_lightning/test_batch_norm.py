"""Running statistics of batch normalization once something is held."""

import copy

import pytest
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import nn

from sal_lightning import CommunicationLayer


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(12, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, 4))


def data(i, bright=False, n=32):
    x = torch.rand(n, 12, generator=torch.Generator().manual_seed(i))
    return (2 * x + 1.5 if bright else x), x[:, :4]


def step(model, optimizer, i, bright=False):
    x, y = data(i, bright)
    optimizer.zero_grad()
    F.mse_loss(model(x), y).backward()
    optimizer.step()


def held(make=net, **options):
    model = make()
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    comm = CommunicationLayer(model, optimizer, consolidate_on=None, **options)
    for i in range(60):
        step(model, optimizer, i)
    comm.consolidate()
    return model, optimizer, comm


def statistics(model):
    return [b.clone() for b in model.buffers()]


def equal(one, other):
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def test_statistics_are_updated_before_anything_is_held():
    runs = []
    for watched in (False, True):
        model = net()
        optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
        if watched:
            CommunicationLayer(model, optimizer, consolidate_on=None)
        for i in range(10):
            step(model, optimizer, i)
        runs.append([*model.parameters(), *model.buffers()])
    assert equal(*runs)


def test_statistics_are_kept_once_something_is_held_and_training_normalises_by_them():
    model, optimizer, _ = held()
    before, x = statistics(model), data(99, bright=True)[0]
    torch.testing.assert_close(model(x), copy.deepcopy(model).eval()(x), rtol=1e-4, atol=1e-5)
    for i in range(20):
        step(model, optimizer, i, bright=True)
    assert equal(statistics(model), before)
    assert all(m.training for m in model.modules())
    assert model[1].momentum == 0.1


@pytest.mark.parametrize(
    "norm",
    [nn.BatchNorm2d(4), nn.BatchNorm2d(4, affine=False), nn.InstanceNorm2d(4, affine=True, track_running_stats=True)],
)
def test_the_gradient_is_that_of_the_statistics_as_constants(norm):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(1, 1), norm).double()
    comm = CommunicationLayer(model, torch.optim.SGD(model.parameters(), lr=0.0), consolidate_on=None)
    norm.running_mean.copy_(torch.randn(4))
    norm.running_var.copy_(torch.rand(4) + 0.5)
    comm.consolidate()
    x = torch.randn(3, 4, 5, 5, dtype=torch.double, requires_grad=True)
    to = torch.randn_like(x)
    norm(x).mul(to).sum().backward()
    scale = (norm.running_var + norm.eps).rsqrt()[:, None, None]
    torch.testing.assert_close(x.grad, to * scale)
    if norm.affine:
        normalised = (x.detach() - norm.running_mean[:, None, None]) * scale
        torch.testing.assert_close(norm.weight.grad, (to * normalised).sum((0, 2, 3)))
        torch.testing.assert_close(norm.bias.grad, to.sum((0, 2, 3)))


def digits(classes, bright):
    loaded = load_digits()
    y = torch.tensor(loaded.target)
    x = torch.tensor(loaded.images, dtype=torch.float32)[:, None] / 16
    chosen = torch.isin(y, torch.tensor(classes))
    x, y = x[chosen] * (2 if bright else 1) + (1.5 if bright else 0), y[chosen]
    return x[: len(x) * 3 // 4], y[: len(x) * 3 // 4], x[len(x) * 3 // 4 :], y[len(x) * 3 // 4 :]


@pytest.mark.slow
def test_a_task_with_brighter_images_is_learned_without_forgetting():
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.Conv2d(16, 32, 3, padding=1),
        nn.BatchNorm2d(32),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Linear(128, 10),
    )
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    comm = CommunicationLayer(model, optimizer, consolidate_on=None)
    tasks = [digits(range(5), False), digits(range(5, 10), True)]
    for t, (x, y, _, _) in enumerate(tasks):
        for i in range(120):
            at = torch.randint(len(x), (32,), generator=torch.Generator().manual_seed(1000 * t + i))
            optimizer.zero_grad()
            F.cross_entropy(model(x[at]), y[at]).backward()
            optimizer.step()
        comm.consolidate()
    model.eval()
    accuracies = [(model(x).argmax(1) == y).float().mean().item() for _, _, x, y in tasks]
    assert min(accuracies) > 0.9


def test_the_setting_update_keeps_updating_statistics():
    model, optimizer, _ = held(running_statistics="update")
    before = statistics(model)
    step(model, optimizer, 0, bright=True)
    assert not equal(statistics(model), before)


def test_statistics_are_suspended_during_a_suspicion_and_resumed_after_it():
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    comm = CommunicationLayer(model, optimizer)
    for i in range(60):
        step(model, optimizer, i)
    assert comm.events == []
    before = statistics(model)
    x, y = data(0)
    F.mse_loss(model(20 * x), y).backward()
    optimizer.step()
    assert comm.monitor.provisional.before is not None
    assert equal(statistics(model), before)
    for i in range(60, 80):
        step(model, optimizer, i)
    assert comm.events == []
    assert comm.monitor.provisional.before is None
    assert not equal(statistics(model), before)


def test_statistics_recomputed_without_gradients_are_accepted():
    model, _, _ = held()
    torch.optim.swa_utils.update_bn([data(i, True)[0] for i in range(5)], model)
    assert model[1].num_batches_tracked == 5
    assert model[1].running_mean.abs().sum() > 0


def test_a_layer_that_is_added_runs_until_the_next_consolidation_and_a_state_says_which_are_kept():
    model, optimizer, comm = held()
    model.append(nn.BatchNorm1d(4))
    optimizer.add_param_group({"params": list(model[4].parameters())})
    other = CommunicationLayer(model, optimizer, consolidate_on=None)
    comm.detach()
    other.load_state_dict(comm.state_dict())
    before = statistics(model[1]), statistics(model[4])
    step(model, optimizer, 0)
    assert equal(statistics(model[1]), before[0])
    assert not equal(statistics(model[4]), before[1])
    other.consolidate()
    before = statistics(model[4])
    step(model, optimizer, 1)
    assert equal(statistics(model[4]), before)


def test_the_layer_is_unchanged_after_an_exception_and_after_detach():
    model, _, comm = held()
    before, momentum = statistics(model), model[1].momentum
    model[1].register_forward_pre_hook(lambda module, args: args[0][:, :7])
    with pytest.raises(RuntimeError):
        model(data(0)[0])
    comm.detach()
    assert equal(statistics(model), before)
    assert model[1].momentum == momentum
    assert model[1].training
    assert not model[1]._forward_hooks


def test_an_empty_batch_and_half_precision_pass():
    model, *_ = held()
    assert model[1](torch.zeros(0, 32)).shape == (0, 32)
    with torch.autocast("cpu", torch.bfloat16):
        assert model(data(0)[0]).dtype == torch.bfloat16


def test_two_passes_before_the_backward_pass_are_normalised_separately():
    model, optimizer, _ = held()
    x, y = data(0)
    found = []
    for together in (True, False):
        optimizer.zero_grad()
        losses = [F.mse_loss(model(part), target) for part, target in ((x, y), (2 * x, y))] if together else []
        for i in range(2):
            (losses[i] if together else F.mse_loss(model((i + 1) * x), y)).backward()
        found.append([p.grad.clone() for p in model.parameters()])
    assert equal(*found)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
def test_a_compiled_model_gives_the_same_result():
    found = []
    for compiled in (False, True):
        model, optimizer, _ = held()
        run = torch.compile(model, backend="eager") if compiled else model
        for i in range(5):
            x, y = data(i, bright=True)
            optimizer.zero_grad()
            F.mse_loss(run(x), y).backward()
            optimizer.step()
        found.append([*model.parameters(), *model.buffers()])
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b)


def test_an_invalid_setting_is_refused():
    with pytest.raises(ValueError, match=r"running_statistics.*'keep', 'update'.*'freeze'"):
        held(running_statistics="freeze")
