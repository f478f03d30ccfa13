import torch
from torch import nn

from tests.sal_lightning.rules.subspaces import inputs, make, show


def test_state_continues_exactly():
    module = nn.Linear(10, 6)
    whole, part = make(module), make(module)
    for rule in (whole, part):
        show(rule, inputs(10))
        rule.consolidate()
    resumed = make(module)
    resumed.load_state_dict(part.state_dict())
    for rule in (whole, resumed):
        show(rule, inputs(10, seed=3), steps=9)
    for a, b in zip(whole.tensors(), resumed.tensors(), strict=True):
        assert torch.equal(a, b)
    assert resumed.age == whole.age


def test_movement_that_is_not_restored_yet_is_saved_and_restored_after_loading():
    torch.manual_seed(0)
    module = nn.Linear(10, 6)
    rule, resumed = make(module, recall=0.0), make(module, recall=0.0)
    show(rule, inputs(10))
    rule.consolidate()
    before = module(inputs(10)).detach()
    rule.snapshot()
    with torch.no_grad():
        module.weight.add_(0.1)
    rule.restore()
    resumed.load_state_dict(rule.state_dict())
    moved = (module(inputs(10)) - before).norm()
    resumed.settle()
    assert (module(inputs(10)) - before).norm() < 0.8 * moved
