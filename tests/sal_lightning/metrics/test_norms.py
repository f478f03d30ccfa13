import pytest
import torch

from sal_lightning.metrics import NormShare


def test_squares_add_up_before_the_share_is_taken():
    share = NormShare()
    share.update(torch.tensor([1.0, 4.0]))
    share.update(torch.tensor([3.0, 12.0]))
    assert share.compute() == pytest.approx(0.5)


def test_forward_returns_the_value_of_the_step_alone():
    share = NormShare()
    assert share(torch.tensor([1.0, 4.0])) == 0.5
    assert share(torch.tensor([0.0, 4.0])) == 0.0
    assert share.compute() == pytest.approx((1 / 8) ** 0.5)


@pytest.mark.filterwarnings("ignore:The ``compute`` method")
def test_without_updates_the_share_is_nan_and_of_zeros_it_is_zero():
    share = NormShare()
    assert share.compute().isnan()
    share.reset()
    share.update(torch.zeros(2))
    assert share.compute() == 0
