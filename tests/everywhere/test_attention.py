import pytest
import torch
from torch import nn

from sal_lightning import CommunicationLayer
from tests.everywhere.models import close, moved, names, overlapping, train, weights

pytestmark = pytest.mark.slow


class Attend(nn.Module):
    """Attention of a sequence to itself, given by position or by name, or to keys of another width."""

    def __init__(self, how):
        super().__init__()
        torch.manual_seed(0)
        self.how = how
        width = 6 if how == "widths" else None
        self.attention = nn.MultiheadAttention(12, 2, batch_first=True, kdim=width, vdim=width)
        self.head = nn.Linear(12, 4)

    def forward(self, x):
        x = x.view(-1, 4, 12)
        if self.how == "keywords":
            y, _ = self.attention(query=x, key=x, value=x, need_weights=False)
        else:
            z = x[..., :6] if self.how == "widths" else x
            y, _ = self.attention(x, z, z, need_weights=False)
        return self.head(y.flatten(0, 1))


class Encoder(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.TransformerEncoderLayer(12, 2, 24, dropout=0.0, batch_first=True)
        self.head = nn.Linear(12, 4)

    def forward(self, x):
        return self.head(self.layer(x.view(-1, 4, 12)).flatten(0, 1))


ATTENTION = {
    "positions": lambda: Attend("positions"),
    "keywords": lambda: Attend("keywords"),
    "widths": lambda: Attend("widths"),
    "encoder layer": Encoder,
}


@pytest.mark.parametrize("kind", ATTENTION)
def test_attention_is_covered_whole_and_remembers(kind):
    drift, x = {}, overlapping(0, 999)[0]
    for held in (False, True):
        model = ATTENTION[kind]()
        optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
        comm = CommunicationLayer(model, optimizer, consolidate_on=None, strength=1e4)
        train(model, optimizer, comm, overlapping, task=0, steps=40)
        assert set(comm.coverage()) == names(model)
        if held:
            comm.consolidate()
        before = model(x).detach()
        train(model, optimizer, comm, overlapping, task=1, steps=25)
        drift[held] = moved(model, x, before)
    assert drift[True] < 0.3 * drift[False]


def test_positions_and_keywords_are_watched_alike():
    ended = []
    for kind in ("positions", "keywords"):
        model = ATTENTION[kind]()
        optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
        comm = CommunicationLayer(model, optimizer, consolidate_on=10)
        train(model, optimizer, comm, overlapping, task=0, steps=30)
        ended.append(weights(model))
    assert close(*ended, rtol=0, atol=1e-6)


def test_projections_of_other_widths_are_held_by_directions():
    model = ATTENTION["widths"]()
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    comm = CommunicationLayer(model, optimizer, consolidate_on=None)
    train(model, optimizer, comm, overlapping, task=0, steps=3)
    by_element = {name for name, grain in comm.coverage().items() if grain == "element"}
    assert by_element == {"attention.in_proj_bias"}  # shared by all three


def test_attention_to_a_text_of_another_length_is_trained_in_small_batches():
    torch.manual_seed(0)
    model = nn.TransformerDecoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
    optimizer = torch.optim.Adam(model.parameters())
    comm = CommunicationLayer(model, optimizer, consolidate_on=2)
    for _ in range(3):
        model(torch.randn(2, 5, 8), torch.randn(2, 7, 8)).square().mean().backward()
        optimizer.step()
    assert comm.events == [2]
    for name in ("in_proj_weight", "out_proj.weight"):
        assert comm.coverage()[f"multihead_attn.{name}"] == "subspace"
