import pytest
import torch

from sal_lightning.input_sketch import InputSketch, probe

D = 40


def batches(n=30, rows=16, groups=2, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(groups, rows, D, generator=generator) * 0.8 ** torch.arange(D) for _ in range(n)]


def window(rank=D, seen=(), groups=2):
    made = InputSketch(D, rank, 0.9, groups)
    for x in seen:
        made.update(x)
    return made


def dense(xs, beta=0.9):
    """The window as a whole matrix, by its definition."""
    R = torch.zeros(len(xs[0]), D, D)
    for x in xs:
        R = beta * R + (1 - beta) * x.mT @ x / x.shape[1]
    return R


def scaled(R):
    """With a mean eigenvalue of 1."""
    return R * D / R.diagonal(dim1=-2, dim2=-1).sum(-1)[:, None, None]


def test_at_full_rank_the_sketch_is_the_running_second_moment():
    made = window(seen=batches())
    torch.testing.assert_close(made.Y, dense(batches()), atol=1e-6, rtol=1e-4)
    torch.testing.assert_close(made.trace, dense(batches()).diagonal(dim1=-2, dim2=-1).sum(-1))
    torch.testing.assert_close(made.rows().mT @ made.rows(), scaled(dense(batches())), atol=1e-4, rtol=1e-3)


def test_a_smaller_sketch_keeps_the_strong_directions_and_never_invents_energy():
    made, R = window(rank=12, seen=batches()), scaled(dense(batches()))
    sketch = made.rows().mT @ made.rows()
    assert (torch.linalg.eigvalsh(R - sketch) > -1e-3).all()
    # The published bound for the mean over probes: 1 + r / (k − r − 1) of the best that any r directions can do, r < k.
    best = torch.linalg.eigvalsh(R)[:, :-8].sum(-1)
    assert ((R - sketch).diagonal(dim1=-2, dim2=-1).sum(-1) < (1 + 8 / 3) * best).all()


def test_the_trace_of_the_square_is_exact_at_full_rank_and_estimated_by_a_smaller_sketch():
    expected = dense(batches()).square().sum((-2, -1))
    torch.testing.assert_close(window(seen=batches()).squared(), expected)
    torch.testing.assert_close(window(rank=12, seen=batches()).squared(), expected, atol=0, rtol=0.3)


def test_one_update_for_several_steps_has_their_weight():
    often, seldom, x = window(), window(), batches(1)[0]
    for _ in range(4):
        often.update(x)
    seldom.update(x, steps=4)
    torch.testing.assert_close(often.Y, seldom.Y, atol=1e-5, rtol=1e-4)


def test_the_mean_of_two_sketches_is_the_sketch_of_both():
    xs, ys = batches(seed=1), batches(seed=2)
    both = window(rank=12, seen=[torch.cat([x, y], 1) for x, y in zip(xs, ys, strict=True)])
    one, other = window(rank=12, seen=xs), window(rank=12, seen=ys)
    torch.testing.assert_close((one.Y + other.Y) / 2, both.Y, atol=1e-6, rtol=1e-4)
    torch.testing.assert_close((one.trace + other.trace) / 2, both.trace)


def test_rows_have_the_same_energy_at_any_scale_of_the_input():
    for scale in (1e-4, 1.0, 1e4):
        energy = window(seen=[scale * x for x in batches()]).rows().square().sum((-2, -1))
        torch.testing.assert_close(energy, torch.full((2,), float(D)), atol=1e-2, rtol=1e-3)


@pytest.mark.parametrize(("rank", "atol"), [(D, 1e-3), (20, 3e-2)])
def test_distance_is_the_mahalanobis_distance(rank, atol):
    made, x, floor = window(rank, batches()), batches(1, seed=7)[0], 0.3
    made.refresh(floor)
    R = dense(batches()) / (1 - 0.9**30)
    unit = D / R.diagonal(dim1=-2, dim2=-1).sum(-1)
    inverse = torch.linalg.inv(scaled(dense(batches())) + floor * torch.eye(D))
    expected = (((x @ inverse) * x).sum(-1) * unit[:, None]).log1p()
    torch.testing.assert_close(made.distance(x, floor), expected, atol=atol, rtol=0)


def test_distance_grows_outside_the_window_and_is_scale_invariant():
    for scale in (1e-3, 1e3):
        inside = torch.zeros(1, 32, D)
        inside[..., :3] = torch.randn(1, 32, 3, generator=torch.Generator().manual_seed(0))
        made = window(3, [scale * inside], groups=1)
        made.refresh(0.3)
        outside = made.distance(scale * inside.flip(-1), 0.3)
        assert outside.mean() > made.distance(scale * inside, 0.3).mean() + 1


def test_the_probe_never_changes():
    omega = probe(785, 128, torch.device("cpu"))
    assert omega.unique().tolist() == pytest.approx([-(785**-0.5), 785**-0.5])
    # The first signs of SHAKE-128 of the layer's width, read bit by bit.
    assert (omega.flatten()[:16] > 0).int().tolist() == [0, 1, 1, 0, 1, 0, 0, 0, 1, 1, 1, 1, 0, 1, 1, 0]
    assert abs(omega.sum()) < 4 * 128**0.5  # as many of one sign as of the other
    assert torch.equal(probe(5, 9, torch.device("cpu")), torch.eye(5))


def test_state_continues_exactly():
    whole, part, resumed = window(12, batches(10)), window(12, batches(10)[:5]), window(12)
    part.refresh(0.3)
    resumed.load_state_dict(part.state_dict(), torch.device("cpu"))
    assert torch.equal(resumed.P, part.P)
    for x in batches(10)[5:]:
        resumed.update(x)
    assert torch.equal(whole.Y, resumed.Y)
    assert torch.equal(whole.trace, resumed.trace)


def test_an_empty_window_has_an_empty_state_and_no_rows():
    assert window().state_dict() == {}
    with pytest.raises(AssertionError, match="the window is empty"):
        window().rows()


def test_the_state_of_a_layer_of_another_size_is_refused():
    state = window(seen=batches(1)).state_dict()
    with pytest.raises(ValueError, match=f"Expected the state of a layer with 3 inputs .*, got {D}"):
        InputSketch(3, 3, 0.9).load_state_dict(state, torch.device("cpu"))


def test_a_group_without_rows_has_no_energy_and_no_novelty():
    xs = batches()
    for x in xs:
        x[1] = 0
    seen, alone = window(20, xs), window(20, [x[:1] for x in xs], groups=1)
    seen.refresh(0.3), alone.refresh(0.3)
    assert not seen.rows()[1].any()
    torch.testing.assert_close(seen.rows()[:1], alone.rows())
    distance = seen.distance(torch.ones(2, 5, D), 0.3)
    torch.testing.assert_close(distance[:1], alone.distance(torch.ones(1, 5, D), 0.3))
    assert not distance[1].any()
