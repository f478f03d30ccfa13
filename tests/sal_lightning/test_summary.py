"""Reports of a callback: the verdict, its repr and the summary."""

import copy
import re

import pytest
import torch
from torch import nn

from sal_lightning import CommunicationLayer, SALCallback, StabilityAnalyzer, StabilitySpectrum
from sal_lightning.consolidation_reasons import Counts
from sal_lightning.report.histograms import views
from sal_lightning.summary import Account, short, text, verdict
from tests.everywhere import models
from tests.everywhere.models import Alternating, At, trainer
from tests.sal_lightning.nets import Net, loader

FREE, PART, FIRM = StabilitySpectrum(0, 0, 100), StabilitySpectrum(6, 35, 59), StabilitySpectrum(63, 0, 37)


@pytest.mark.parametrize(
    ("account", "sentence", "words"),
    [
        (
            Account(FREE, Counts(), 0, "novelty"),
            "Nothing is held: no training step was taken yet.",
            "not trained yet",
        ),
        (
            Account(FREE, Counts(), 500, "novelty"),
            "Nothing is held: no change of the data was detected in 500 steps. "
            "Call consolidate() where the data change.",
            "nothing consolidated in 500 steps",
        ),
        (
            Account(FREE, Counts(), 1, "fit"),
            "Nothing is held: what was learned in 1 step is consolidated when the next fit begins. "
            "Call consolidate() to do so now.",
            "nothing consolidated in 1 step",
        ),
        (
            Account(FREE, Counts(), 500, 1000),
            "Nothing is held: the first consolidation is at step 1000, and this is step 500. "
            "Call consolidate() to do so now.",
            "nothing consolidated in 500 steps",
        ),
        (
            Account(FREE, Counts(), 1500, None),
            "Nothing is held: neither consolidate() nor remember() was called in 1,500 steps. "
            "Call one of them, or set consolidate_on.",
            "nothing consolidated in 1,500 steps",
        ),
        (
            Account(FREE, Counts(), 500),
            "Nothing is held: nothing was consolidated in 500 steps.",
            "nothing consolidated in 500 steps",
        ),
        (
            Account(FIRM, Counts(found=2), 800, "novelty"),
            "Holds 63 % of the weights; 2 changes of the data were detected.",
            "2 changes detected, 63 % of the weights held",
        ),
        (
            Account(PART, Counts(found=1, asked=2), 800, "novelty"),
            "Holds 6 % of the weights firmly and 35 % in part; "
            "1 change of the data was detected and 2 consolidations were requested.",
            "1 change detected, 2 consolidations, 6 % of the weights held firmly and 35 % in part",
        ),
        (
            Account(StabilitySpectrum(0, 0.4, 99.6), Counts(unknown=1), 800),
            "Holds under 1 % of the weights in part; 1 consolidation was made.",
            "1 consolidation, under 1 % of the weights held in part",
        ),
        (
            Account(FREE, Counts(asked=1), 800, None),
            "Holds almost nothing: all weights are free to move; 1 consolidation was requested.",
            "1 consolidation, 0 % of the weights held",
        ),
        (
            Account(PART, Counts(), 800, "novelty", suspects=True),
            "Holds 6 % of the weights firmly and 35 % in part; a change of the data is suspected, "
            "and not confirmed yet.",
            "nothing consolidated in 800 steps, a change suspected",
        ),
        (
            Account(FREE, Counts(found=1), 800, "novelty", waits=True),
            "Nothing is held yet: the state of 800 steps, with 1 consolidation, "
            "is loaded when the next training begins.",
            "the state of 800 steps is loaded when the next training begins",
        ),
    ],
)
def test_the_verdict_has_a_sentence_and_a_short_form(account, sentence, words):
    assert verdict(account) == sentence
    assert short(account) == words


def rows(summary):
    """The content of each row by its label, lines joined."""
    found, label = {}, ""
    for line in summary.splitlines()[1:]:
        label = line[:11].strip() or label
        found[label] = f"{found.get(label, '')} {line[11:].strip()}".strip()
    return found


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A callback whose data changed at step 40, consolidated by hand at step 60."""
    callback = SALCallback(strength=8.0, field=None)
    trainer(tmp_path_factory.mktemp("fit"), [callback], log_every_n_steps=10).fit(Net(), loader())
    callback.consolidate()
    return callback


@pytest.mark.slow
def test_the_summary_agrees_with_the_values_of_the_callback(trained):
    said = trained.summary()
    first, table = said.splitlines()[0], rows(said)
    held, observed = trained.spectrum(), trained.spectrum("observed")
    assert first.startswith(f"Holds {held.protected:.0f} % of the weights firmly and {held.neutral:.0f} % in part; ")
    assert "1 change of the data was detected" in first
    for label, bands in (("Held", held), ("Observed", observed)):
        told = re.findall(r"(\d+) % (protected|neutral|volatile)", table[label])
        assert {band: int(n) for n, band in told} == {band: round(x) for band, x in bands._asdict().items()}
    assert table["Training"] == "60 steps of Adam"
    assert table["Events"] == "step 43 (the input of net.0), step 60 (by hand)"
    # 12·32+32, 32·4+4, 4·4+4 weights of Linear layers, and 4+4 of a norm.
    assert table["Weights"] == (
        "576 in training: 99 % by directions of the input (3 layers), 1 % weight by weight (net.3.bias, net.3.weight)"
    )
    assert table["Left out"] == "none of the trained weights"
    assert table["Warnings"] == "none"


@pytest.mark.slow
def test_the_held_share_is_that_of_the_last_logged_step(tmp_path):
    callback = SALCallback()
    run = trainer(tmp_path, [callback], log_every_n_steps=60)
    run.fit(Net(), loader())
    logged = {name: 100 * float(run.callback_metrics[f"sal/{name}"]) for name in ("suppressed", "effect", "drift")}
    assert logged["effect"] > 1
    assert rows(callback.summary())["Held back"] == (
        f"{logged['suppressed']:.0f} % of the gradient and {logged['effect']:.0f} % of the update, when last measured; "
        f"the held part of the weights has moved by {logged['drift']:.0f} % of its size"
    )


@pytest.mark.slow
def test_repr_shows_the_arguments_that_are_not_defaults(trained):
    assert repr(SALCallback()) == "SALCallback(): not trained yet"
    assert repr(SALCallback("element", 50, name="often", field="net.0")) == (
        "SALCallback(protection='element', consolidate_on=50, field='net.0', name='often'): not trained yet"
    )
    assert re.fullmatch(
        r"SALCallback\(strength=8\.0, field=None\): 1 change detected, 1 consolidation, "
        r"\d+ % of the weights held firmly and \d+ % in part",
        repr(trained),
    )
    assert str(trained) == repr(trained)
    again = copy.deepcopy(trained)
    assert (
        repr(again)
        == "SALCallback(strength=8.0, field=None): the state of 60 steps is loaded when the next training begins"
    )
    assert (
        again.summary()
        .replace("\n", " ")
        .startswith(
            "Nothing is held yet: the state of 60 steps, with 2 consolidations, "
            "is loaded when the next training begins."
        )
    )


def test_a_run_without_a_detected_change_is_reported(tmp_path):
    callback = SALCallback()
    trainer(tmp_path, [callback]).fit(Net(), loader(length=30, change=10**6))
    assert callback.summary().startswith("Nothing is held: no change of the data was detected in 30 steps.")
    table = rows(callback.summary())
    assert table["Events"] == "none"
    assert table["Held back"] == "nothing yet: nothing was consolidated"


def test_a_suspected_change_is_reported(tmp_path):
    callback, said = SALCallback(), []
    at = At(41, lambda *_: said.append(callback.summary()))
    trainer(tmp_path, [callback, at]).fit(Net(), loader(length=42))
    assert "a change of the data is suspected, and not confirmed yet." in said[0].replace("\n", " ")


# --- evidence ---


@pytest.mark.slow
def test_each_event_has_its_evidence(tmp_path):
    model = Net()
    for trigger, evidence in (("fit", "new fit"), (20, "every n steps")):
        callback = SALCallback(consolidate_on=trigger)
        for _ in range(2):
            trainer(tmp_path, [callback]).fit(model, loader(length=20, change=10**6))
        (layer,) = callback.layers
        assert set(layer.evidence) == set(layer.events)
        assert set(layer.evidence.values()) == {evidence}
        assert "requested." in callback.summary()
    callback = SALCallback(consolidate_on=None)
    callback.remember(model, loader(length=5))
    assert callback.layers[0].evidence == {0: "remembered"}
    callback.consolidate()
    callback.consolidate()
    assert callback.layers[0].evidence == {0: "remembered; by hand"}
    assert callback.events == [0, 0, 0]


def test_evidence_is_saved(trained, tmp_path):
    torch.save(trained.state_dict(), tmp_path / "state.pt")
    callback = SALCallback(strength=8.0, field=None)
    callback.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    model = Net()
    callback.begin(model, optimizers(model))
    callback.end()
    assert callback.events == [43, 60]
    assert callback.layers[0].evidence == {43: "the input of net.0", 60: "by hand"}
    assert "1 change of the data was detected and 1" in callback.summary()


@pytest.mark.parametrize("evidence", [["the loss"], {63: 1}, {"63": "the loss"}, {-1: "the loss"}])
def test_invalid_evidence_is_refused(trained, evidence):
    state = copy.deepcopy(trained.state_dict())
    state["layers"][0]["evidence"] = evidence
    with pytest.raises(ValueError, match="evidence"):
        SALCallback().load_state_dict(state)


# --- much to say ---


@pytest.mark.slow
def test_a_long_summary_fits_a_terminal():
    torch.manual_seed(0)
    name = "a_part_of_the_network_with_a_long_name_{}"
    parts = {name.format(i): nn.Linear(8, 8) for i in range(16)} | {f"norm_{i}": nn.LayerNorm(8) for i in range(16)}
    model = nn.Sequential()
    for part, module in parts.items():
        model.add_module(part, module)
    list(model.children())[5].requires_grad_(False)
    optimizer = torch.optim.SGD(list(model.parameters())[20:], lr=1e-3)
    layer = CommunicationLayer(model, optimizer, consolidate_on=2)
    for _ in range(60):
        model(torch.randn(4, 8)).square().mean().backward()
        optimizer.step()
    warnings = {str(i): f"Something that goes on and on {'and on ' * 40}. And a cure." for i in range(7)}
    account = Account(StabilitySpectrum(0.4, 99.4, 0.2), Counts(30, 30, 30), 10**6, "novelty", suspects=True)
    lines = text(account, [layer], layer.settings, warnings, {}).splitlines()
    assert len(lines) <= 26
    assert max(map(len, lines)) <= 100
    table = rows("\n".join(lines))
    assert table["Events"].startswith("24 earlier, step 50 (every n steps), step 52")
    assert "72 frozen weights; weights that no optimizer updates: a_part_of_the_network" in table["Left out"]
    assert table["Warnings"].endswith("and 3 more")
    assert "cure" not in table["Warnings"]


def test_weights_frozen_during_training_are_in_no_row_of_trainable_ones():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.LayerNorm(8), nn.Linear(8, 2))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    layer = CommunicationLayer(model, optimizer, consolidate_on=2)
    layer.collector.analyzer = StabilityAnalyzer(model, optimizer)
    for i in range(6):
        if i == 3:
            for p in (model[1].weight, model[2].bias):
                p.requires_grad_(False)
        optimizer.zero_grad()
        model(torch.randn(16, 4)).square().mean().backward()
        optimizer.step()
    account = Account(layer.spectrum(), Counts(asked=3), 6)
    table = rows(text(account, [layer], layer.settings, {}, {}))
    # 40 + 16 of the layers, 8 of the norm's bias.
    assert table["Weights"] == (
        "64 in training: 88 % by directions of the input (2 layers), 12 % weight by weight (1.bias)"
    )
    assert table["Left out"].startswith("10 frozen weights")
    assert float(layer.collector.coverage.bands().sum()) == float(layer.collector.analyzer.bands().sum()) == 64
    assert {name: view.weights for name, view in views([layer]).items()} == {"0": 40, "2": 16, "element": 8}
    for view in views([layer]).values():
        assert sum(view.held) == pytest.approx(view.weights)
        assert sum(view.observed) == pytest.approx(view.weights)


@pytest.mark.slow
def test_several_optimizers_share_one_summary(tmp_path):
    callback = SALCallback()
    trainer(tmp_path, [callback]).fit(Alternating(), loader())
    table = rows(callback.summary())
    assert table["Training"] == "60 steps of Adam, 60 steps of SGD"
    assert table["Weights"].startswith("548 in training: 100 % by directions of the input (2 layers)")
    assert len(re.findall(r"step \d+", table["Events"])) == len(set(callback.events))


def test_layers_that_do_not_run_are_named():
    class Idle(nn.Module):
        def __init__(self):
            super().__init__()
            self.used, self.idle = nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, x):
            return self.used(x)

    model = Idle()
    callback = SALCallback(field=None)
    callback.begin(model, optimizers(model))
    for i in range(3):
        callback.layers[0].optimizer.zero_grad()
        model(torch.randn(8, 4, generator=torch.Generator().manual_seed(i))).square().mean().backward()
        callback.layers[0].optimizer.step()
    callback.end()
    assert rows(callback.summary())["Left out"] == "layers that were not called: idle"


def optimizers(model):
    return [torch.optim.Adam(model.parameters(), lr=5e-3)]


@pytest.mark.slow
def test_the_summary_has_no_side_effects(tmp_path):
    ended = []
    for ask in (False, True):
        model, callback = Net(), SALCallback()
        at = [At(steps, lambda *_: (callback.summary(), repr(callback))) for steps in (30, 41, 42, 50)] if ask else []  # noqa: B023
        trainer(tmp_path, [callback, *at]).fit(model, loader())
        ended.append((models.weights(model), callback.state_dict()))
    assert models.equal(*ended)
