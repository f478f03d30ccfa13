"""What stands beside SAL does what its papers say."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.methods import METHODS, contender
from benchmarks.penalties import EWC, SI, LwF
from benchmarks.published import Published
from benchmarks.settings import Setting
from benchmarks.steps import enter, fit
from benchmarks.workloads import Workload, mlp

SMALL = {"width": 16, "depth": 1, "heads": 2, "vocab": 31, "context": 8, "sequences": 2}
SETTING = Setting("gpt", **SMALL, warmup=1, settle=1, history=2)


@pytest.fixture
def model() -> Workload:
    torch.manual_seed(0)
    return mlp(Setting("mlp"))


def gradients(model: Workload) -> list[Tensor]:
    model.zero_grad()
    model.training_step(model.batches[0], 0).backward()
    return [p.grad.clone() for p in model.parameters() if p.grad is not None]


def move(model: Workload) -> None:
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn_like(p), alpha=0.01)


@pytest.mark.parametrize("method", METHODS)
def test_every_method_trains(method: str) -> None:
    entry = enter(SETTING, method)
    before = copy.deepcopy(entry.model.net.state_dict())
    lap = fit(entry, 2, SETTING)
    assert len(lap.wall) == len(lap.cpu) == 2
    assert all(p.isfinite().all() and not p.equal(before[n]) for n, p in entry.model.net.named_parameters())
    assert (entry.contender.kept() > 0) == (not method.startswith("plain"))


def test_an_unknown_method_is_refused(model: Workload) -> None:
    with pytest.raises(ValueError, match=r"Expected method to be one of .*got 'magic'"):
        contender("magic", model, 1)


@torch.no_grad()
def test_ewc_adds_the_gradient_of_its_penalty(model: Workload) -> None:
    ewc, W = EWC(model), list(model.parameters())
    with torch.enable_grad():
        G = gradients(model)
    ewc.before_step()
    ewc.consolidate()
    anchor = [p.clone() for p in W]
    move(model)
    with torch.enable_grad():
        whole = gradients(model)
    ewc.before_step()
    for p, g, f, w in zip(W, whole, G, anchor, strict=True):
        torch.testing.assert_close(p.grad, g + ewc.STRENGTH * f.square() * (p - w))


@torch.no_grad()
def test_si_follows_the_path_and_pulls_back(model: Workload) -> None:
    si, W = SI(model), list(model.parameters())
    start = [p.clone() for p in W]
    with torch.enable_grad():
        G = gradients(model)
    si.before_step()
    move(model)
    si.after_step()
    si.consolidate()
    end = [p.clone() for p in W]
    move(model)
    with torch.enable_grad():
        whole = gradients(model)
    si.before_step()
    for p, g, task, a, b in zip(W, whole, G, start, end, strict=True):
        omega = (-task * (b - a)).clamp(min=0) / ((b - a).square() + si.DAMPING)
        torch.testing.assert_close(p.grad, g + 2 * si.STRENGTH * omega * (p - b))


def test_lwf_adds_the_divergence_from_the_first_network(model: Workload) -> None:
    lwf, (x, y) = LwF(model), model.batches[0]
    first = model.net(x)
    lwf.consolidate()
    move(model)
    T, out = lwf.TEMPERATURE, model.net(x)
    p, q = (first / T).softmax(-1), (out / T).log_softmax(-1)
    expected = F.cross_entropy(out, y) - T**2 * (p * q).sum(-1).mean()
    torch.testing.assert_close(model.training_step((x, y), 0), expected)


@torch.no_grad()
def test_published_scales_what_is_stable(model: Workload) -> None:
    published, W = Published(model), list(model.parameters())
    with torch.enable_grad():
        G = gradients(model)
    published.before_step()  # against weights of zero
    with torch.enable_grad():
        assert all(torch.equal(a, b) for a, b in zip(gradients(model), G, strict=True))
    before = list(published.s)
    published.before_step()  # nothing has moved: s_raw is 1
    sizes = torch.stack([g.norm() for g in G])
    tau = (0.5 + 0.1 * sizes.std(correction=0) / sizes.mean()).clamp(0.1, 0.9)
    for i, (p, g) in enumerate(zip(W, G, strict=True)):
        assert published.s[i] == pytest.approx(0.3 + 0.7 * before[i])
        torch.testing.assert_close(p.grad, g * (1 - published.s[i]) if published.s[i] > tau else g)


def test_a_history_beyond_the_memory_is_refused(model: Workload) -> None:
    with pytest.raises(ValueError, match=r"Expected a history of fewer steps.*got 10000000"):
        Published(model, 10_000_000).consolidate()
