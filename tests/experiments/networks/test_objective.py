"""What networks are given and asked for."""

import math

import pytest
import torch

from experiments.networks.objective import example, loss, score
from experiments.networks.streams import Batch


def test_most_networks_are_given_the_images_and_asked_for_the_class():
    batch = Batch(torch.rand(4, 9), torch.tensor([0, 1, 2, 3]))
    given, target = example("mlp", batch, torch.Generator())
    assert given == (batch.x,)
    assert target is batch.y
    out = torch.zeros(4, 10)
    assert float(loss("mlp", out, target)) == pytest.approx(math.log(10))
    assert score("mlp", out + torch.eye(10)[[0, 1, 2, 9]], target) == 0.75


def test_noise_keeps_the_variance_and_its_level_is_told():
    x = torch.randn(20_000, 4, generator=torch.Generator().manual_seed(1))
    y = torch.zeros(len(x)).long()
    (noised, level), target = example("noise-level-first", Batch(x, y), torch.Generator().manual_seed(0))
    assert target is y
    assert 0 <= float(level.min()) < 0.01
    assert 0.99 < float(level.max()) <= 1
    for low in (0.0, 0.5, 0.9):  # the share of the image falls as √(1 − t²)
        part = (level >= low) & (level < low + 0.1)
        kept = float((noised * x)[part].mean())
        assert kept == pytest.approx(float((1 - level[part] ** 2).sqrt().mean()), abs=0.05)
        assert float(noised[part].var()) == pytest.approx(1, abs=0.05)


def test_a_denoiser_is_asked_for_the_noise_and_scored_by_the_share_that_it_explains():
    batch = Batch(torch.rand(50, 16), torch.zeros(50).long())
    (noised, level), noise = example("denoiser", batch, torch.Generator().manual_seed(0))
    t = level[:, None]
    torch.testing.assert_close(noised, (1 - t * t).sqrt() * batch.x + t * noise)
    assert score("denoiser", noise, noise) == 1
    assert score("denoiser", torch.zeros_like(noise), noise) == 0
    assert score("denoiser", noise / 2, noise) == pytest.approx(0.75)
    assert float(loss("denoiser", noise + 2, noise)) == pytest.approx(4)


def test_the_generator_alone_decides_the_noise():
    batch = Batch(torch.rand(3, 4), torch.zeros(3).long())
    first, same, other = (example("denoiser", batch, torch.Generator().manual_seed(seed)) for seed in (0, 0, 1))
    assert torch.equal(first.target, same.target)
    assert torch.equal(first.given[0], same.given[0])
    assert not torch.equal(first.target, other.target)
