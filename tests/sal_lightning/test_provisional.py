import pytest
import torch

from sal_lightning import CommunicationLayer
from tests.everywhere.models import equal
from tests.sal_lightning.tasks import loss, net, train


@pytest.mark.slow
def test_a_single_unusual_batch_causes_a_hold_that_is_rolled_back():
    model = net()
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    comm = CommunicationLayer(model, optimizer)
    train(model, optimizer, 0, 100, comm)
    assert not any(rule.holds for rule in comm.rules)
    before = loss(model, 0)
    train(model, optimizer, 1, 1, comm)
    assert all(rule.holds for rule in comm.rules)  # from this batch on
    assert loss(model, 0) == pytest.approx(before, rel=0.1)
    assert comm.events == []
    train(model, optimizer, 0, 1, comm, start=100)
    assert not any(rule.holds for rule in comm.rules)
    assert comm.events == []
    train(model, optimizer, 1, 3, comm)
    assert comm.events == [105]


@pytest.mark.slow
def test_states_load_under_weights_only_and_continue_exactly(tmp_path):
    """The state is saved while a change is suspected."""
    weights = []
    for split in (None, 101):
        model = net()
        optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
        comm = CommunicationLayer(model, optimizer)
        for i in range(110):
            if i == split:
                torch.save(comm.state_dict(), tmp_path / "state.pt")
                comm.detach()
                comm = CommunicationLayer(model, optimizer)
                comm.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
                assert comm.monitor.provisional.before is not None
            train(model, optimizer, int(i >= 100), 1, comm, start=i)
        assert comm.events == [103]
        weights.append([p.detach().clone() for p in model.parameters()])
    for a, b in zip(*weights, strict=True):
        assert torch.equal(a, b)


def windows(comm):
    state = comm.state_dict()
    rules = [{key: rule[key] for key in ("age", "window", "demand")} for rule in state["rules"].values()]
    pull, classes = state["pull"]["fisher"], state["adjustment"]
    return rules, {key: pull[key] for key in ("age", "sums")}, {key: classes[key] for key in ("targets", "priors")}


def test_a_roll_back_restores_the_windows():
    model = net()
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    comm = CommunicationLayer(model, optimizer, consolidate_on=None)
    train(model, optimizer, 0, 40, comm)
    before = windows(comm)
    comm.monitor.provisional.consolidate()
    train(model, optimizer, 1, 5, comm)
    assert [rule["age"] for rule in windows(comm)[0]] == [5, 5]
    comm.monitor.provisional.roll_back()
    assert equal(windows(comm), before)


@pytest.mark.slow
def test_a_change_that_is_suspected_at_once_is_held_as_if_it_had_been_announced():
    losses = []
    for told in (False, True):
        model = net()
        optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
        comm = CommunicationLayer(model, optimizer, consolidate_on=None if told else "novelty")
        train(model, optimizer, 0, 100, comm)
        if told:
            comm.consolidate()
        train(model, optimizer, 1, 60, comm)
        assert comm.events == [100 if told else 103]
        assert [rule["age"] for rule in windows(comm)[0]] == [60, 60]
        losses.append([loss(model, 0), loss(model, 1)])
    # The rows of the first batch are not collected, so the pull begins with an overlap of 1.
    assert losses[0] == pytest.approx(losses[1], rel=0.05)
