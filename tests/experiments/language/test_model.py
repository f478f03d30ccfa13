"""The network and its loss."""

import math

import torch

from experiments.language.first import build
from experiments.language.model import GPT, next_byte
from experiments.language.settings import FULL


def test_it_has_the_size_that_is_told() -> None:
    assert sum(p.numel() for p in build(FULL).parameters()) == 875_520


def test_no_byte_sees_what_follows_it() -> None:
    net = GPT(layers=2, width=16, heads=2, context=8)
    x = torch.randint(256, (2, 8))
    changed = x.clone()
    changed[:, 5:] = 7
    before, after = net(x), net(changed)
    assert torch.allclose(before[:, :5], after[:, :5], atol=1e-6)
    assert not torch.allclose(before[:, 5:], after[:, 5:], atol=1e-3)


def test_who_knows_nothing_pays_the_logarithm_of_the_vocabulary() -> None:
    net = GPT(layers=1, width=8, heads=2, context=4)
    torch.nn.init.zeros_(net.head.weight)
    torch.nn.init.zeros_(net.head.bias)
    assert math.isclose(next_byte(net, torch.randint(256, (3, 5))).item(), math.log(256), rel_tol=1e-6)
