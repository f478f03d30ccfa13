import math

import pytest
import torch

from sal_lightning import emergence_select
from sal_lightning.emergence.selection import BLOCK, leaders, medoid


def clusters(sizes, d=16, noise=0.2, seed=0):
    """States about orthogonal axes, in a random order, and which axis each belongs to."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes))
    labels = labels[torch.randperm(len(labels), generator=generator)]
    x = torch.eye(d)[labels] + noise / d**0.5 * torch.randn(len(labels), d, generator=generator)
    return x * (0.1 + torch.rand(len(labels), 1, generator=generator)), labels


def one_by_one(states, merge):
    """Leader clustering as it is told: each state in turn joins the nearest leader, or becomes one."""
    u, heads, found = torch.nn.functional.normalize(states, dim=1), [], []
    for i in range(len(u)):
        similar = u[heads] @ u[i]
        if heads and float(similar.max()) >= merge:
            found.append(heads[int(similar.argmax())])
        else:
            heads.append(i)
            found.append(i)
    return found


def by_all_pairs(states, lineages, weight):
    """The member of the largest lineage with the greatest weighted similarity to its members."""
    u = torch.nn.functional.normalize(states, dim=1)
    similar = u @ u.mT * weight
    sizes = {k: float(weight[lineages == k].sum()) for k in lineages.tolist()}
    inside = lineages == max(sizes, key=sizes.get)
    return int((similar * inside).sum(1).where(inside & (weight > 0), -math.inf).argmax()), sizes


@pytest.mark.parametrize("merge", [-1.0, 0.1, 0.3, 0.6, 1.0])
@pytest.mark.parametrize("d", [3, 40])
def test_in_blocks_leaders_are_those_found_one_by_one(d, merge):
    states = torch.randn(BLOCK + 150, d, generator=torch.Generator().manual_seed(d)).double()
    assert leaders(states, merge).tolist() == one_by_one(states, merge)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_clusters_are_lineages_in_any_precision_and_scale(dtype):
    states, labels = clusters([5, 9, 3])
    for scale in (1e-3, 1.0, 1e3):
        found = emergence_select((scale * states).to(dtype))
        assert found.share == pytest.approx(9 / 17)
        assert labels[found.chosen] == 1
        assert all(labels[i] == labels[leader] for i, leader in enumerate(found.lineages.tolist()))
        shares = [n / 17 for n in (5, 9, 3)]
        assert found.entropy == pytest.approx(-sum(p * math.log(p) for p in shares))


@pytest.mark.parametrize("weighted", [False, True])
def test_the_medoid_is_that_of_all_pairs(weighted):
    for seed in range(20):
        states, _ = clusters([7, 4, 6], noise=0.8, seed=seed)
        weight = torch.rand(17, generator=torch.Generator().manual_seed(seed)) if weighted else torch.ones(17)
        lineages = torch.tensor(one_by_one(states, 0.5))
        index, sizes = by_all_pairs(states, lineages, weight)
        found = medoid(states, lineages, weight)
        assert found.share == pytest.approx(max(sizes.values()) / float(weight.sum()))
        similar = torch.nn.functional.cosine_similarity(states[found.chosen], states, dim=1)
        assert found.resonance == pytest.approx(float((similar * weight).sum() / weight.sum()), abs=1e-5)
        if sorted(sizes.values())[-2:] != [max(sizes.values())] * 2:
            assert found.chosen == index


def test_of_two_as_large_the_more_alike_is_chosen():
    loose, tight = torch.tensor([[1.0, 0.6, 0.0], [1.0, -0.6, 0.0]]), torch.tensor([[0.0, 0.1, 1.0], [0.0, -0.1, 1.0]])
    found = medoid(torch.cat([loose, tight]), torch.tensor([0, 0, 2, 2]))
    assert found.chosen == 2
    assert found.share == 0.5


def test_a_voice_of_weight_zero_is_never_chosen():
    states = torch.tensor([[1.0, 0.0], [1.0, 0.01], [0.0, 1.0]])
    assert emergence_select(states, weight=torch.tensor([0.0, 2.0, 1.0])).chosen == 1


def test_alone_alike_zero_and_huge_states_are_allowed():
    assert emergence_select(torch.ones(1, 3))[:3] == (0, 1.0, 0.0)
    assert emergence_select(torch.ones(7, 3)).share == 1.0
    assert emergence_select(torch.tensor([[0.0, 0.0], [1.0, 0.0], [1.0, 0.0]])).chosen == 1
    assert leaders(torch.tensor([[1e38, 0.0], [1e-38, 0.0], [0.0, 3e38]])).tolist() == [0, 0, 2]


def test_what_makes_no_sense_is_refused():
    for states in (torch.ones(3), torch.ones(0, 3), torch.ones(2, 2, dtype=torch.long)):
        with pytest.raises(ValueError, match=r"states to be floats of shape \(n >= 1, d\)"):
            emergence_select(states)
    with pytest.raises(ValueError, match="finite"):
        emergence_select(torch.tensor([[1.0, math.nan]]))
    with pytest.raises(ValueError, match=r"merge to be in \[-1, 1\], got 1.5"):
        emergence_select(torch.ones(2, 2), merge=1.5)
    for weight in (torch.ones(3), torch.tensor([1.0, -1.0]), torch.zeros(2), torch.tensor([1.0, math.inf])):
        with pytest.raises(ValueError, match="weight to be"):
            emergence_select(torch.ones(2, 2), weight=weight)


def test_what_is_no_tensor_is_named():
    with pytest.raises(TypeError, match=r"Expected states to be a tensor of shape .*, got list"):
        emergence_select([[1.0, 0.0], [0.0, 1.0]])
