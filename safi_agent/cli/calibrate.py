"""``safi calibrate``: measure how far the judges agree with people."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from safi_agent import defaults
from safi_agent.cli.card_table import print_card
from safi_agent.cli.options import Model, Values, one_line_errors

if TYPE_CHECKING:
    from safi_agent.calibration.judging import Judgement, Judges
    from safi_agent.calibration.labels import Case, Labels
    from safi_agent.values import ValueSet

INCOMPLETE = 1
JUDGE = "Default: the model of --model."


def calibrate(
    labels: Annotated[Path, typer.Argument(metavar="LABELS", help="Human labels, in JSON Lines.")],
    values: Values = "unesco",
    model: Model = None,
    will_model: Annotated[str | None, typer.Option(metavar="NAME", help=f"The Will's model. {JUDGE}")] = None,
    conscience_model: Annotated[
        str | None, typer.Option(metavar="NAME", help=f"The Conscience's model. {JUDGE}")
    ] = None,
    conscience_calls: Annotated[
        str,
        typer.Option(
            metavar="all|each",
            help='"all": one call for all values, as in the chain; "each": one call per labelled value.',
        ),
    ] = defaults.CONSCIENCE_CALLS,
    score_mode: Annotated[
        str,
        typer.Option(
            metavar="discrete|continuous", help='"discrete": scores -1, 0, 0.5, 1; "continuous": any in [-1, 1].'
        ),
    ] = defaults.SCORE_MODE,
    prompts: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="A YAML file with prompts of the judges, as the chain has them."),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Path of the card. Default: the labels' path with the suffix .card.json."),
    ] = None,
    at_once: Annotated[
        int, typer.Option(metavar="COUNT", help="Largest number of answers that are judged concurrently.", min=1)
    ] = 8,
    seed: Annotated[
        int, typer.Option(metavar="NUMBER", help="Seed of the division into halves and of the intervals.")
    ] = 0,
) -> None:
    """Measure how judges agree with people.

    The Will and the Conscience judge human-labelled answers; how far they agree is printed and written to a card.

    Judgements are appended to a file beside the card as they come, and the same command continues from there. A page in
    Markdown is written beside the card; "safi report --card" shows it.

    Exit code: 0 if all answers were judged; 1 if a model failed on some; 2 if there is no card.
    """
    from safi_agent.calibration.card_page import write_card
    from safi_agent.calibration.labels import read_labels
    from safi_agent.calibration.measurement import make_card
    from safi_agent.values import load_values

    card_file = out or labels.with_suffix(".card.json")
    judged_file = card_file.with_suffix(".judged.jsonl")
    go_on = f"Judgements so far are in {judged_file}; the same command continues from there."
    with one_line_errors("calibrate", interrupted=go_on):
        if card_file.suffix != ".json" or card_file.resolve() == labels.resolve():
            raise ValueError(f"--out: expected another file than the labels, ending in .json, got {str(card_file)!r}.")
        value_set = load_values(values)
        given = read_labels(labels, value_set)
        names = (will_model or model, conscience_model or model)
        judges = _judges(value_set, names, conscience_calls, score_mode, prompts)
        judged = _judge(given, judges, judged_file, at_once)
        card = make_card(given, labels.name, value_set, judges.description, judged, seed)
        page = write_card(card, card_file)
    from safi_agent.calibration.card_page import about

    print_card(card.rows, about(card), card.warnings)
    typer.echo(f"{card_file}: {card.labels} labels on {card.answers} answers; also as {page.name}.")
    raise typer.Exit(INCOMPLETE if card.failed else 0)


def _judges(
    values: "ValueSet", names: tuple[str | None, str | None], calls: str, score_mode: str, prompts: Path | None
) -> "Judges":
    from safi_agent.calibration.judging import Judges
    from safi_agent.models import default_model, resolve
    from safi_agent.prompts import load_prompts

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
    own = load_prompts({} if prompts is None else prompts)
    return Judges(values, will, conscience, calls, score_mode, own)  # type: ignore[arg-type]


def _judge(given: "Labels", judges: "Judges", file: Path, at_once: int) -> "dict[Case, Judgement]":
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from safi_agent.calibration.judging import judge_cases

    cases = given.cases()
    columns = (TextColumn("judging"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as progress:
        bar = progress.add_task("", total=len(cases))
        return judge_cases(cases, judges, file, at_once, lambda: progress.advance(bar))
