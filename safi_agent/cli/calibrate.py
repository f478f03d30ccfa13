"""``safi calibrate``: measure how far the judges agree with people."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from safi_agent import defaults
from safi_agent.cli.options import Model, Values, one_line_errors, printable

if TYPE_CHECKING:
    from safi_agent.calibration.card import Card
    from safi_agent.calibration.judging import Judgement, Judges
    from safi_agent.calibration.labels import Case, Labels
    from safi_agent.values import ValueSet

INCOMPLETE = 1
JUDGE = "Default: the model of --model."


def calibrate(
    labels: Annotated[Path, typer.Argument(help="Human labels, in JSON Lines.")],
    values: Values = "unesco",
    model: Model = None,
    will_model: Annotated[str | None, typer.Option(help=f"The Will's model. {JUDGE}")] = None,
    conscience_model: Annotated[str | None, typer.Option(help=f"The Conscience's model. {JUDGE}")] = None,
    conscience_calls: Annotated[
        str, typer.Option(help='"all": one call for all values, as in the chain; "each": one call per labelled value.')
    ] = defaults.CONSCIENCE_CALLS,
    score_mode: Annotated[
        str, typer.Option(help='"discrete": scores -1, 0, 0.5, 1; "continuous": any in [-1, 1].')
    ] = defaults.SCORE_MODE,
    to: Annotated[
        Path | None, typer.Option(help="Path of the card. Default: the labels' path with the suffix .card.json.")
    ] = None,
    at_once: Annotated[int, typer.Option(help="Largest number of answers that are judged concurrently.", min=1)] = 8,
    seed: Annotated[int, typer.Option(help="Seed of the division into halves and of the intervals.")] = 0,
) -> None:
    """Let the Will and the Conscience judge human-labelled answers; print and write how far they agree with people.

    Judgements are appended to a file beside the card as they come, and the same command continues from there. A page in
    Markdown is written beside the card; "safi report --card" shows it.

    Exit code: 0 if all answers were judged; 1 if a model failed on some; 2 if there is no card.
    """
    from safi_agent.calibration.card_page import write_card
    from safi_agent.calibration.labels import read_labels
    from safi_agent.calibration.measurement import make_card
    from safi_agent.values import load_values

    card_file = to or labels.with_suffix(".card.json")
    with one_line_errors("calibrate"):
        if card_file.suffix != ".json" or card_file.resolve() == labels.resolve():
            raise ValueError(f"--to: expected another file than the labels, ending in .json, got {str(card_file)!r}.")
        value_set = load_values(values)
        given = read_labels(labels, value_set)
        names = (will_model or model, conscience_model or model)
        judges = _judges(value_set, names, conscience_calls, score_mode)
        judged = _judge(given, judges, card_file.with_suffix(".judged.jsonl"), at_once)
        card = make_card(given, labels.name, value_set, judges.description, judged, seed)
        page = write_card(card, card_file)
    _print(card)
    typer.echo(f"{card_file}: {card.labels} labels on {card.answers} answers; also as {page.name}.")
    raise typer.Exit(INCOMPLETE if card.failed else 0)


def _judges(values: "ValueSet", names: tuple[str | None, str | None], calls: str, score_mode: str) -> "Judges":
    from safi_agent.calibration.judging import Judges
    from safi_agent.models import default_model, resolve

    for option, given, allowed in (
        ("--conscience-calls", calls, ("all", "each")),
        ("--score-mode", score_mode, ("discrete", "continuous")),
    ):
        if given not in allowed:
            raise ValueError(f"{option}: expected {' or '.join(map(repr, allowed))}, got {given!r}.")
    will, conscience = (
        resolve(name or default_model(), argument, judge=True)
        for name, argument in zip(names, ("will_model", "conscience_model"), strict=True)
    )
    return Judges(values, will, conscience, calls, score_mode)  # type: ignore[arg-type]


def _judge(given: "Labels", judges: "Judges", file: Path, at_once: int) -> "dict[Case, Judgement]":
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from safi_agent.calibration.judging import judge_cases

    cases = given.cases()
    columns = (TextColumn("judging"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as progress:
        bar = progress.add_task("", total=len(cases))
        return judge_cases(cases, judges, file, at_once, lambda: progress.advance(bar))


def _print(card: "Card") -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from safi_agent.calibration.card_page import about, table

    shown = Table(box=None, padding=(0, 1, 0, 0))
    headings, rows = table(card.rows)
    for i, name in enumerate(headings):
        shown.add_column(name, justify="right" if i > 1 else "left")
    for line in rows:
        shown.add_row(*(Text(printable(cell)) for cell in line))
    console = Console(highlight=False)
    console.print(shown)
    for sentence in (*about(card), *(f"Warning: {warning}" for warning in card.warnings)):
        console.print(Text(printable(sentence)))
