import pytest
import torch

from sal_lightning.window import Window


def batches(n=30, rows=16, d=6, groups=2, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(groups, rows, d, generator=generator) * 0.8 ** torch.arange(d) for _ in range(n)]


def dense(xs, beta):
    """The window as a whole matrix, by its definition."""
    R = torch.zeros(2, 6, 6)
    for x in xs:
        R = beta * R + (1 - beta) * x.mT @ x / x.shape[1]
    return R


def test_at_full_rank_the_sketch_is_the_running_second_moment():
    window = Window(rank=6, beta=0.9)
    for x in batches():
        window.update(x)
    torch.testing.assert_close(window.B.mT @ window.B, dense(batches(), 0.9), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(window.trace, dense(batches(), 0.9).diagonal(dim1=-2, dim2=-1).sum(-1))


def test_a_smaller_sketch_keeps_the_strong_directions_and_never_invents_energy():
    window = Window(rank=3, beta=0.9)
    for x in batches():
        window.update(x)
    R = dense(batches(), 0.9)
    gap = torch.linalg.eigvalsh(R - window.B.mT @ window.B)
    assert (gap > -1e-5).all()
    assert window.B.square().sum() > 0.75 * R.diagonal(dim1=-2, dim2=-1).sum()


def test_one_update_that_stands_for_several_steps_weighs_as_much():
    often, seldom = Window(6, 0.9), Window(6, 0.9)
    x = batches(1)[0]
    for _ in range(4):
        often.update(x)
    seldom.update(x, steps=4)
    torch.testing.assert_close(often.B.mT @ often.B, seldom.B.mT @ seldom.B, atol=1e-5, rtol=1e-4)


def test_rows_have_mean_energy_one_whatever_the_unit():
    for scale in (1e-4, 1.0, 1e4):
        window = Window(6, 0.9)
        for x in batches():
            window.update(scale * x)
        torch.testing.assert_close(window.rows().square().sum((-2, -1)), torch.full((2,), 6.0))


def test_surprise_is_the_mean_mahalanobis_distance():
    window, floor = Window(6, 0.9), 0.3
    for x in batches():
        window.update(x)
    x = batches(1, seed=7)[0]
    R = dense(batches(), 0.9) / (1 - 0.9**30)
    R, unit = R * 6 / R.diagonal(dim1=-2, dim2=-1).sum(-1)[:, None, None], 6 / R.diagonal(dim1=-2, dim2=-1).sum(-1)
    inverse = torch.linalg.inv(R + floor * torch.eye(6))
    expected = (((x @ inverse) * x).sum(-1) * unit[:, None]).mean().log()
    torch.testing.assert_close(window.surprise(x, floor), expected, atol=1e-4, rtol=1e-4)


def test_surprise_rises_outside_the_window_and_not_with_the_unit():
    for scale in (1e-3, 1e3):
        window = Window(3, 0.9)
        inside = torch.zeros(1, 32, 6)
        inside[..., :3] = torch.randn(1, 32, 3, generator=torch.Generator().manual_seed(0))
        window.update(scale * inside)
        outside = inside.flip(-1)
        assert window.surprise(scale * outside, 0.3) > window.surprise(scale * inside, 0.3) + 1


def test_state_continues_exactly():
    whole, part = Window(3, 0.9), Window(3, 0.9)
    for x in batches(10):
        whole.update(x)
    for x in batches(5):
        part.update(x)
    resumed = Window(3, 0.9)
    resumed.load_state_dict(part.state_dict(), torch.device("cpu"))
    for x in batches(10)[5:]:
        resumed.update(x)
    assert torch.equal(whole.B, resumed.B)
    assert torch.equal(whole.trace, resumed.trace)


def test_an_empty_window_has_an_empty_state_and_no_rows():
    window = Window(3, 0.9)
    assert window.state_dict() == {}
    with pytest.raises(AssertionError, match="seen nothing"):
        window.rows()
