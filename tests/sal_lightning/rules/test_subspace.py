import pytest
import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile

from sal_lightning.input_sketch import InputSketch
from sal_lightning.rules import firmness, input_rule, subspace
from tests.sal_lightning.rules.subspaces import inputs, make, narrow, restore, show


class Twin:
    """The rule of one linear layer written plainly: whole matrices, one line an equation."""

    def __init__(self, W, C, rank, mask, strength, recall):
        d = len(C)
        lam, U = torch.linalg.eigh(C.double())
        lam, U = lam.flip(0)[:rank].float(), U.flip(1)[:, :rank].float()
        rest = (d - lam.sum()) / (d - rank)
        alpha = 1 / strength
        firm = lam > rest
        U, lam, rank = U[:, firm], lam[firm], int(firm.sum())
        s_rest = rest / (rest + alpha * firmness.LEAST)
        self.s = (lam / (lam + alpha)).clamp(min=s_rest)
        self.S = U @ torch.diag(self.s) @ U.T + s_rest * (torch.eye(d) - U @ U.T)
        V, v = U[:, :mask], self.s[:mask]
        self.S_mask = V @ torch.diag((v - s_rest) / (1 - s_rest)) @ V.T
        self.U, self.s_rest, self.recall, self.size = U, s_rest, recall, (W @ U).norm()
        self.A, self.E, self.paths, self.waited = W @ U, torch.zeros(len(W), rank), [], 0

    def mask(self, G):
        return G - G @ self.S_mask

    def restore(self, before, after):
        W = after - self.s_rest * (after - before)
        self.waited = (self.waited + 1) % subspace.SETTLE
        if self.waited:
            return W
        rate = min(float(self.recall * torch.stack(self.paths).mean() / self.size), 1.0) if self.paths else 0.0
        moved = (W @ self.U - self.A) / (1 - self.s_rest)  # what the steps would have done alone
        self.paths.append(moved.norm())
        E = self.E + moved * (1 - self.s)
        pull = rate * E * self.s
        self.E = E - pull
        A = self.A + moved * (1 - self.s) - pull
        W, self.A = W + (A - W @ self.U) @ self.U.T, A
        return W


@pytest.mark.parametrize("optimizer", [torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW], ids=lambda o: o.__name__)
@pytest.mark.parametrize("bias", [True, False])
def test_the_rule_matches_its_plain_twin_on_one_gradient_stream(optimizer, bias, monkeypatch):
    narrow(monkeypatch)
    torch.manual_seed(0)
    module = nn.Linear(10, 6, bias=bias)
    rule, x = make(module), inputs(10)
    rule.window = InputSketch(rule.d, rule.d, input_rule.BETA)  # a window that keeps more than is held
    show(rule, x)
    sketch = rule.window.rows()[0]
    C = sketch.T @ sketch
    rule.consolidate()
    matrix = lambda w, b: torch.cat([w, b[:, None]], 1) if bias else w  # noqa: E731
    weights = lambda: matrix(*(p.detach() for p in module.parameters()), *([] if bias else [None])).clone()  # noqa: E731
    grads = lambda: matrix(*(p.grad for p in module.parameters()), *([] if bias else [None])).clone()  # noqa: E731
    twin = Twin(weights(), C, rule.rank, 4, 4.0, 0.5)
    steps = optimizer(module.parameters(), lr=0.1)
    for i in range(30):
        module.zero_grad()
        (module(inputs(10, seed=i + 1)) - 1).square().mean().backward()
        G = grads()
        rule.mask()
        torch.testing.assert_close(grads(), twin.mask(G), atol=1e-5, rtol=1e-4)
        W = weights()
        rule.snapshot()
        steps.step()
        after = weights()
        restore(rule)
        torch.testing.assert_close(weights(), twin.restore(W, after), atol=2e-5, rtol=1e-4)
    E = rule.memory.E[0] @ rule.memory.U[0].T  # the sign of a direction is free
    torch.testing.assert_close(E, twin.E @ twin.U.T, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize(
    "module",
    [nn.Conv1d(4, 6, 3), nn.Conv2d(4, 6, 3, groups=2), nn.Conv2d(4, 4, 3, groups=4, bias=False)],
    ids=["1d", "grouped", "depthwise"],
)
def test_outputs_on_past_data_hold_while_the_weights_move(module):
    torch.manual_seed(0)
    shape = (64, 4, *([8] * (module.weight.dim() - 2)))
    past = torch.randn(64, 4, *[1] * (len(shape) - 2)).expand(shape)  # even images: few directions to hold
    rule = make(module, strength=1e6, recall=0.0)
    show(rule, past)
    rule.consolidate()
    before, start = module(past).detach(), module.weight.detach().clone()
    optimizer = torch.optim.Adam(module.parameters(), lr=0.01)
    for _ in range(20):
        module.zero_grad()
        (module(torch.randn(shape)) - 1).square().mean().backward()
        rule.mask()
        rule.snapshot()
        optimizer.step()
        rule.restore()
    rule.settle()
    assert (module(past) - before).norm() < 1e-2 * before.norm()
    assert (module.weight - start).norm() > 1e-2 * start.norm()


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
def test_weights_of_other_precisions_keep_their_dtype_and_change_alike(dtype):
    torch.manual_seed(0)
    changes = []
    for d in (torch.float32, dtype):
        torch.manual_seed(0)
        module = nn.Linear(10, 6).to(d)
        rule, x = make(module), inputs(10).to(d)
        show(rule, x)
        rule.consolidate()
        before = module.weight.detach().clone()
        rule.snapshot()
        with torch.no_grad():
            module.weight.add_(torch.ones_like(module.weight))
        rule.restore()
        assert module.weight.dtype == d
        changes.append((module.weight.detach() - before).float())
    torch.testing.assert_close(changes[0], changes[1], atol=2e-2, rtol=0)


def test_recall_takes_noise_back_and_zero_recall_does_not():
    drifts = []
    for recall in (0.0, 2.0):
        torch.manual_seed(0)
        module = nn.Linear(10, 6)
        rule = make(module, recall=recall)
        show(rule, inputs(10))
        rule.consolidate()
        for p in module.parameters():
            p.grad = torch.zeros_like(p)
        for _ in range(304):
            rule.snapshot()
            with torch.no_grad():
                for p in module.parameters():
                    p.add_(0.05 * torch.randn_like(p))
            restore(rule)
        moved, size = rule.drift()
        drifts.append(float((moved / size).sqrt()))
    assert drifts[1] < 0.6 * drifts[0]


def test_drift_is_the_movement_of_the_outputs_on_past_data(monkeypatch):
    narrow(monkeypatch, rank=10)
    torch.manual_seed(0)
    module = nn.Linear(10, 6, bias=False)
    rule, x = make(module), inputs(10, n=128)
    show(rule, x)
    rule.consolidate()
    U = rule.memory.U[0]
    x = x @ U @ U.T
    before = module(x).detach()
    for _ in range(5):
        rule.snapshot()
        with torch.no_grad():
            module.weight.add_(0.05 * torch.randn_like(module.weight))
        rule.restore()
    rule.settle()
    moved, size = rule.drift()
    expected = (module(x) - before).norm() / module(x).norm()
    torch.testing.assert_close((moved / size).sqrt(), expected.detach(), atol=1e-4, rtol=1e-3)


def test_bands_count_every_weight_once():
    rule = make(nn.Linear(10, 6))
    assert rule.bands().tolist() == [0, 0, 66]
    show(rule, inputs(10))
    rule.consolidate()
    bands = rule.bands()
    assert bands.sum() == 66
    assert bands[0] >= 6  # one strong direction, six outputs


def test_before_anything_is_held_the_rule_does_nothing():
    module = nn.Linear(4, 2)
    rule = make(module)
    module(torch.ones(3, 4)).sum().backward()
    G = module.weight.grad.clone()
    rule.mask()
    rule.snapshot()
    assert rule.before is None
    assert torch.equal(module.weight.grad, G)


def test_measured_shares_are_those_of_the_norms():
    module = nn.Linear(10, 6)
    rule = make(module)
    show(rule, inputs(10))
    rule.consolidate()
    module(inputs(10, seed=5)).square().sum().backward()
    whole = torch.cat([p.grad.flatten() for p in module.parameters()]).clone()
    held, total = rule.mask(measure=True)
    passed = torch.cat([p.grad.flatten() for p in module.parameters()])
    torch.testing.assert_close(total, whole.square().sum())
    torch.testing.assert_close(held, (whole - passed).square().sum())


def test_rank_follows_the_layer_and_has_a_cap():
    assert make(nn.Linear(300, 2, bias=False)).rank == int(subspace.RANK * 300)
    assert make(nn.Linear(5000, 2)).rank == subspace.MAX_RANK
    assert make(nn.Linear(60, 2)).rank == subspace.MIN_RANK
    assert make(nn.Linear(8, 2)).rank == 9


@pytest.mark.slow
def test_a_wide_layer_never_forms_a_square_matrix():
    d = 5000
    module = nn.Linear(d, 4, bias=False)
    rule, x = make(module), torch.randn(300, d) / torch.arange(1, d + 1).sqrt()
    module.weight.grad = torch.randn(4, d)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        for _ in range(2):
            show(rule, x, steps=input_rule.DENSE)
            rule.collect((x,), 0, measured=True)
            rule.consolidate()
            rule.mask()
            rule.snapshot()
            rule.restore()
            rule.settle()
            rule.drift()
            rule.clear()
    largest = max(e.nbytes() for e in seen.profiler.kineto_results.events() if e.name() == "[memory]")
    assert rule.memory.s.shape[-1] > 0.7 * subspace.MAX_RANK
    assert largest < d * d * 4 / 5


@pytest.mark.parametrize("period", [2, 4, 8])
def test_a_layer_that_runs_in_some_steps_only_is_looked_at_all_the_same(period):
    for offset in range(period):
        rule = make(nn.Linear(8, 4))
        show(rule, inputs(8), steps=input_rule.DENSE)
        before = rule.window.weight.clone()
        for step in range(128):
            if step % period == offset and rule.due:
                rule.collect((inputs(8, seed=1),), step)
            rule.update()
        assert rule.window.weight > before


def test_a_step_goes_as_far_as_the_gradient_asks(monkeypatch):
    narrow(monkeypatch)
    torch.manual_seed(0)
    module = nn.Linear(10, 6, bias=False)
    rule = make(module)
    show(rule, inputs(10))
    rule.consolidate()
    rule.demand.q = torch.tensor(0.25)
    found = rule.memory.directions
    rest = found.lam[0, rule.memory.f.shape[1] :].sum() + found.rest[0] * (10 - found.lam.shape[1])
    mean = rest / (10 - rule.memory.f.shape[1])
    passes = 1 - mean / (mean + firmness.LEAST / (4.0 / 0.25))  # as with four times the strength
    before = module.weight.detach().clone()
    rule.snapshot()
    with torch.no_grad():
        module.weight.add_(torch.ones_like(before))
    held, whole = rule.restore(measure=True)
    torch.testing.assert_close(module.weight.detach(), before + passes)
    rule.settle()
    kept = (before + 1 - module.weight.detach()).square().sum()
    torch.testing.assert_close(held / whole, kept / before.numel())


def test_gradients_are_seen_in_the_steps_that_are_looked_at():
    torch.manual_seed(0)
    module = nn.Linear(10, 6)
    rule, x = make(module), inputs(10)
    rule.clear()
    seen, weights = [], []
    for step in range(80):
        module.zero_grad()
        (module(x) - step).square().mean().backward()
        rule.collect((x,), step)
        if rule.due:
            batches = 1 if step < input_rule.DENSE else input_rule.EVERY
            weights = [w * input_rule.BETA**batches for w in weights] + [1 - input_rule.BETA**batches]
            seen.append(torch.cat([p.grad.flatten() for p in module.parameters()]).square().sum() / 4)
        rule.update(unit=2.0)
        rule.adapt_hold()
    w = torch.tensor(weights)
    torch.testing.assert_close(rule.demand.sum / rule.demand.weight, (w * torch.stack(seen)).sum() / w.sum())
    assert len(seen) == input_rule.DENSE + 80 // input_rule.EVERY - 1
