"""The page of a real run, in a real browser."""

import itertools

import pytest
from lightning.pytorch.loggers import CSVLogger

from sal_lightning import SALCallback
from sal_lightning.drift_monitor import DriftMonitor
from sal_lightning.emergence.cascade import PulseCascade
from sal_lightning.report import flow, page, plot_elements, plots
from sal_lightning.report import layers as layered
from sal_lightning.report.reading import Run, Series, read
from tests.browser import look
from tests.everywhere.models import Batches
from tests.sal_lightning.report.runs import fit

pytestmark = pytest.mark.slow

X = Batches()[0][0]
# What plotly drew, as numbers: the end of each line in units of its axes.
LINES = """
const figure = document.querySelectorAll(".figure")[arguments_0];
return figure.data.map(t => [t.name, t.x && t.x.length, t.y && Array.from(t.y).slice(-1)[0]]);
"""


@pytest.fixture(scope="module")
def window():
    yield from look()


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    for name, callbacks in (("sal", [SALCallback(strength=4.0)]), ("plain", [])):
        fit(folder, [*callbacks, DriftMonitor(X, since=30)], logger=CSVLogger(folder, name="", version=name))
    cascade = PulseCascade()
    cascade.initiate(X[:12])
    for _ in range(4):
        cascade.step(lambda x: x + 0.2 * (x.roll(1, 0) - x))
    flow.save(cascade, folder / "sal")
    return read([folder / "sal"]), read([folder / "plain"])


@pytest.fixture(scope="module")
def written(runs, tmp_path_factory):
    return page.write(runs[0], tmp_path_factory.mktemp("page") / "page.html", runs[1])


@pytest.mark.parametrize(("width", "theme"), [(400, "dark"), (1400, "light")])
def test_every_plot_is_drawn_and_nothing_is_cut_off(window, written, width, theme):
    window.goto(written, width, theme)
    first, *headings = window.ask(
        "return [...document.querySelectorAll('h2')].map(h => h.textContent.split(/[:,]/)[0])"
    )
    assert first.startswith("Holds ")
    assert headings == [
        "Gradient preservation",
        "Stability spectrum",
        "Emergence map",
        "Drift",
        "Pulse-Split-Cascade",
        "Layers",
        "Layers",
    ]
    figures = window.figures()
    assert len(figures) == 10
    assert all(figures)
    # Each holds something: lines, areas, bars or points.
    marks = "return [...document.querySelectorAll('.figure')].map(f => f.querySelectorAll('path, rect.bg').length)"
    assert min(window.ask(marks)) > 3
    assert window.cut_off() == []
    assert window.errors() == []
    assert window.requests() == []


def test_what_is_drawn_is_what_was_logged(window, runs, written):
    window.goto(written)
    run, plain = runs
    lines = {name: (n, last) for name, n, last in window.ask(LINES.replace("arguments_0", "1"))}
    assert lines["gradient"][0] == len(run.series["suppressed"].steps) == 6
    assert lines["gradient"][1] == pytest.approx(100 * run.last("suppressed"), rel=1e-6)
    assert lines["update"][1] == pytest.approx(100 * run.last("effect"), rel=1e-6)
    drifts = {name: last for name, _, last in window.ask(LINES.replace("arguments_0", "6"))}
    assert drifts["this run"] == pytest.approx(run.last("feature_drift"))
    assert drifts["the other"] == pytest.approx(plain.last("feature_drift"))
    text = window.ask("return document.body.textContent")
    assert f"{run.last('feature_drift'):.2f} here, {plain.last('feature_drift'):.2f} in" in text
    assert "60 steps; consolidated at step 43; compared with " in text


def test_it_begins_with_the_verdict(window, runs, written):
    window.goto(written)
    held, part = (round(runs[0].last(band)) for band in ("protected", "neutral"))
    assert held > 0
    head = window.ask("return document.querySelector('h2').textContent")
    assert head == f"Holds {held} % of the weights firmly and {part} % in part; 1 consolidation was made."
    timeline = {name: last for name, _, last in window.ask(LINES.replace("arguments_0", "0"))}
    assert timeline["protected"] == pytest.approx(runs[0].last("protected"))


ALL = {"protected": 63.0, "neutral": 0.0, "volatile": 37.0}


@pytest.mark.parametrize(
    ("values", "events", "sentence"),
    [
        (ALL, [12.0], "Holds 63 % of the weights; 1 consolidation was made."),
        (ALL, [30.0], "Holds 63 % of the weights; 1 consolidation was made."),
        (ALL | {"consolidations": 2.0}, [12.0], "Holds 63 % of the weights; 2 consolidations were made."),
        (ALL, [], "Nothing is held: nothing was consolidated in 30 steps."),
        (ALL, [12.0, 31.0], "How much is held is not known: it was logged last at step 30, and something was "
                            "consolidated at step 31."),
        ({"feature_drift": 0.1}, [], "What is held is not known: this run logged no spectrum. "
                                     "Train with SALCallback and a logger."),
    ],
)  # fmt: skip
def test_the_verdict_says_what_the_run_can_tell_and_no_more(values, events, sentence):
    run = Run("a/run", {name: Series([10.0, 30.0], [0.0, value]) for name, value in values.items()}, events)
    assert page.verdict(run) == sentence


def test_the_verdict_is_that_of_the_callback(tmp_path):
    callback = SALCallback()
    fit(tmp_path, [callback], logger=CSVLogger(tmp_path, name="", version="run"))
    found, logged = callback.summary().replace("\n", " "), page.verdict(read([tmp_path / "run"]))
    assert found.split(";")[0] == logged.split(";")[0]


def test_a_plain_run_says_what_is_missing(window, runs, tmp_path):
    window.goto(page.write(runs[1], tmp_path / "plain.html"))
    text = window.ask("return document.body.textContent")
    listed = text.partition("Not logged in this run")[2]
    for plot in ("Gradient preservation", "Stability spectrum", "Emergence map", "Pulse-Split-Cascade"):
        assert plot in listed
    assert "Use --against" in text
    assert len(window.figures()) == 1
    # A single plot takes both columns.
    assert window.ask("return document.querySelectorAll('section:not(.wide)').length") == 0
    assert window.errors() == []


def big(layers):
    """A run of a network of many layers with long names."""
    steps = [10.0, 20.0, 30.0]
    name = "layers/transformer.encoder.block.{}.attention.output.projection/{}/{}"
    series = {
        name.format(i, kind, band): Series(steps, [100 / 3] * 3)
        for i, kind, band in itertools.product(range(layers), ("held", "observed"), plot_elements.BANDS)
    }
    return Run("a/run", series, [20.0])


@pytest.mark.parametrize("layers", [layered.MOST, 40])
def test_networks_of_many_layers_fit_too(window, tmp_path, layers):
    file = page.write(big(layers), tmp_path / "big.html")
    for width in (400, 1400):
        window.goto(file, width)
        assert len(window.figures()) == 2
        assert all(window.figures())
        assert window.cut_off() == []
    kinds = set(window.ask("return document.querySelector('.figure').data.map(t => t.type)"))
    assert kinds == ({"scatter"} if layers <= layered.MOST else {"heatmap"})


def test_the_bars_are_the_last_measured(runs):
    rows = {bar.name: dict(zip(bar.y, bar.x, strict=True)) for bar in plots.at_end(runs[0]).data}
    assert sum(row["held"] for row in rows.values()) == pytest.approx(100)
    assert rows["protected"]["observed"] == runs[0].last("observed/protected")
