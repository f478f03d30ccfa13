"""What is trained has the shape it says and learns."""

import pytest
import torch

from benchmarks.settings import Setting
from benchmarks.workloads import WORKLOADS

TINY = {"width": 16, "depth": 2, "heads": 2, "vocab": 31, "context": 8, "sequences": 2}


@pytest.mark.slow
@pytest.mark.parametrize("workload", WORKLOADS)
def test_a_few_steps_lower_the_loss_of_a_batch(workload: str) -> None:
    torch.manual_seed(0)
    model = WORKLOADS[workload](Setting(workload, **TINY))
    optimizer = model.configure_optimizers()
    losses = []
    for _ in range(6):
        optimizer.zero_grad()
        losses.append(model.training_step(model.batches[0], 0))
        losses[-1].backward()
        optimizer.step()
    assert all(p.grad is not None for p in model.parameters())
    assert losses[-1] < losses[0]


def test_gpt_has_the_size_of_gpt2() -> None:
    with torch.device("meta"):
        model = WORKLOADS["gpt"](Setting("gpt", width=768, depth=12, heads=12, sequences=1, device="meta"))
    assert sum(p.numel() for p in model.parameters()) == 124_439_808


def test_gpt_does_not_look_ahead() -> None:
    torch.manual_seed(0)
    model = WORKLOADS["gpt"](Setting("gpt", **TINY))
    (x, _), *_ = model.batches
    other = x.clone()
    other[:, 5:] = (other[:, 5:] + 1) % 31
    before, after = model.net(x), model.net(other)
    torch.testing.assert_close(before[:, :5], after[:, :5])
    assert not torch.allclose(before[:, 5:], after[:, 5:])


def test_the_optimizer_goes_on_from_fit_to_fit() -> None:
    model = WORKLOADS["mlp"](Setting("mlp"))
    assert model.configure_optimizers() is model.configure_optimizers()


def test_settings_that_make_no_sense_are_refused() -> None:
    with pytest.raises(ValueError, match=r"Expected steps to be a whole number >= 1, got 0\."):
        Setting("mlp", steps=0)
    with pytest.raises(ValueError, match=r"Expected width to be a multiple of heads=6, got 100\."):
        Setting("gpt", width=100)
