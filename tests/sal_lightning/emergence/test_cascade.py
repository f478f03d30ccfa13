import math

import pytest
import torch

from sal_lightning import PulseCascade, emergence_select
from sal_lightning.emergence.cascade import agreement


def still(states):
    return states


def measure(coherence, novelty):
    """The same for all."""
    return lambda states: (torch.full((len(states),), coherence), torch.full((len(states),), novelty))


CALM = measure(1.0, 0.0)  # nothing expires and nothing splits
AXES = torch.eye(8)


def attract(centres, rate=0.3):
    """Every state is drawn towards the nearest of some centres."""

    def evolve(states):
        nearest = torch.nn.functional.normalize(states, dim=1) @ centres.mT
        return states + rate * (centres[nearest.argmax(1)] - states)

    return evolve


def run(seed=3, generations=6, **options):
    """A lively cascade: everything happens in it."""
    noise = torch.Generator().manual_seed(seed)
    cascade = PulseCascade(max_pulses=24, generator=torch.Generator().manual_seed(seed), **options)
    cascade.initiate(torch.randn(12, 8, generator=noise))
    for _ in range(generations):
        cascade.step(attract(AXES[:3]), lambda x: (torch.rand(len(x), generator=noise), agreement(x)[1]))
    return cascade


def test_similar_pulses_merge_into_the_oldest_with_their_mean_state():
    cascade = PulseCascade(merge=0.9)
    cascade.initiate(torch.tensor([[1.0, 0.0], [0.0, 1.0], [3.0, 0.3]]))
    assert cascade.step(still, CALM)
    first, second, third = cascade.pulses
    assert (first.fate, second.fate, third.fate) == ("alive", "alive", "merged")
    assert (third.into, third.ended, third.weight, third.state) == (0, 1, 1.0, None)
    torch.testing.assert_close(first.state, torch.tensor([2.0, 0.15]))
    assert first.weight == 2.0
    found = cascade.emerge()
    assert (found.pulse.number, found.share) == (0, pytest.approx(2 / 3))
    assert found.lineage == cascade.lineages[0]
    assert found.lineage.weights == (1.0, 2.0)


def test_the_coherent_and_novel_split_and_share_their_voice():
    cascade = PulseCascade(spread=1.0)
    cascade.initiate(AXES[:2])
    cascade.step(still, lambda x: (torch.tensor([0.6, 0.9]), torch.tensor([0.4, 0.3])))
    assert [(p.parent, p.lineage, p.born, p.weight) for p in cascade.pulses] == [
        (None, 0, 0, 0.5),
        (None, 1, 0, 1.0),
        (0, 0, 1, 0.5),
    ]
    away = cascade.pulses[2].state - cascade.pulses[0].state
    assert away.norm() == pytest.approx(1.0)
    assert [x.pulses for x in cascade.lineages] == [(0, 2), (1,)]


def test_the_incoherent_expire_but_where_all_are_nobody_has_to_go():
    cascade = PulseCascade(expire=0.5)
    cascade.initiate(AXES[:3])
    cascade.step(still, lambda x: (torch.tensor([0.5, 0.4, 0.9]), torch.zeros(3)))
    assert [p.fate for p in cascade.pulses] == ["alive", "expired", "alive"]
    assert cascade.lineages[1].weights == (1.0, 0.0)
    cascade.step(still, measure(0.1, 0.0))
    assert [p.fate for p in cascade.pulses] == ["alive", "expired", "alive"]


def test_numbers_of_pulses_and_generations_are_bounded():
    cascade = PulseCascade(max_pulses=5, max_generations=3)
    cascade.initiate(AXES[:3])
    for _ in range(3):
        assert cascade.step(still, measure(1.0, 1.0))
    before = cascade.pulses
    assert sum(p.fate == "alive" for p in before) == 5
    assert not cascade.step(still, measure(1.0, 1.0))
    assert cascade.generation == 3
    assert len(cascade.pulses) == len(before)
    assert [p.parent for p in before[3:5]] == [0, 1]  # the oldest, where there is no room for all


def test_every_pulse_can_be_traced_to_a_first_one_and_no_voice_is_lost():
    cascade = run()
    pulses = cascade.pulses
    fates = [p.fate for p in pulses]
    assert {"alive", "merged", "expired"} == set(fates)
    assert any(p.parent is not None for p in pulses)
    for p in pulses:
        root = p
        while root.parent is not None:
            assert pulses[root.parent].born < root.born
            root = pulses[root.parent]
        assert root.number == p.lineage
        assert (p.ended is None) == (p.fate == "alive") == (p.state is not None)
        assert (p.into is not None) == (p.fate == "merged")
        if p.into is not None:
            assert p.into < p.number
            heir = pulses[p.into]
            assert heir.ended is None or heir.ended > p.ended
    assert sorted(n for x in cascade.lineages for n in x.pulses) == list(range(len(pulses)))
    expired = [sum(p.weight for p in pulses if p.fate == "expired" and p.ended <= g) for g in range(7)]
    voices = [sum(x.weights[g] for x in cascade.lineages) for g in range(7)]
    assert [a + b for a, b in zip(expired, voices, strict=True)] == pytest.approx([12.0] * 7)
    assert sum(p.weight for p in pulses if p.fate == "alive") == pytest.approx(voices[-1])


def test_runs_are_reproducible_and_differ_between_seeds():
    facts = [
        [(p[:-1], p.state.tolist() if p.state is not None else None) for p in run(seed).pulses] for seed in (3, 3, 4)
    ]
    assert facts[0] == facts[1] != facts[2]


def test_begun_from_one_state_pulses_are_about_it():
    cascade = PulseCascade(spread=0.2)
    cascade.initiate(2 * AXES[0], pulses=10)
    states = torch.stack([p.state for p in cascade.pulses])
    torch.testing.assert_close((states - 2 * AXES[0]).norm(dim=1), torch.full((10,), 0.4))
    assert [x.weights for x in cascade.lineages] == [(1.0,)] * 10


def test_what_emerges_at_once_is_what_is_selected():
    noise = torch.Generator().manual_seed(0)
    states = AXES[torch.randint(3, (30,), generator=noise)] + 0.1 * torch.randn(30, 8, generator=noise)
    cascade = PulseCascade()
    cascade.initiate(states)
    emerged, selected = cascade.emerge(), cascade.select(states)
    assert (emerged.pulse.number, *emerged[2:]) == selected[:4]
    assert selected[:4] == emergence_select(states)[:4]
    assert cascade.generation == 0


def test_states_drawn_to_centres_emerge_at_the_one_that_draws_most():
    noise = torch.Generator().manual_seed(1)
    near = torch.tensor([0, 0, 0, 0, 0, 1, 1, 1, 2, 2])
    cascade = PulseCascade(expire=0.0)
    cascade.initiate(AXES[near] + 0.4 * torch.randn(10, 8, generator=noise) / 8**0.5)
    while cascade.step(attract(AXES[:3]), CALM):
        pass
    found = cascade.emerge()
    assert found.share == 0.5
    torch.testing.assert_close(found.pulse.state, AXES[0], atol=1e-3, rtol=0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_states_keep_their_precision(dtype):
    cascade = PulseCascade()
    cascade.initiate(AXES[:4].to(dtype))
    cascade.step(still)
    assert cascade.emerge().pulse.state.dtype == dtype


def test_agreement_is_that_of_all_pairs():
    x = torch.randn(9, 4, generator=torch.Generator().manual_seed(0))
    similar = torch.nn.functional.cosine_similarity(x[:, None], x[None], dim=-1).clamp(0, 1)
    coherence, novelty = agreement(x)
    for i in range(9):
        others = [float(similar[i, j]) for j in range(9) if j != i]
        assert float(coherence[i]) == pytest.approx((sum(others) + 1) / 9, abs=1e-6)
        assert float(novelty[i]) == pytest.approx(1 - max(others), abs=1e-6)
    assert agreement(x[:1])[1].item() == 1.0


def test_invalid_arguments_are_refused_and_change_nothing():
    for options in ({"max_pulses": 0}, {"max_generations": -1}, {"merge": 2}, {"novel": -0.1}, {"spread": math.nan}):
        (name,) = options
        with pytest.raises(ValueError, match=f"Expected {name} to be"):
            PulseCascade(**options)
    cascade = PulseCascade(max_pulses=3)
    for asked in (cascade.emerge, lambda: cascade.step(still)):
        with pytest.raises(ValueError, match=r"initiate\(\) before"):
            asked()
    for arguments in ((AXES,), (AXES[0], 4), (AXES[:2], 3)):
        with pytest.raises(ValueError, match="1 to 3 states"):
            cascade.initiate(*arguments)
    cascade.initiate(AXES[:3])
    for evolve, named in ((lambda x: x[:2], "evolve_fn.*finite"), (lambda x: x / 0, "evolve_fn"), (lambda x: 1, "int")):
        with pytest.raises(ValueError, match=named):
            cascade.step(evolve, CALM)
    for wrong in (measure(1.1, 0.0), measure(0.5, math.nan), lambda x: (torch.ones(2), torch.ones(3))):
        with pytest.raises(ValueError, match="measure_fn"):
            cascade.step(still, wrong)
    assert cascade.generation == 0
    assert len(cascade.pulses) == 3
