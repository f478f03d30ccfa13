import torch

from sal_lightning.forward_hooks import in_backward
from sal_lightning.precision import full_precision


def test_full_precision_disables_autocast_and_gradients():
    w = torch.ones(2, 2, requires_grad=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert (w @ w).dtype == torch.bfloat16
        with full_precision(torch.device("cpu")):
            product = w @ w
    assert product.dtype == torch.float32
    assert not product.requires_grad


def test_in_backward_is_true_only_during_a_backward_pass():
    x, seen = torch.ones(1, requires_grad=True), []
    y = 2 * x
    y.register_hook(lambda grad: seen.append(in_backward()))
    seen.append(in_backward())
    y.backward()
    seen.append(in_backward())
    assert seen == [False, True, False]
