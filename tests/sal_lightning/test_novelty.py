import torch

from sal_lightning.novelty import CONFIRM, WARM, Novelty


def feed(novelty, values):
    """Flags for a run of surprises, learning the familiar ones."""
    flags = []
    for value in values:
        flags.append(novelty.unusual(value))
        if not flags[-1]:
            novelty.learn(value)
    return flags


def test_noise_is_never_confirmed():
    values = (3 + 0.05 * torch.randn(20_000, generator=torch.Generator().manual_seed(0))).tolist()
    flags = feed(Novelty(), values)
    assert not any(all(flags[i : i + CONFIRM]) for i in range(len(flags)))
    assert sum(flags) <= 2


def test_a_jump_is_seen_at_once_and_a_slow_drift_is_not():
    noise = (0.05 * torch.randn(400, generator=torch.Generator().manual_seed(1))).tolist()
    novelty = Novelty()
    assert not any(feed(novelty, noise))
    assert novelty.unusual(0.5)
    assert novelty.excess(0.5) > 0.4
    slow = Novelty()
    assert not any(feed(slow, [value + i / 400 for i, value in enumerate(noise)]))


def test_nothing_is_unusual_before_enough_is_known():
    novelty = Novelty()
    assert not any(feed(novelty, [0.0] * (WARM - 1)))
    assert not novelty.unusual(100.0)
    assert novelty.excess(100.0) == 0.0
    novelty.learn(0.0)
    assert novelty.unusual(100.0)


def test_state_continues_exactly():
    values = torch.randn(60, generator=torch.Generator().manual_seed(2)).tolist()
    whole, part, resumed = Novelty(), Novelty(), Novelty()
    feed(whole, values)
    feed(part, values[:30])
    resumed.load_state_dict(part.state_dict())
    feed(resumed, values[30:])
    assert resumed.state_dict() == whole.state_dict()
