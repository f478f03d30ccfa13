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
