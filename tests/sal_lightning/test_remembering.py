import pytest
import torch
from torch import nn

from sal_lightning.remembering import energy, run


@pytest.mark.parametrize(
    "output",
    [
        torch.tensor([[3.0, 4.0], [0.0, 5.0]]),
        (torch.tensor([1, 2]), torch.tensor([[3.0, 4.0], [0.0, 5.0]])),
        {"labels": torch.tensor([1.0]), "logits": torch.tensor([[3.0, 4.0], [0.0, 5.0]])},
        [(torch.tensor([[3.0, 4.0], [0.0, 5.0]]), "state")],
    ],
    ids=["tensor", "tuple", "mapping", "nested"],
)
def test_energy_is_half_the_mean_squared_norm_of_the_output(output):
    assert energy(output) == 12.5


def test_batches_as_loaders_give_them():
    model, x = nn.Linear(2, 1), torch.ones(3, 2)
    expected = model(x)
    for batch in (x, (x, torch.zeros(3)), [x], {"input": x}):
        torch.testing.assert_close(run(model, batch), expected)
