"""One page of a run: what it held back, what settled, what emerged, how far it drifted."""

from collections.abc import Iterator
from pathlib import Path

from sal_lightning import summary
from sal_lightning.consolidation_reasons import Counts
from sal_lightning.report import layers as layered
from sal_lightning.report import plots, pulses
from sal_lightning.report.parts import BANDS
from sal_lightning.report.reading import Run
from sal_lightning.stability import StabilitySpectrum
from sal_lightning.summary import Account
from sal_page import Section, render

EPS = 1e-12
SHOWN = 12  # consolidations that are listed; of more there is the number


def write(run: Run, file: Path, against: Run | None = None) -> Path:
    """Write the page of this run, compared with another one if there is such."""
    file.parent.mkdir(parents=True, exist_ok=True)
    head = f"{verdict(run)} {_subtitle(run, against)}"
    file.write_text(render(f"SAL: {run.name}", head, sections(run, against)), encoding="utf-8")
    return file


def verdict(run: Run) -> str:
    """How much is held at the end, and what it followed from, in a sentence; says so where the run tells too little."""
    if "protected" not in run.series:
        return "What is held is not known: this run logged no spectrum. Train with SALCallback and a logger."
    steps = run.series["protected"].steps[-1]
    if late := [event for event in run.events if event > steps]:
        return (
            f"How much is held is not known: it was logged last at step {steps:.0f}, and something was consolidated at "
            f"step {late[-1]:.0f}."
        )
    # A run that was broken off may not have told all of its events.
    made = max(len(run.events), round(run.last("consolidations") or 0))
    held = StabilitySpectrum(*(run.last(band) or 0.0 for band in BANDS))
    return summary.verdict(Account(held, Counts(unknown=made), round(_steps(run))))


def sections(run: Run, against: Run | None = None) -> Iterator[Section]:
    """The five plots of SAL's README from what this run logged, then each layer; what is missing says how to get it."""
    yield preservation(run)
    yield spectrum(run)
    yield emergence(run)
    yield drift(run, against)
    yield flow(run)
    yield from layers(run)


def preservation(run: Run) -> Section:
    """What was held back."""
    title = "Gradient preservation: how much was held back"
    if not {"suppressed", "effect"} <= run.series.keys():
        return _missing(title, "nothing was held back in this run: train with SALCallback.")
    gradient, update = run.last("suppressed"), run.last("effect")
    text = (
        "Share of the gradient's norm that SAL held back, and of the norm of what the optimizer then did. "
        f"At the end {gradient:.0%} and {update:.0%}. Dotted: what had emerged was consolidated."
    )
    return Section(title, text, (plots.preservation(run),))


def spectrum(run: Run) -> Section:
    """The bands, now and over time."""
    title = "Stability spectrum: protected, neutral, volatile"
    if "protected" not in run.series:
        return _missing(title, "the spectrum was not logged: train with SALCallback and a logger.")
    text = (
        "Held: how firmly the next update would meet each weight. Observed: what has settled by its own movement, held "
        "or not. The bars: the spectrum that SAL's README shows, and those measured at the end of this run."
    )
    return Section(title, text, (plots.spectrum(run), plots.healthy(run)))


def emergence(run: Run) -> Section:
    """Coherent and new."""
    title = "Emergence map: coherence and novelty"
    if not {"coherence", "novelty"} <= run.series.keys():
        return _missing(title, "coherence was not logged: give SALCallback a field.")
    text = "Each point is a logged step, the later the brighter. What is coherent and new lies in the marked corner"
    if "emergence" in run.series:
        found = run.series["emergence"].values
        text += f": {sum(value > 0 for value in found)} of {len(found)}"
    return Section(title, f"{text}.", (plots.emergence(run), plots.resonance(run)))


def drift(run: Run, against: Run | None = None) -> Section:
    """How far what was there has moved."""
    title = "Drift: how far the features of the same inputs moved"
    if "feature_drift" not in run.series:
        return _missing(
            title,
            "drift of features was not logged: add sal_lightning.DriftMonitor to this run and a plain one.",
        )
    text = "Distance of the last hidden features of fixed inputs from what they were, relative to their size."
    less = None if against is None else plots.less_drift(run, against)
    if less is not None:
        step, ours, theirs = less
        change = 1 - ours / max(theirs, EPS)
        much = f"{abs(change):.0%} {'less' if change >= 0 else 'more'}"
        text += f" At step {step:.0f}: {ours:.2f} here, {theirs:.2f} in {against.name if against else ''}: {much}."
    else:
        text += " A plain run to compare with is named by --against."
    return Section(title, text, (plots.drift(run, against if less else None),))


def flow(run: Run) -> Section:
    """Pulses that split, merge and expire."""
    title = "Pulse-Split-Cascade: which states resonated"
    if run.cascade is None:
        return _missing(
            title, "no cascade was kept beside this run: sal_lightning.report.flow.save(cascade, folder) keeps one."
        )
    text = (
        "Each line is a pulse, each colour a lineage; it branches where it splits and ends where it merges or expires. "
        f"What emerged speaks for {run.cascade['share']:.0%} of the first pulses."
    )
    return Section(title, text, (pulses.cascade(run.cascade),))


def layers(run: Run) -> Iterator[Section]:
    """Each layer's spectrum, as held and as observed."""
    for kind, meaning in (("held", "what the next update meets"), ("observed", "what has settled by itself")):
        if any(f"layers/{name}/{kind}/protected" in run.series for name in run.layers()):
            text = "Percent of the layer's weights; dotted: consolidated."
            yield Section(f"Layers, {kind}: {meaning}", text, (layered.layers(run, kind),))


def _missing(title: str, why: str) -> Section:
    return Section(title, f"Not shown: {why}")


def _subtitle(run: Run, against: Run | None) -> str:
    found = "" if not run.events else f"; consolidated at {len(run.events)} steps"
    if 0 < len(run.events) <= SHOWN:
        found = f"; consolidated at step {', '.join(f'{event:.0f}' for event in run.events)}"
    other = f"; compared with {against.name}" if against else ""
    return f"{_steps(run):.0f} steps{found}{other}."


def _steps(run: Run) -> float:
    return max((series.steps[-1] for series in run.series.values()), default=0)
