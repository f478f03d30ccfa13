import pytest
import torch
import torch.nn.functional as F
from torch import nn

from sal_lightning import CommunicationLayer


def test_a_layer_used_without_being_called_is_protected_weight_by_weight():
    class Functional(nn.Module):
        def __init__(self):
            super().__init__()
            self.called, self.used = nn.Linear(4, 4), nn.Linear(4, 1)

        def forward(self, x):
            return F.linear(self.called(x), self.used.weight, self.used.bias)

    model = Functional()
    optimizer = torch.optim.Adam(model.parameters())
    comm = CommunicationLayer(model, optimizer, consolidate_on=None)
    for _ in range(2):
        model(torch.randn(8, 4)).sum().backward()
        comm.analyze()
    coverage = comm.coverage()
    assert coverage["called.weight"] == "subspace"
    assert coverage["used.weight"] == coverage["used.bias"] == "element"
    comm.consolidate()
    again = CommunicationLayer(model, optimizer, consolidate_on=None)
    again.load_state_dict(comm.state_dict())
    assert again.coverage() == coverage
    assert again.spectrum() == comm.spectrum()


@pytest.mark.parametrize(
    "given", [list, lambda x: torch.complex(x, x), lambda x: {"x": x}], ids=["list", "complex", "dict"]
)
def test_a_layer_that_is_not_given_rows_of_numbers_is_protected_weight_by_weight(given):
    class Own(nn.Linear):
        def forward(self, x):
            x = x["x"] if isinstance(x, dict) else torch.stack(x) if isinstance(x, list) else x.real
            return super().forward(x)

    first, own = nn.Linear(4, 4), Own(4, 1)
    model = nn.Sequential(first, own)
    comm = CommunicationLayer(model, torch.optim.Adam(model.parameters()))
    for _ in range(2):
        own(given(first(torch.randn(8, 4)))).sum().backward()
        comm.analyze()
    assert comm.coverage() == {
        "0.weight": "subspace",
        "0.bias": "subspace",
        "1.weight": "element",
        "1.bias": "element",
    }
