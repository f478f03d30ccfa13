import copy
import gc
import weakref

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from sal_lightning import CommunicationLayer
from tests.sal_lightning.tasks import net, train


def test_steps_without_gradients_and_evaluation_are_not_observed():
    model = net()
    optimizer = torch.optim.Adam(model.parameters())
    comm = CommunicationLayer(model, optimizer)
    comm.analyze()
    comm.protect()
    optimizer.step()
    model.eval()
    model(torch.randn(4, 12))
    model.train()
    with torch.no_grad():
        model(torch.randn(4, 12))
    assert comm.step == 0
    assert not comm.collector.inputs.now


def test_a_detached_layer_does_not_affect_the_model():
    model = net()
    optimizer = torch.optim.Adam(model.parameters())
    comm = CommunicationLayer(model, optimizer)
    comm.detach()
    plain = copy.deepcopy(model)
    train(model, optimizer, 0, 10)
    train(plain, torch.optim.Adam(plain.parameters()), 0, 10)
    for a, b in zip(model.parameters(), plain.parameters(), strict=True):
        assert torch.equal(a, b)
    assert not model[0]._forward_pre_hooks


@pytest.mark.slow
def test_attention_is_protected_like_other_projections():
    torch.manual_seed(0)
    model = nn.TransformerEncoderLayer(12, 2, 24, dropout=0.0, batch_first=True)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    comm = CommunicationLayer(model, optimizer, consolidate_on=None, strength=1e5)
    past = [torch.randn(8, 5, 2) @ torch.randn(2, 12, generator=torch.Generator().manual_seed(1)) for _ in range(60)]
    for x in past:
        optimizer.zero_grad()
        model(x).square().mean().backward()
        comm.analyze()
        comm.protect()
        optimizer.step()
    comm.consolidate()
    query = lambda x: F.linear(x, model.self_attn.in_proj_weight, model.self_attn.in_proj_bias).detach()  # noqa: E731
    before, start = query(past[0]), model.self_attn.in_proj_weight.detach().clone()
    for _ in range(50):
        optimizer.zero_grad()
        (model(torch.randn(8, 5, 12)) - 1).square().mean().backward()
        comm.analyze()
        comm.protect()
        optimizer.step()
    moved = (model.self_attn.in_proj_weight - start).norm() / start.norm()
    assert (query(past[0]) - before).norm() / before.norm() < 0.1 * moved


def test_a_detached_layer_is_freed_immediately():
    model = net()
    optimizer = torch.optim.Adam(model.parameters())
    comm = CommunicationLayer(model, optimizer)
    train(model, optimizer, 0, 1, comm)
    comm.detach()
    kept = weakref.ref(comm)
    gc.disable()  # the layer and its model must be freed without the garbage collector
    try:
        del comm
        assert kept() is None
    finally:
        gc.enable()
