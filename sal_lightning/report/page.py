"""One page of a run: the verdict, then plots of what was logged, then what was not logged and how to log it."""

from collections.abc import Iterator, Sequence
from html import escape
from pathlib import Path
from typing import NamedTuple

from sal_lightning import summary
from sal_lightning.consolidation_reasons import Counts
from sal_lightning.report import cascade_plot, plots
from sal_lightning.report import layers as layered
from sal_lightning.report.plot_elements import BANDS
from sal_lightning.report.reading import Run
from sal_lightning.stability import StabilitySpectrum
from sal_lightning.summary import Account
from sal_page import Section, render

EPS = 1e-12
SHOWN = 12  # up to this many consolidations are listed; more are counted


def write(run: Run, file: Path, against: Run | None = None) -> Path:
    """Write the page of a run, compared with the run ``against`` if given; returns the file."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(render(f"SAL: {run.name}", _subtitle(run, against), sections(run, against)), encoding="utf-8")
    return file


def verdict(run: Run) -> str:
    """How much is held at the end, and after which consolidations, in one sentence; or why this is not known."""
    if "protected" not in run.series:
        return "What is held is not known: this run logged no spectrum. Train with SALCallback and a logger."
    steps = run.series["protected"].steps[-1]
    if late := [event for event in run.events if event > steps]:
        return (
            f"How much is held is not known: it was logged last at step {steps:.0f}, and something was consolidated at "
            f"step {late[-1]:.0f}."
        )
    # An interrupted run may not have logged all of its events.
    made = max(len(run.events), round(run.last("consolidations") or 0))
    held = StabilitySpectrum(*(run.last(band) or 0.0 for band in BANDS))
    return summary.verdict(Account(held, Counts(unknown=made), round(_steps(run))))


def sections(run: Run, against: Run | None = None) -> Iterator[Section]:
    """The verdict and its timeline, the plots of what was logged, each layer, and a list of what was not logged."""
    yield overview(run)
    plotted = [preservation(run), spectrum(run), emergence(run), drift(run, against), flow(run)]
    shown = [one for one in plotted if isinstance(one, Section)]
    # Sections fill two columns; the last of an odd number would leave the other one empty.
    yield from (one._replace(wide=len(shown) % 2 == 1 and one is shown[-1]) for one in shown)
    yield from layers(run)
    absent = [one for one in plotted if isinstance(one, Missing)]
    if not run.layers():
        absent.append(
            Missing("Layers", "Weights & Biases gets them with SALCallback(histograms=True), a CSVLogger always.")
        )
    if absent:
        yield not_logged(absent)


class Missing(NamedTuple):
    """A plot whose values this run did not log."""

    plot: str
    why: str  # how to log them


def overview(run: Run) -> Section:
    """The verdict in one sentence, and the spectrum over the whole run."""
    return Section(verdict(run), "", (plots.timeline(run),) if "protected" in run.series else (), wide=True)


def not_logged(absent: Sequence[Missing]) -> Section:
    """Which plots are left out, and how to log their values."""
    rows = "".join(f"<li><b>{escape(one.plot)}</b>: {escape(one.why)}</li>" for one in absent)
    return Section("Not logged in this run", wide=True, markup=f"<ul>{rows}</ul>")


def preservation(run: Run) -> Section | Missing:
    """The held shares of the gradient and of the update."""
    title = "Gradient preservation: how much was held back"
    if not {"suppressed", "effect"} <= run.series.keys():
        return Missing("Gradient preservation", "nothing was held back: train with SALCallback.")
    gradient, update = run.last("suppressed"), run.last("effect")
    text = (
        "Share of the gradient's norm that SAL held back, and share of the norm of the optimizer's update. "
        f"At the end {gradient:.0%} and {update:.0%}. Dotted lines: consolidations."
    )
    return Section(title, text, (plots.preservation(run),))


def spectrum(run: Run) -> Section | Missing:
    """The stability spectrum, at the end and over time."""
    title = "Stability spectrum: protected, neutral, volatile"
    if "protected" not in run.series:
        return Missing("Stability spectrum", "train with SALCallback and a logger.")
    text = (
        "Held: stability with which each weight is held in the next update. Observed: stability measured by the "
        "movement of the weights, held or not. Bars: at the end of this run."
    )
    return Section(title, text, (plots.spectrum(run), plots.at_end(run)))


def emergence(run: Run) -> Section | Missing:
    """Coherence, novelty and resonance of the emergence field."""
    title = "Emergence map: coherence and novelty"
    if not {"coherence", "novelty"} <= run.series.keys():
        return Missing("Emergence map", "SALCallback(field=LAYER) logs coherence, novelty and resonance of a layer.")
    text = (
        "Each point is a logged step; later ones are brighter. Steps that are coherent and new lie in the marked area"
    )
    if "emergence" in run.series:
        found = run.series["emergence"].values
        text += f": {sum(value > 0 for value in found)} of {len(found)}"
    return Section(title, f"{text}.", (plots.emergence(run), plots.resonance(run)))


def drift(run: Run, against: Run | None = None) -> Section | Missing:
    """Drift of the features of fixed inputs."""
    title = "Drift: how far the features of the same inputs moved"
    if "feature_drift" not in run.series:
        return Missing("Drift", "add sal_lightning.DriftMonitor to this run, and to a run without SAL to compare with.")
    text = "Distance of the last hidden features of fixed inputs from their reference, relative to their norm."
    less = None if against is None else plots.less_drift(run, against)
    if less is not None:
        step, ours, theirs = less
        change = 1 - ours / max(theirs, EPS)
        much = f"{abs(change):.0%} {'less' if change >= 0 else 'more'}"
        text += f" At step {step:.0f}: {ours:.2f} here, {theirs:.2f} in {against.name if against else ''}: {much}."
    else:
        text += " Use --against to compare with a run without SAL."
    return Section(title, text, (plots.drift(run, against if less else None),))


def flow(run: Run) -> Section | Missing:
    """Pulses that split, merge and expire."""
    title = "Pulse-Split-Cascade: which states resonated"
    if run.cascade is None:
        return Missing("Pulse-Split-Cascade", "sal_lightning.report.flow.save(cascade, FOLDER) saves that of a run.")
    text = (
        "Each line is a pulse, each colour a lineage; it branches where it splits and ends where it merges or expires. "
        f"The emerged pulse represents {run.cascade['share']:.0%} of the first pulses."
    )
    return Section(title, text, (cascade_plot.cascade(run.cascade),))


def layers(run: Run) -> Iterator[Section]:
    """Each layer's spectrum, held and observed."""
    for kind, meaning in (("held", "as applied to the next update"), ("observed", "as measured by movement")):
        if any(f"layers/{name}/{kind}/protected" in run.series for name in run.layers()):
            text = "Percent of the layer's weights; dotted lines: consolidations."
            yield Section(f"Layers, {kind}: {meaning}", text, (layered.layers(run, kind),))


def _subtitle(run: Run, against: Run | None) -> str:
    found = "" if not run.events else f"; consolidated at {len(run.events)} steps"
    if 0 < len(run.events) <= SHOWN:
        found = f"; consolidated at step {', '.join(f'{event:.0f}' for event in run.events)}"
    other = f"; compared with {against.name}" if against else ""
    return f"{_steps(run):.0f} steps{found}{other}."


def _steps(run: Run) -> float:
    return max((series.steps[-1] for series in run.series.values()), default=0)
