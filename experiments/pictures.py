"""``python -m experiments.pictures``: images of report pages of real runs for the docs, and the measured values."""

import argparse
import math
from collections.abc import Iterator, Sequence
from pathlib import Path

from PIL import Image
from rich.console import Console

from experiments import console as show
from experiments.browser import Browser, browser
from experiments.continual.protocol import Result, command
from experiments.continual.streams import STREAMS, count
from experiments.demo import METHODS
from experiments.pages import grid, rewrite
from experiments.watched import page, watch
from sal_lightning.report.plot_elements import BANDS
from sal_lightning.report.reading import Run, read

PLOTS = ("overview", "preservation", "spectrum", "emergence", "drift", "flow", "layers-held", "layers-observed")
ACCURACIES = ("just_learned", "average")
NARROW, WIDE, CARD = 400, 1400, 760  # pixels
TALL = 2200  # height to which the narrow page is cropped


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = argparse.ArgumentParser(prog="python -m experiments.pictures", description=__doc__)
    made.add_argument("--stream", choices=STREAMS, default="split-domain")
    made.add_argument("--data", default="mnist", help="as in experiments.continual (default: %(default)s)")
    made.add_argument("--steps", type=int, default=500, help="training steps per task (default: %(default)s)")
    made.add_argument("--seed", type=int, default=0)
    made.add_argument("--runs", type=Path, default=Path("out/pictures"), help="folder for the runs and the page")
    made.add_argument("--docs", type=Path, default=Path("docs"), help="docs folder; images are written to its report/")
    return made


def train(args: argparse.Namespace, console: Console) -> Iterator[Result]:
    """Train without and with SAL on the same stream."""
    with show.bar(console) as progress:
        for method in METHODS:
            ticker = show.Ticker(progress, progress.add_task(method, total=count(args.stream) * args.steps))
            options = {"seed": args.seed, "steps": args.steps, "data": args.data, "every": args.steps}
            yield watch(args.stream, method, args.runs, [ticker], **options)


def shoot(window: Browser, file: Path, folder: Path) -> None:
    """Images of the page at both widths and in both themes, and of each section."""
    window.goto(file, WIDE)
    window.picture(folder / "page-wide.png", scale=0.75)
    window.goto(file, NARROW, "dark")
    window.picture(folder / "page-narrow.png", height=TALL, scale=0.75)
    window.goto(file, CARD)
    for number, name in enumerate(PLOTS, 1):
        window.picture(folder / f"{name}.png", f"section:nth-of-type({number})")
    for picture in folder.glob("*.png"):
        Image.open(picture).convert("RGB").quantize(dither=Image.Dither.NONE).save(picture, optimize=True)


def measured(run: Run, against: Run, result: Result) -> str:
    """The spectra and the drift, with the command that reproduces them."""
    rows: list[tuple[str, ...]] = []
    for prefix, label in (("observed/", "observed"), ("", "held")):
        rows.append((f"{label}, at the end", *(f"{run.series[prefix + band].values[-1]:.1f}" for band in BANDS)))
    found = (*(one.last("feature_drift") for one in (run, against)), *map(result.measures.get, ACCURACIES))
    ours, theirs, learned, kept = (math.nan if x is None else x for x in found)
    repeat = command(result.scenario, " ".join(METHODS), result.seed, result.steps, result.data, None)
    return (
        f"{grid(('percent of weights', *BANDS), rows)}\n"
        f"Feature drift of the first task at the end: {ours:.3f} with SAL, {theirs:.3f} plain. Accuracy with SAL: "
        f"{learned:.3f} on average on a task just learned, {kept:.3f} on all at the end.\n\n"
        f"{result.scenario}, {result.data}, {result.steps} steps a task, seed {result.seed}; "
        f"commit {result.commit[:8]}. "
        f"`python -m experiments.pictures` repeats it; the same runs without pages: `{repeat}`.\n"
    )


def main(argv: Sequence[str] | None = None) -> None:
    """Train, write the page, and take its images."""
    args = parser().parse_args(argv)
    console = Console()
    *_, last = train(args, console)
    file = page(args.runs, args.runs / "report.html")
    with browser() as window:
        shoot(window, file, args.docs / "report")
    run, against = (read([args.runs / method]) for method in reversed(METHODS))
    rewrite(args.docs / "report.md", "measured", measured(run, against, last))
    console.print(f"The page: {file.resolve()}", soft_wrap=True)


if __name__ == "__main__":
    main()
