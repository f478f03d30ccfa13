"""What stands beside SAL does what its papers say."""

import copy

import pytest
import torch
from torch import Tensor

from benchmarks.methods import METHODS, contender
from benchmarks.published import Published
from benchmarks.settings import Setting
from benchmarks.steps import enter, fit
from benchmarks.workloads import Workload, mlp

SMALL = {"width": 16, "depth": 1, "heads": 2, "vocab": 31, "context": 8, "sequences": 2}
SETTING = Setting("gpt", **SMALL, warmup=1, settle=1, lead=1, history=2)


@pytest.fixture
def model() -> Workload:
    torch.manual_seed(0)
    return mlp(Setting("mlp"))


def gradients(model: Workload) -> list[Tensor]:
    model.zero_grad()
    model.training_step(model.batches[0], 0).backward()
    return [p.grad.clone() for p in model.parameters() if p.grad is not None]


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_every_method_trains(method: str) -> None:
    entry = enter(SETTING, method)
    before = copy.deepcopy(entry.model.net.state_dict())
    lap = fit(entry, 2, SETTING)
    assert len(lap.wall) == len(lap.cpu) == 2
    assert all(p.isfinite().all() and not p.equal(before[n]) for n, p in entry.model.net.named_parameters())
    assert (entry.contender.kept() > 0) == (not method.startswith("plain"))


def test_an_unknown_method_is_refused() -> None:
    with pytest.raises(ValueError, match=r"Expected method to be one of .*got 'magic'"):
        contender("magic", 1)


@torch.no_grad()
def test_published_scales_what_is_stable(model: Workload) -> None:
    published, W = Published(), list(model.parameters())
    published.start(model)
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
    published = Published(10_000_000)
    published.start(model)
    with pytest.raises(ValueError, match=r"Expected a history of fewer steps.*got 10000000"):
        published.end_task()
