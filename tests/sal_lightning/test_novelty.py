import pytest
import torch

from sal_lightning.novelty import CONFIRM, PATIENCE, SUSPECT, WARM, Novelty


def feed(novelty, values):
    """The evidence after each of these surprises, of which the familiar ones are learned."""
    evidence = []
    for value in values:
        evidence.append(novelty.weigh(value))
        if evidence[-1] < SUSPECT:
            novelty.learn(value)
    return evidence


def noise(n, seed=0, size=0.05):
    return (size * torch.randn(n, generator=torch.Generator().manual_seed(seed))).tolist()


def test_noise_is_never_confirmed_and_hardly_ever_suspected():
    evidence = feed(Novelty(), noise(20_000))
    assert max(evidence) < CONFIRM
    assert sum(e >= SUSPECT for e in evidence) <= 4


def test_evidence_is_the_cumulative_sum_of_clipped_scores():
    novelty = Novelty()
    feed(novelty, noise(400))
    usual, square = novelty.mean / novelty.weight, novelty.square / novelty.weight
    deviation, start = (square - usual**2) ** 0.5, novelty.evidence
    expected = start
    for z in (3.0, 8.0, 1.0, 6.0, -4.0):
        expected = max(0.0, expected + min(z, 5.0) - 2.0)
        assert abs(novelty.weigh(usual + z * deviation) - expected) < 1e-9


def test_a_clear_change_is_suspected_at_once_and_believed_at_the_third_batch():
    novelty = Novelty()
    assert max(feed(novelty, noise(400))) < SUSPECT
    assert novelty.excess(0.5) > 0.4
    evidence = [novelty.weigh(0.5) for _ in range(3)]
    assert evidence[0] >= SUSPECT
    assert evidence[1] < CONFIRM <= evidence[2]


def test_a_change_of_three_and_a_half_deviations_is_believed_too():
    novelty = Novelty()
    feed(novelty, noise(400))
    evidence = [novelty.weigh(0.175 + value) for value in noise(20, seed=3)]
    assert evidence[-1] >= CONFIRM


def test_a_slow_drift_is_no_change():
    assert max(feed(Novelty(), [value + i / 400 for i, value in enumerate(noise(400, seed=1))])) < SUSPECT


def test_a_suspicion_that_stays_is_believed():
    novelty = Novelty()
    feed(novelty, noise(400))
    usual, square = novelty.mean / novelty.weight, novelty.square / novelty.weight
    shifted = usual + 2.0 * (square - usual**2) ** 0.5  # adds nothing to the evidence, and takes nothing away
    evidence = [novelty.weigh(usual + 5.0), *(novelty.weigh(shifted) for _ in range(PATIENCE - 1))]
    assert SUSPECT <= evidence[0] == pytest.approx(evidence[-2], abs=1e-6)
    assert evidence[-2] < CONFIRM <= evidence[-1]


def test_one_strange_batch_alone_leaves_no_evidence():
    novelty = Novelty()
    feed(novelty, noise(400))
    assert novelty.weigh(5.0) >= SUSPECT
    assert novelty.weigh(0.0) < SUSPECT
    novelty.weigh(0.0)
    assert novelty.weigh(0.0) == 0.0


def test_nothing_is_unusual_before_enough_is_known():
    novelty = Novelty()
    assert max(feed(novelty, [0.0] * (WARM - 1))) == 0.0
    assert novelty.weigh(100.0) == 0.0
    assert novelty.excess(100.0) == 0.0
    novelty.learn(0.0)
    assert novelty.weigh(100.0) >= SUSPECT


def test_state_continues_exactly():
    values = noise(60, seed=2)
    whole, part, resumed = Novelty(), Novelty(), Novelty()
    feed(whole, values)
    feed(part, values[:30])
    resumed.load_state_dict(part.state_dict())
    feed(resumed, values[30:])
    assert resumed.state_dict() == whole.state_dict()


def test_version_1_counted_unusual_batches():
    novelty = Novelty()
    novelty.load_state_dict({"suspicious": 2, "count": 30, "weight": 0.5, "mean": 1.0, "square": 2.5})
    assert novelty.evidence == 2 * SUSPECT
