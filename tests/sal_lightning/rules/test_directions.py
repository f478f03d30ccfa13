import numpy as np
import pytest
import torch

from sal_lightning.rules import directions


def rows(groups=2, n=20, d=8, seed=0, decay=0.7):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(groups, n, d, generator=generator) * decay ** torch.arange(d)


@pytest.mark.parametrize("n", [5, 8, 20], ids=["wide", "square", "tall"])
def test_decompose_agrees_with_numpy(n):
    x = rows(n=n)
    U, lam = directions.decompose(x, rank=4)
    for g in range(2):
        _, sigma, Vt = np.linalg.svd(x[g].double().numpy())
        np.testing.assert_allclose(lam[g], sigma[:4] ** 2, rtol=1e-5)
        np.testing.assert_allclose(np.abs(Vt[:4] @ U[g].numpy()), np.eye(4), atol=1e-4)


def test_decompose_keeps_no_more_directions_than_the_share_needs():
    x = torch.diag(torch.tensor([3.0, 2.0, 1.0]))[None]  # energies 9, 4, 1 of 14
    assert directions.decompose(x, 3, share=9 / 14 - 1e-6)[1].shape[-1] == 1
    assert directions.decompose(x, 3, share=0.9)[1].shape[-1] == 2
    assert directions.decompose(x, 3, share=1.0)[1].shape[-1] == 3


def test_decompose_stays_finite_on_spectra_as_steep_as_a_trained_layer():
    # Two directions hold nearly all, hundreds the rest: single-precision eigh may answer NaN here.
    generator = torch.Generator().manual_seed(0)
    for seed in range(3):
        x = torch.randn(1, 1024, 401, generator=generator) * torch.cat(
            [torch.tensor([18.0, 8.0]), torch.full((399,), 1e-3)]
        )
        x[..., 200 + seed :] = 0
        U, lam = directions.decompose(x, 120)
        assert torch.isfinite(U).all()
        assert torch.isfinite(lam).all()
        kept = (lam > 0).float()
        torch.testing.assert_close(U.mT @ U, torch.diag_embed(kept), atol=1e-5, rtol=0)


def test_decompose_gives_zero_columns_where_a_group_has_fewer_directions():
    x = torch.zeros(2, 3, 4)
    x[0] = torch.eye(4)[:3]
    x[1, 0, 0] = 2.0
    U, lam = directions.decompose(x, 3)
    assert lam[1].tolist() == [4.0, 0.0, 0.0]
    assert U[1, :, 1:].abs().max() == 0


def test_merge_is_the_sum_of_second_moments():
    first, second = rows(seed=1), rows(seed=2)
    unit = lambda x: x * (x.shape[-1] / x.square().sum((-2, -1), keepdim=True)).sqrt()  # noqa: E731
    first, second = unit(first), unit(second)
    merged = directions.merge(directions.merge(None, first, 8), second, 8)
    C = first.mT @ first + second.mT @ second
    torch.testing.assert_close(merged.U @ torch.diag_embed(merged.lam) @ merged.U.mT, C, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(merged.rest, torch.zeros(2), atol=1e-5, rtol=0)


def test_merge_accounts_for_the_energy_it_cuts_off():
    x = rows()
    x = x * (8 / x.square().sum((-2, -1), keepdim=True)).sqrt()
    cut = directions.merge(directions.merge(None, x, 3), x, 3)
    torch.testing.assert_close(cut.lam.sum(-1) + cut.rest * (8 - 3), torch.full((2,), 16.0))
    assert (cut.rest > 0).all()


def test_stability_does_not_depend_on_the_unit_of_the_inputs():
    x = rows()
    unit = lambda x: x * (8 / x.square().sum((-2, -1), keepdim=True)).sqrt()  # noqa: E731
    small, large = (directions.merge(None, unit(scale * x), 8).lam for scale in (1e-3, 1e3))
    torch.testing.assert_close(directions.stability(small, 5.0), directions.stability(large, 5.0))


def test_a_group_without_energy_brings_none_and_is_free():
    rows = torch.randn(2, 6, 10, generator=torch.Generator().manual_seed(0))
    rows *= (10 / rows[0].square().sum()).sqrt()  # of mean energy 1
    rows[1] = 0
    found = directions.merge(None, rows, 4)
    assert not found.lam[1].any()
    assert found.rest[1] == 0
    assert found.rest[0] > 0
    past = directions.merge(found, rows, 4)
    torch.testing.assert_close(past.rest[1], torch.tensor(0.0))


@pytest.mark.parametrize("k", [0, 2, 5])
@pytest.mark.parametrize("past", ["like the present", "elsewhere", "isotropic"])
def test_overlap_is_the_squared_cosine_of_the_products_of_present_and_past_inputs(past, k):
    """A slow twin: all pairs of rows; where the first k directions contain what differs, it is exact."""
    torch.manual_seed(0)
    scale = torch.tensor([4.0, 2.0, 1.0, 1.0, 1.0])
    new = torch.randn(400, 5) * scale
    old = torch.randn(400, 5) * {"like the present": scale, "elsewhere": scale.flip(0), "isotropic": 1.0}[past]
    U, lam = directions.decompose(old[None] / 20, 5)
    along = (new @ U[0, :, :k]).square().mean(0)[None]

    def product(a, b):
        return (a @ b.mT).square().mean()

    trace, squared = new.square().sum(1).mean()[None], product(new, new)[None]
    found = directions.overlap(directions.Directions(U, lam, torch.zeros(1)), along, trace, squared)
    twin = product(new, old).square() / product(new, new) / product(old, old)
    if k == 5:
        torch.testing.assert_close(found[0], twin)
    elif k == 2 and past != "isotropic":
        torch.testing.assert_close(found[0], twin, atol=0.05, rtol=0)
    assert 0 <= found[0] <= 1
    expected = {"like the present": (0.9, 1.0), "elsewhere": (0.0, 0.15), "isotropic": (0.3, 0.5)}[past]
    assert k == 0 or expected[0] <= found[0] <= expected[1]


def test_overlap_with_one_of_n_windows_of_equal_energy_along_other_directions_is_1_in_n():
    past, trace = None, torch.tensor([16.0])
    for i in range(8):
        past = directions.merge(past, 4 * torch.eye(16)[None, i : i + 1], 16)
        for window, expected in [(0, 1 / (i + 1)), (8, 0.0)]:
            along = 16 * past.U[:, window].square()
            torch.testing.assert_close(directions.overlap(past, along, trace, trace.square()), torch.tensor([expected]))


def test_the_overlap_of_a_group_without_present_inputs_is_1():
    found = directions.Directions(torch.eye(3)[None], torch.ones(1, 3), torch.zeros(1))
    assert directions.overlap(found, torch.zeros(1, 3), torch.zeros(1), torch.zeros(1)) == 1
