"""What the methods do to gradients and weights, against what their formulas say."""

from collections.abc import Callable, Iterable
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from experiments.language import methods
from experiments.language.first import build
from experiments.language.methods import METHODS, Pull, Start, fisher
from experiments.language.model import LanguageModel, next_byte
from experiments.language.stages import batches, train
from tests.experiments.language.common import DOMAINS, SCALE


def start(model: LanguageModel | None = None) -> Start:
    torch.manual_seed(0)
    rows: Iterable[Tensor] = batches(DOMAINS.first, SCALE, 0, 0)
    return Start(model or build(SCALE), rows, {})


class Table(nn.Module):
    """The next byte by the last one alone: its gradients are known in closed form."""

    def __init__(self) -> None:
        super().__init__()
        self.logits = nn.Embedding(256, 256)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.logits(x)
        return logits


def test_the_fisher_of_a_table_is_the_one_in_closed_form() -> None:
    model = LanguageModel(Table(), lr=0.1)
    rows = torch.randint(256, (6, 5))
    table = next(model.parameters()).detach()
    expected = torch.zeros(256, 256)
    for row in rows:
        g = torch.zeros(256, 256)
        for x, y in pairwise(row):
            g[x] += (table[x].softmax(0) - nn.functional.one_hot(y, 256)) / 4
        expected += g.square()
    (found,) = fisher((next_byte(model, row[None]) for row in rows), list(model.learning()))
    assert torch.allclose(found, expected / expected.mean(), atol=1e-4)


def test_the_fisher_of_the_network_is_the_mean_over_single_rows_at_mean_one() -> None:
    model = build(SCALE)
    examples = [batch for batch, _ in zip(batches(DOMAINS.first, SCALE, 0, 0), range(2), strict=False)]
    slow = [torch.zeros_like(p) for p in model.parameters()]
    for row in torch.cat(examples):
        model.zero_grad()
        next_byte(model, row[None]).backward()
        slow = [s + p.grad.square() for s, p in zip(slow, model.parameters(), strict=True) if p.grad is not None]
    mean = torch.cat([s.flatten() for s in slow]).mean()
    pull = methods.ewc(Start(model, examples, {}), 1.0)
    assert isinstance(pull, Pull)
    assert all(torch.allclose(f, s / mean, rtol=1e-4) for f, s in zip(pull.F, slow, strict=True))


def test_a_pull_adds_the_gradient_of_its_penalty() -> None:
    model = build(SCALE)
    F = [torch.rand_like(p) for p in model.parameters()]
    pull = Pull(F, strength=0.3)
    pull.start(model)
    anchor = [p.detach().clone() for p in model.parameters()]
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn_like(p))
    penalty = sum((0.3 / 2 * f * (p - a).square()).sum() for p, a, f in zip(model.parameters(), anchor, F, strict=True))
    expected = torch.autograd.grad(penalty, list(model.parameters()))
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    pull.on_before_optimizer_step(None, model, None)  # type: ignore[arg-type]
    assert all(torch.allclose(p.grad, e) for p, e in zip(model.parameters(), expected, strict=True))


@pytest.mark.slow
@pytest.mark.parametrize("prepare", [methods.l2, methods.sal_remember])
def test_the_stronger_a_method_the_less_the_weights_move(prepare: Callable[..., Any]) -> None:
    moved = []
    for strength in (1e-3, 1.0, 1e3):
        begin = start()
        before = [p.detach().clone() for p in begin.model.parameters()]
        train(begin.model, batches(DOMAINS.second, SCALE, 0, 1), [prepare(begin, strength)])
        moved.append(sum((p - b).norm().item() for p, b in zip(begin.model.parameters(), before, strict=True)))
    assert moved[0] > moved[1] > moved[2]


def test_adapters_change_nothing_at_first_and_learn_alone() -> None:
    begin = start()
    x = torch.randint(256, (2, 9))
    before = begin.model(x)
    kept = {name: p.clone() for name, p in begin.model.net.named_parameters()}
    assert METHODS["lora"].prepare(begin, 4) is None
    assert torch.equal(begin.model(x), before)
    train(begin.model, batches(DOMAINS.second, SCALE, 0, 1), [])
    assert not torch.equal(begin.model(x), before)
    frozen = {name: p for name, p in begin.model.net.named_parameters() if not p.requires_grad}
    plain = {name.removeprefix("base_model.model.").replace(".base_layer", ""): p for name, p in frozen.items()}
    assert all(torch.equal(plain[name], p) for name, p in kept.items())


def test_sal_remembers_on_adapters_alone() -> None:
    begin = start()
    callback = methods.sal_lora(begin, 3.0)
    assert set(callback.coverage()) == {name for name, p in begin.model.named_parameters() if p.requires_grad}
    assert callback.spectrum().volatile < 100
