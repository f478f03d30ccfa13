import itertools
import math

import pytest
import torch

from sal_lightning import EmergenceField
from sal_lightning.emergence.field import coherence, novelty, resonance


def noise(n=256, d=32, seed=0):
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed))


def cluster(axis, n=16, d=64, spread=0.1, seed=0):
    """States about one axis; ``spread`` is the length of what is not along it."""
    return torch.eye(d)[axis] + spread / d**0.5 * noise(n, d, seed)


# --- what the numbers mean, at points where they are known ---


@pytest.mark.parametrize("d", [16, 64, 512])
@pytest.mark.parametrize("n", [8, 32, 256, 2048])
def test_noise_is_not_coherent_however_few_its_rows(n, d):
    found = [float(coherence(noise(n, d, seed))) for seed in range(10)]
    assert sum(found) / len(found) < 0.05
    assert n == 8 or max(found) < 0.05


def test_shannons_entropy_would_take_few_rows_of_noise_for_a_pattern():
    """Why the entropy is of order 2: this is the same with Shannon's, as a share of the largest possible."""
    x = noise(32, 64)
    p = torch.linalg.svdvals(x).square() / x.square().sum()
    assert 1 - torch.special.entr(p).sum() / math.log(32) > 0.05
    assert coherence(x) < 0.01


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_a_repeated_pattern_is_coherent_and_after_the_first_time_not_new(dtype, scale):
    field, pattern = EmergenceField(), (scale * noise(1).expand(64, -1)).to(dtype)
    first = field.observe(pattern)
    assert first.coherence > 0.95
    assert first.novelty == 1.0
    assert first.emergence
    again = field.observe(pattern)
    assert again.novelty < 0.05
    assert again.resonance > 0.95
    assert not again.emergence


@pytest.mark.parametrize("k", [1, 2, 4, 8, 64])
def test_equal_orthogonal_patterns_have_the_coherence_of_their_number(k):
    x = torch.eye(64)[torch.arange(64 * 200) % k]
    assert coherence(x).item() == pytest.approx(1 - math.log(k) / math.log(64), abs=0.01)


def test_coherence_is_that_of_all_pairs_whichever_product_is_smaller():
    for n, d in ((7, 3), (3, 7), (5, 5), (2, 2)):
        x = noise(n, d, seed=n).double()
        pairs = list(itertools.permutations(range(n), 2))
        alike = sum(float(x[i] @ x[j]) ** 2 for i, j in pairs)
        most = sum(float(x[i] @ x[i]) * float(x[j] @ x[j]) for i, j in pairs)
        expected = min(max(1 + math.log(alike / most) / math.log(d), 0), 1)
        assert coherence(x).item() == pytest.approx(expected)


def test_the_estimate_of_few_rows_has_no_bias():
    """Both sums, averaged over many small batches, are what a very large one has."""
    d, axes = 16, torch.linspace(2, 0.5, 16)
    C = axes.square()
    small = noise(40_000, d).double().view(10_000, 4, d) * axes
    gram = small @ small.mT
    off = ~torch.eye(4, dtype=torch.bool)
    energy = gram.diagonal(dim1=1, dim2=2)
    assert float(gram.square()[:, off].mean()) == pytest.approx(float(C.square().sum()), rel=0.05)
    products = energy[:, :, None] * energy[:, None]
    assert float(products[:, off].mean()) == pytest.approx(float(C.sum()) ** 2, rel=0.02)


def test_coherence_falls_and_novelty_rises_with_the_noise_mixed_in():
    pattern, rest = noise(1, 64, seed=9), noise(64, 64, seed=1)
    field = EmergenceField()
    field.observe(pattern.expand(32, -1))
    mixed = [(1 - share) * pattern + share * rest for share in torch.linspace(0, 1, 11)]
    coherences = [field.measure_coherence(x) for x in mixed]
    novelties = [field.measure_novelty(x) for x in mixed]
    resonances = [field.measure_resonance(x) for x in mixed]
    for a, b in itertools.pairwise(range(11)):
        assert coherences[a] > coherences[b] or coherences[a] == 0
        assert novelties[a] < novelties[b]
        assert resonances[a] > resonances[b]
    assert coherences[0] > 0.95
    assert coherences[-1] < 0.05


@pytest.mark.slow
@pytest.mark.parametrize("d", [32, 64, 300])
def test_a_second_cluster_is_new_at_first_sight_and_not_after_a_hundred_views(d):
    field = EmergenceField()
    for seed in range(100):
        field.observe(cluster(0, d=d, seed=seed))
    seen = field.observe(cluster(1, d=d, seed=100))
    assert seen.novelty > 0.9
    assert seen.resonance < 0.1
    assert seen.emergence
    for seed in range(101, 200):
        field.observe(cluster(1, d=d, seed=seed))
    assert field.measure_novelty(cluster(1, d=d, seed=200)) < 0.1
    assert field.measure_resonance(cluster(1, d=d, seed=200)) > 0.5
    assert field.measure_novelty(cluster(0, d=d, seed=201)) < 0.1  # nor has the first been forgotten


def test_measures_do_not_depend_on_scale_or_rotation():
    rotation = torch.linalg.qr(noise(32, 32, seed=5))[0]
    values = []
    for change in (lambda x: x, lambda x: 1e3 * x, lambda x: 1e-3 * x, lambda x: x @ rotation):
        field = EmergenceField(rank=32)
        field.observe(change(noise(8)))
        values.append(field.measure(change(noise(8, seed=1) + 2 * noise(8))))
    assert 0 < values[0][1] < 1
    for other in values[1:]:
        torch.testing.assert_close(other, values[0], atol=1e-4, rtol=1e-4)


def test_novelty_and_resonance_are_those_of_each_state_by_hand():
    x, U, lam = torch.tensor([[3.0, 4.0, 0.0], [0.0, 0.0, 5.0]]), torch.eye(3)[:, :2], torch.tensor([2.0, 1.0])
    assert novelty(x, U).item() == pytest.approx(25 / 50)
    assert resonance(x, U, lam).item() == pytest.approx((9 + 16 / 2) / 50)


# --- what the field keeps ---


def test_a_field_of_full_rank_is_the_running_second_moment():
    field, R, batches = EmergenceField(rank=6), torch.zeros(6, 6), [noise(20, 6, seed) for seed in range(5)]
    for x in batches:
        field.observe(x)
        R = 0.99 * R + 0.01 * x.mT @ x / len(x)
    lam, U = torch.linalg.eigh(R)
    probe = noise(4, 6, seed=9)
    expected = ((probe @ U).square() * lam / lam[-1]).sum() / probe.square().sum()
    assert field.measure_resonance(probe) == pytest.approx(float(expected), abs=1e-4)


def test_observing_changes_the_field_and_measuring_does_not():
    field = EmergenceField()
    field.measure_novelty(noise())
    assert field.window is None
    field.observe(noise())
    before = field.measure(noise(seed=1))
    field.measure_coherence(noise(seed=2))
    assert torch.equal(field.measure(noise(seed=1)), before)


def test_the_size_of_the_state_is_constant():
    field = EmergenceField()
    sizes = set()
    for seed in range(20):
        field.observe(noise(300, 100, seed))
        sizes.add(sum(x.numel() for x in field.state_dict()["window"].values()))
    assert len(sizes) == 1
    assert sizes.pop() < 100 * 64 + 10


def test_states_of_any_shape_are_rows_of_their_last_dimension():
    one, other = EmergenceField(), EmergenceField()
    x = noise(24, 8)
    assert one.observe(x) == other.observe(x.view(2, 3, 4, 8))
    assert one.observe(x[0]) == other.observe(x[:1])


def test_one_state_alone_is_allowed_and_zeros_and_overflow_too():
    field = EmergenceField()
    assert field.observe(torch.ones(8)).coherence == 1.0
    assert field.observe(torch.zeros(3, 8))[:3] == (0.0, 0.0, 0.0)
    broken = torch.ones(4, 8)
    broken[0, 0], broken[1, 1] = math.inf, math.nan
    assert field.observe(broken)[:2] == pytest.approx((1.0, 0.0), abs=1e-6)
    assert EmergenceField().observe(torch.ones(5, 1)).coherence == 1.0


def test_state_continues_exactly_and_is_plain(tmp_path):
    whole, part, resumed = EmergenceField(), EmergenceField(), EmergenceField()
    resumed.load_state_dict(part.state_dict())
    assert resumed.window is None
    for seed in range(4):
        whole.observe(noise(20, 100, seed))
    for seed in range(2):
        part.observe(noise(20, 100, seed))
    torch.save(part.state_dict(), tmp_path / "field.pt")
    resumed.load_state_dict(torch.load(tmp_path / "field.pt", weights_only=True))
    for seed in range(2, 4):
        resumed.observe(noise(20, 100, seed))
    assert torch.equal(whole.measure(noise(20, 100, 9)), resumed.measure(noise(20, 100, 9)))


def test_what_makes_no_sense_is_refused():
    for rank in (0, 1.5, True):
        with pytest.raises(ValueError, match="rank to be a whole number >= 1"):
            EmergenceField(rank)
    field = EmergenceField()
    for state in (torch.tensor(1.0), torch.ones(2, 3, dtype=torch.long), torch.ones(0, 3)):
        with pytest.raises(ValueError, match=r"state to be floats of shape \(..., d\)"):
            field.observe(state)
    field.observe(torch.ones(2, 3))
    with pytest.raises(ValueError, match="width 3 as before, got 4"):
        field.observe(torch.ones(2, 4))
    with pytest.raises(ValueError, match="rank 64, got that of rank 8"):
        field.load_state_dict(EmergenceField(8).state_dict())
