import torch

from sal_lightning import EmergenceField


def noise(n=256, d=32, seed=0):
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed))


def test_noise_is_not_coherent_and_a_repeated_pattern_is():
    field = EmergenceField()
    assert field.measure_coherence(noise(n=4096)) < 0.05
    assert field.measure_coherence(noise(1).expand(64, -1)) > 0.95


def test_a_cluster_is_new_at_first_sight_and_not_after_many():
    field = EmergenceField()
    first, second = torch.zeros(2, 16, 32)
    first[:, 0], second[:, 1] = 1.0, 1.0
    assert field.observe(first).novelty == 1.0
    for _ in range(100):
        field.observe(first)
    seen = field.observe(second)
    assert seen.novelty > 0.9
    assert seen.emergence
    for _ in range(100):
        field.observe(second)
    assert field.measure_novelty(second) < 0.1
    assert field.measure_resonance(second) > 0.3


def test_measures_do_not_depend_on_scale_or_rotation():
    rotation = torch.linalg.qr(noise(32, 32, seed=5))[0]
    values = []
    for change in (lambda x: x, lambda x: 1e3 * x, lambda x: x @ rotation):
        field = EmergenceField(rank=8)
        field.observe(change(noise(8)))
        state = field.observe(change(noise(8, seed=1) + 2 * noise(8)))
        values.append(torch.tensor(state[:3]))
    for other in values[1:]:
        torch.testing.assert_close(other, values[0], atol=1e-4, rtol=1e-4)


def test_observing_changes_the_field_and_measuring_does_not():
    field = EmergenceField()
    field.measure_novelty(noise())
    assert field.window is None
    field.observe(noise())
    assert field.window is not None


def test_one_state_alone_is_allowed_and_zeros_too():
    field = EmergenceField()
    assert field.observe(torch.ones(8)).coherence == 1.0
    assert field.measure_novelty(torch.zeros(8)) == 0.0
    assert field.measure_resonance(torch.zeros(8)) == 0.0
