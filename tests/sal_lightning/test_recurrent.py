"""Inputs of recurrent weights, compared with a loop of cells over time steps."""

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence, pack_sequence

from sal_lightning import CommunicationLayer, layers
from tests.everywhere.models import close, names, overlapping, weights

ALL = 10**6  # rows: as many as there are


def cell(mode, x, h, c, W, hr):
    """One time of one sequence: the state before its projection, the state, the cell."""
    gates = [W[0] @ x + (W[2] if len(W) > 2 else 0), W[1] @ h + (W[3] if len(W) > 2 else 0)]
    if mode == "GRU":
        (r, z, n), (hidden_r, hidden_z, hidden_n) = gates[0].chunk(3), gates[1].chunk(3)
        z = torch.sigmoid(z + hidden_z)
        new = torch.tanh(n + torch.sigmoid(r + hidden_r) * hidden_n)
        state = (1 - z) * new + z * h
        return state, state, c
    if mode != "LSTM":
        state = torch.tanh(sum(gates)) if mode == "RNN_TANH" else torch.relu(sum(gates))
        return state, state, c
    i, f, g, o = sum(gates).chunk(4)
    c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
    inner = torch.sigmoid(o) * torch.tanh(c)
    return inner, inner if hr is None else hr @ inner, c


def multiplied(module, sequences, h0, c0):
    """The input rows of each weight by name, (time, sequence) → row, and the output likewise."""
    found, x = {}, {(t, s): row for s, one in enumerate(sequences) for t, row in enumerate(one)}
    directions = 1 + module.bidirectional
    for layer in range(module.num_layers):
        outs = []
        for reverse in range(directions):
            end = f"_l{layer}" + "_reverse" * reverse
            kinds = ["weight_ih", "weight_hh", *(["bias_ih", "bias_hh"] if module.bias else [])]
            W = [module.state_dict()[k + end] for k in kinds]
            hr = module.state_dict()[f"weight_hr{end}"] if module.proj_size else None
            hidden, inner, out = {}, {}, {}
            for s, one in enumerate(sequences):
                h, c = h0[layer * directions + reverse, s], c0[layer * directions + reverse, s]
                for t in reversed(range(len(one))) if reverse else range(len(one)):
                    hidden[t, s] = h
                    inner[t, s], h, c = cell(module.mode, x[t, s], h, c, W, hr)
                    out[t, s] = h
            found |= {f"weight_ih{end}": x, f"weight_hh{end}": hidden, f"weight_hr{end}": inner}
            outs.append(out)
        x = {at: torch.cat([out[at] for out in outs]) for at in x}
    return found, x


KINDS = {
    "gru": lambda: nn.GRU(3, 4),
    "lstm, batch first": lambda: nn.LSTM(3, 4, batch_first=True),
    "tanh, two layers, no bias": lambda: nn.RNN(3, 4, 2, bias=False),
    "relu, both ways": lambda: nn.RNN(3, 4, nonlinearity="relu", bidirectional=True),
    "gru, three layers, both ways": lambda: nn.GRU(3, 4, 3, bidirectional=True, batch_first=True),
    "lstm, two layers, both ways": lambda: nn.LSTM(3, 4, 2, bidirectional=True),
    "lstm, projected": lambda: nn.LSTM(3, 5, 2, proj_size=2, bidirectional=True, batch_first=True),
    "gru, double precision": lambda: nn.GRU(3, 4, dtype=torch.float64),
}


def given(kind, how, begun):
    """A module, its arguments, and the same as single sequences with their first states."""
    torch.manual_seed(1)
    module = KINDS[kind]()
    dtype = module.weight_ih_l0.dtype
    lengths = [5] if how == "one" else [3, 5, 4, 1] if how == "packed" else [5] * 4
    sequences = [torch.randn(n, 3, dtype=dtype) for n in lengths]
    states = module.num_layers * (1 + module.bidirectional), len(lengths)
    h0 = torch.randn(*states, module.proj_size or module.hidden_size, dtype=dtype) * begun
    c0 = torch.randn(*states, module.hidden_size, dtype=dtype) * begun
    if how == "packed":
        x = pack_sequence(sequences, enforce_sorted=False)
    elif how == "one":
        x = sequences[0]
    else:
        x = torch.stack(sequences, 0 if module.batch_first else 1)
    hx = [h[:, 0] if how == "one" else h for h in (h0, c0)]
    state = () if not begun else (tuple(hx) if module.mode == "LSTM" else hx[0],)
    return module, (x, *state), sequences, h0, c0


@pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN")
@pytest.mark.parametrize("begun", [False, True], ids=["from zeros", "from given states"])
@pytest.mark.parametrize("how", ["padded", "packed", "one"])
@pytest.mark.parametrize("kind", KINDS)
def test_rows_are_what_a_loop_of_cells_multiplies(kind, how, begun):
    module, args, sequences, h0, c0 = given(kind, how, begun)
    expected, last = multiplied(module, sequences, h0, c0)
    output = module(*args)[0]
    data = output.data if how == "packed" else output[:, None] if how == "one" else output
    data = data if how == "packed" else (data.transpose(0, 1) if module.batch_first and how != "one" else data)
    order = sorted(range(len(sequences)), key=lambda s: -len(sequences[s]))
    order = args[0].sorted_indices.tolist() if how == "packed" else order
    places = [(t, s) for t in range(5) for s in order if t < len(sequences[s])]
    at = lambda rows: torch.stack([rows[p] for p in places])  # noqa: E731
    torch.testing.assert_close(data.detach().reshape(len(places), -1), at(last), atol=1e-5, rtol=1e-5)

    found = layers.find(module)
    assert {layer.name for layer in found} == {n for n in names(module) if n.startswith("weight")}
    inputs = layers.given(module, args, {})
    for layer in found:
        rows = layer.read(inputs, ALL, 0)[0]
        if module.bias and "hr" not in layer.name:
            assert torch.equal(rows[:, -1], torch.ones(len(rows), dtype=rows.dtype))
            rows = rows[:, :-1]
        torch.testing.assert_close(rows, at(expected[layer.name]), atol=1e-5, rtol=1e-5, msg=layer.name)


def test_sampled_rows_are_a_subset_that_differs_between_steps():
    torch.manual_seed(0)
    module, x = nn.GRU(3, 4, 2, batch_first=True), torch.randn(40, 20, 3)
    lengths = torch.randint(1, 21, (40,))
    for args in ((x,), (pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False),)):
        for layer in layers.find(module):
            full = layer.read(layers.given(module, args, {}), ALL, 0)[0]
            some = [layer.read(layers.given(module, args, {}), 32, step)[0] for step in (1, 2)]
            for rows in some:
                assert len(rows) == 32
                assert ((rows[:, None] - full).abs().amax(-1).amin(1) < 1e-5).all()
            assert not torch.equal(*some)


def test_dropout_between_layers_drops_as_many_inputs_as_the_call_does():
    torch.manual_seed(0)
    module, x = nn.GRU(3, 16, 2, dropout=0.5), torch.randn(50, 40, 3)
    inner = next(layer for layer in layers.find(module) if layer.name == "weight_ih_l1")
    state = torch.get_rng_state()
    rows = inner.read(layers.given(module, (x,), {}), ALL, 3)[0][:, :-1]
    assert torch.equal(torch.get_rng_state(), state)
    assert abs((rows == 0).float().mean().item() - 0.5) < 0.02
    whole = inner.read(layers.given(module.eval(), (x,), {}), ALL, 3)[0][:, :-1]
    kept = rows != 0
    torch.testing.assert_close(rows[kept], 2 * whole[kept])


@pytest.mark.parametrize("kind", [nn.RNNCell, nn.LSTMCell, nn.GRUCell])
@pytest.mark.parametrize("how", ["batch", "one", "no state"])
def test_cells_are_read_as_their_input_and_state(kind, how):
    torch.manual_seed(0)
    module, x, h = kind(3, 4), torch.randn(6, 3), torch.randn(6, 4)
    x, h = (x[0], h[0]) if how == "one" else (x, h)
    args = (x,) if how == "no state" else (x, (h, h + 1) if kind is nn.LSTMCell else h)
    by_input, by_state = layers.find(module)
    assert (by_input.name, by_state.name) == ("weight_ih", "weight_hh")
    inputs = layers.given(module, (), dict(zip(("input", "hx"), args, strict=False)))
    torch.testing.assert_close(by_input.read(inputs, ALL, 0)[0][:, :-1], x.view(-1, 3))
    expected = torch.zeros(6, 4) if how == "no state" else h.view(-1, 4)
    torch.testing.assert_close(by_state.read(inputs, ALL, 0)[0][:, :-1], expected)


class Recurrent(nn.Module):
    def __init__(self, kind, **options):
        super().__init__()
        torch.manual_seed(0)
        self.memory = kind(4, 16, batch_first=True, **options)
        self.head = nn.Linear(16 * (1 + self.memory.bidirectional), 4)
        self.last = False

    def forward(self, x):
        out, state = self.memory(x.view(len(x), 3, 4))
        return self.head(state[0] if self.last else out[:, -1])


def steps(model, optimizer, comm, task, n):
    for i in range(n):
        x, y = overlapping(task, i)
        optimizer.zero_grad()
        nn.functional.mse_loss(model(x), y).backward()
        comm.analyze()
        comm.protect()
        optimizer.step()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "options"), [(nn.RNN, {}), (nn.GRU, {}), (nn.LSTM, {"num_layers": 2, "bidirectional": True})]
)
def test_recurrent_networks_are_held_by_directions_and_keep_the_first_task(kind, options):
    moved, x = {}, overlapping(0, 999)[0]
    for held in (False, True):
        model = Recurrent(kind, **options)
        optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
        comm = CommunicationLayer(model, optimizer, consolidate_on=None, strength=1e4)
        steps(model, optimizer, comm, 0, 40)
        assert comm.coverage() == dict.fromkeys(names(model), "subspace")
        if held:
            comm.consolidate()
        before = model(x).detach()
        steps(model, optimizer, comm, 1, 25)
        moved[held] = float((model(x).detach() - before).norm() / before.norm())
    assert moved[True] < 0.3 * moved[False]


@pytest.mark.slow
@pytest.mark.parametrize("last", [False, True], ids=["by its output", "by its last state alone"])
def test_in_evaluation_mode_a_recurrent_layer_is_observed_as_in_training_mode(last):
    ended = []
    for mode in (True, False):
        model = Recurrent(nn.GRU).train(mode)
        if last:
            model.forward = lambda x, net=model: net.head(net.memory(x.view(len(x), 3, 4))[1][0])
        optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
        comm = CommunicationLayer(model, optimizer, consolidate_on=20)
        steps(model, optimizer, comm, 0, 25)
        assert set(comm.coverage().values()) == {"subspace"}
        ended.append(weights(model))
    assert all(map(torch.equal, *ended))


@pytest.mark.slow
def test_a_cell_in_a_loop_is_protected_like_the_layer():
    class Cells(Recurrent):
        def __init__(self):
            super().__init__(nn.GRU)
            cell = nn.GRUCell(4, 16)
            cell.load_state_dict({n.removesuffix("_l0"): p for n, p in self.memory.state_dict().items()})
            self.memory.bidirectional, self.memory = False, cell

        def forward(self, x):
            h = None
            for part in x.view(len(x), 3, 4).unbind(1):
                h = self.memory(part, h)
            return self.head(h)

    ended, bands = [], []
    for model in (Recurrent(nn.GRU), Cells()):
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
        comm = CommunicationLayer(model, optimizer, consolidate_on=None)
        steps(model, optimizer, comm, 0, 20)
        comm.consolidate()
        steps(model, optimizer, comm, 1, 20)
        ended.append(weights(model))
        bands.append(comm.spectrum().protected)
    assert close(*ended, rtol=0, atol=5e-3)  # the same rows, but another sample of them
    assert bands[0] == pytest.approx(bands[1], abs=5)


class Own(nn.GRU):
    def forward(self, x, hx=None):
        return super().forward(x * 2, hx)


@pytest.mark.parametrize("how", ["own forward", "weight_norm", "parametrization"])
@pytest.mark.filterwarnings("ignore:.*% of the trained weights are protected one by one")
@pytest.mark.filterwarnings("ignore:`torch.nn.utils.weight_norm` is deprecated:FutureWarning")
def test_recurrent_layers_that_change_their_weights_are_held_one_by_one(how):
    model = Recurrent(Own if how == "own forward" else nn.GRU)
    if how == "weight_norm":
        nn.utils.weight_norm(model.memory, "weight_hh_l0")
    elif how == "parametrization":
        nn.utils.parametrizations.spectral_norm(model.memory, "weight_hh_l0")
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    if how == "own forward":
        with pytest.warns(UserWarning, match=r"forward pass of their own.*: memory\."):
            comm = CommunicationLayer(model, optimizer)
    else:
        comm = CommunicationLayer(model, optimizer)
    steps(model, optimizer, comm, 0, 5)
    by_element = {name for name, grain in comm.coverage().items() if grain == "element"}
    assert by_element == {name for name in names(model) if name.startswith("memory")}


@pytest.mark.filterwarnings("ignore:.*% of the trained weights are protected one by one")
def test_states_in_which_recurrent_weights_were_held_one_by_one_still_load(monkeypatch):
    def trained(state=None):
        model = Recurrent(nn.LSTM)
        optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
        comm = CommunicationLayer(model, optimizer, consolidate_on=None, strength=1e6)
        if state is not None:
            comm.load_state_dict(state)
        return model, optimizer, comm

    with monkeypatch.context() as before:
        before.setattr(layers, "_read_recurrent", lambda name, module: [])
        model, optimizer, comm = trained()
        steps(model, optimizer, comm, 0, 20)
        comm.consolidate()
        saved, held = comm.state_dict(), comm.coverage()
        spectrum = comm.spectrum()
        comm.detach()
    assert {n for n, grain in held.items() if grain == "element"} == {n for n in held if n.startswith("memory")}
    again, optimizer, comm = trained(saved)
    again.load_state_dict(model.state_dict())
    comm.begin_fit()
    assert comm.coverage() == held
    assert comm.spectrum() == spectrum
    start = weights(again)
    steps(again, optimizer, comm, 0, 5)
    assert close(weights(again), start, atol=0.02)


def test_a_state_with_a_layer_that_is_now_frozen_is_loaded():
    model = Recurrent(nn.GRU)
    comm = CommunicationLayer(model, optimizer := torch.optim.SGD(model.parameters(), 0.1), consolidate_on=None)
    steps(model, optimizer, comm, 0, 5)
    comm.consolidate()
    saved = comm.state_dict()
    frozen = model.memory.weight_hh_l0, model.memory.bias_hh_l0
    for p in frozen:
        p.requires_grad_(False)
    again = CommunicationLayer(model, optimizer, consolidate_on=None)
    again.load_state_dict(saved)
    assert "memory.weight_hh_l0" not in again.coverage()
    assert again.state_dict()["rules"].keys() == saved["rules"].keys()
    for p in frozen:
        p.requires_grad_(True)
    steps(model, optimizer, again, 0, 2)
    assert next(r for r in again.rules if r.name == "memory.weight_hh_l0").holds
