import pytest
import torch

from sal_lightning.change_detection import CONFIRM, KNOWN, PATIENCE, REFRESH, SUSPECT, WARM, CumulativeSumTest


def feed(test, values):
    """The evidence after each of these values; the baseline is updated with the familiar ones."""
    evidence = []
    for value in values:
        evidence.append(test.detect(value))
        if evidence[-1] < SUSPECT:
            test.update(value)
    return evidence


def noise(n, seed=0, size=0.05):
    return (size * torch.randn(n, generator=torch.Generator().manual_seed(seed))).tolist()


def test_noise_is_never_confirmed_and_rarely_suspected():
    evidence = feed(CumulativeSumTest(), noise(20_000))
    assert max(evidence) < CONFIRM
    assert sum(e >= SUSPECT for e in evidence) <= 4


def test_evidence_is_the_cumulative_sum_of_clipped_scores():
    test = CumulativeSumTest()
    feed(test, noise(400))
    usual, deviation, expected = test.baseline.mean, test.baseline.deviation, test.evidence
    for z in (3.0, 8.0, 1.0, 6.0, -4.0):
        expected = max(0.0, expected + min(z, 5.0) - 2.0)
        assert abs(test.detect(usual + z * deviation) - expected) < 1e-9


def test_a_clear_change_is_suspected_at_the_first_batch_and_confirmed_at_the_third():
    test = CumulativeSumTest()
    assert max(feed(test, noise(400))) < SUSPECT
    assert test.excess(0.5) > 0.4
    evidence = [test.detect(0.5) for _ in range(3)]
    assert evidence[0] >= SUSPECT
    assert evidence[1] < CONFIRM <= evidence[2]


def test_a_change_of_three_and_a_half_deviations_is_confirmed():
    test = CumulativeSumTest()
    feed(test, noise(400))
    evidence = [test.detect(0.175 + value) for value in noise(20, seed=3)]
    assert evidence[-1] >= CONFIRM


def test_the_baseline_is_learned_from_the_first_batches_after_a_refresh():
    test, values = CumulativeSumTest(), noise(2 * REFRESH + KNOWN + 30)
    feed(test, values)
    known = torch.tensor(values[2 * REFRESH :][:KNOWN], dtype=torch.float64)
    assert test.baseline.mean == pytest.approx(known.mean().item())
    assert test.baseline.deviation == pytest.approx(known.std(correction=0).item())


def test_refresh_intervals_double():
    test = CumulativeSumTest()
    refreshes = [i for i, value in enumerate(noise(2200), 1) if test.update(value)]
    assert refreshes == [REFRESH, 2 * REFRESH, 4 * REFRESH, 8 * REFRESH, 16 * REFRESH]


def test_after_a_refresh_the_old_baseline_is_used_with_a_larger_deviation():
    for shift, change in ((0.15, False), (0.6, True)):
        test = CumulativeSumTest()
        feed(test, noise(2 * REFRESH))
        assert test.recent.n == 0
        evidence = feed(test, [value + shift for value in noise(WARM + 30, seed=1)])
        assert (max(evidence) >= CONFIRM) == change


@pytest.mark.parametrize("before", [300, 800])
@pytest.mark.parametrize("batches", [400, 1000, 2000])
def test_a_gradual_change_is_detected_in_its_first_third(batches, before):
    test = CumulativeSumTest()
    feed(test, noise(before))
    ramp = [value + i / batches for i, value in enumerate(noise(batches // 3, seed=1))]  # to twenty deviations
    assert any(feed(test, [value])[0] >= CONFIRM for value in ramp)


def test_a_drift_of_a_deviation_in_a_thousand_batches_is_no_change():
    drift = [value + 0.05 * i / 1000 for i, value in enumerate(noise(5000, seed=1))]
    assert max(feed(CumulativeSumTest(), drift)) < CONFIRM


def test_a_persistent_suspicion_is_confirmed():
    test = CumulativeSumTest()
    feed(test, noise(400))
    usual = test.baseline.mean
    shifted = usual + 2.0 * test.baseline.deviation  # adds nothing to the evidence, and takes nothing away
    evidence = [test.detect(usual + 5.0), *(test.detect(shifted) for _ in range(PATIENCE - 1))]
    assert SUSPECT <= evidence[0] == pytest.approx(evidence[-2], abs=1e-6)
    assert evidence[-2] < CONFIRM <= evidence[-1]


def test_the_evidence_of_a_single_unusual_batch_decays():
    test = CumulativeSumTest()
    feed(test, noise(400))
    assert test.detect(5.0) >= SUSPECT
    assert test.detect(0.0) < SUSPECT
    test.detect(0.0)
    assert test.detect(0.0) == 0.0


def test_nothing_is_detected_before_there_is_a_baseline():
    test = CumulativeSumTest()
    assert max(feed(test, [0.0] * (WARM - 1))) == 0.0
    assert test.detect(100.0) == 0.0
    assert test.excess(100.0) == 0.0
    test.update(0.0)
    assert test.detect(100.0) >= SUSPECT


def test_state_continues_exactly():
    values = noise(60, seed=2)
    whole, part, resumed = CumulativeSumTest(), CumulativeSumTest(), CumulativeSumTest()
    feed(whole, values)
    feed(part, values[:30])
    resumed.load_state_dict(part.state_dict())
    feed(resumed, values[30:])
    assert resumed.state_dict() == whole.state_dict()
