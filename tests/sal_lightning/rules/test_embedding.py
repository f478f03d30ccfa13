import torch
from torch import nn

from sal_lightning.rules.embedding import EmbeddingRule


def rule_of(table, strength=4.0):
    return EmbeddingRule("table", {"weight": table.weight}, table, strength)


def test_rows_are_held_by_how_often_their_token_came():
    table = nn.Embedding(4, 3)
    rule = rule_of(table)
    for _ in range(10):
        rule.collect((torch.tensor([[0, 0, 0, 1]]),), 0)
        rule.update()
    rule.consolidate()
    lam = torch.tensor([3.0, 1.0, 0.0, 0.0])  # shares 3/4 and 1/4, of mean 1/4
    torch.testing.assert_close(rule.memory.lam, lam)
    (held,) = rule.held([torch.ones(4, 3)])
    torch.testing.assert_close(held, (lam / (lam + 0.25))[:, None].expand(4, 3))
    assert rule.bands().tolist() == [6.0, 0.0, 6.0]


def test_sparse_gradients_are_masked_like_dense_ones():
    grads = []
    for sparse in (True, False):
        torch.manual_seed(0)
        table = nn.Embedding(6, 3, sparse=sparse)
        rule, tokens = rule_of(table), torch.tensor([0, 2, 2, 5])
        rule.collect((tokens,), 0)
        rule.update()
        rule.consolidate()
        (table(tokens) * torch.arange(12.0).view(4, 3)).sum().backward()
        rule.mask()
        grads.append(table.weight.grad.to_dense() if sparse else table.weight.grad)
    torch.testing.assert_close(*grads)


def test_other_tokens_surprise_however_usual_each_of_them_is():
    rule = rule_of(nn.Embedding(10, 2))
    generator = torch.Generator().manual_seed(0)
    for _ in range(30):
        rule.collect((torch.randint(5, (64,), generator=generator),), 0, measured=True)
        usual = rule.surprise
        rule.update()
    rule.refresh()
    shares = (rule.R / rule.weight).tolist()

    def chi2(counts):
        return sum((c / 64 - r) ** 2 / (r + 0.3 / 10) for c, r in zip(counts, shares, strict=True))

    most_usual = int(rule.R.argmax())
    for half in (torch.arange(5, 10).repeat(7)[:32], torch.full((32,), most_usual)):
        rule.collect((half,), 0, measured=True)
        rule.collect((half,), 0, measured=True)
        total, n = rule.surprise
        expected = chi2((2 * half.bincount(minlength=10)).tolist())
        torch.testing.assert_close((total / n).exp(), torch.tensor(expected), atol=1e-5, rtol=1e-4)
        assert total / n > usual[0] / usual[1] + 2
        assert n == 64
        rule.discard_step()
    assert rule.surprise is None


def test_state_continues_exactly():
    table = nn.Embedding(10, 2)
    rule = rule_of(table)
    rule.collect((torch.arange(10),), 0)
    rule.update()
    rule.consolidate()
    resumed = rule_of(table)
    resumed.load_state_dict(rule.state_dict())
    for a, b in zip(rule.tensors(), resumed.tensors(), strict=True):
        assert torch.equal(a, b)
    assert resumed.weight == rule.weight
