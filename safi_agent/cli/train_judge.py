"""``safi train-judge``: train a local judge from audits and human labels."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from safi_agent.cli.card_table import print_card
from safi_agent.cli.options import Values, existing_store, one_line_errors

if TYPE_CHECKING:
    from safi_agent.local.examples import Example
    from safi_agent.local.training import Advance
    from safi_agent.values import ValueSet


def train_judge(
    to: Annotated[Path, typer.Argument(metavar="FOLDER", help="The folder to write, which must not exist.")],
    values: Values = "unesco",
    labels: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Human labels, in JSON Lines; they win over audits.")
    ] = None,
    log: Annotated[
        list[Path] | None, typer.Option(metavar="FILE", help="A log with audits by a language model.")
    ] = None,
    store: Annotated[str | None, typer.Option(metavar="URL", help="URL of a store with such audits.")] = None,
    encoder: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Folder of an encoder of transformers, to begin with.")
    ] = None,
    previous: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Folder of the judge to train further, instead.")
    ] = None,
    train_encoder: Annotated[
        bool, typer.Option("--train-encoder", help="Train the encoder too; it is frozen otherwise.")
    ] = False,
    target: Annotated[
        float, typer.Option(metavar="SHARE", help="Agreement from which on a finding is sure, in (0.5, 1].")
    ] = 0.9,
    layers: Annotated[int, typer.Option(metavar="COUNT", help="Layers of the encoder to keep.", min=1)] = 3,
    epochs: Annotated[
        int, typer.Option(metavar="COUNT", help="Largest number of epochs; training may stop earlier.", min=1)
    ] = 100,
    seed: Annotated[int, typer.Option(metavar="NUMBER", help="Seed of the division of prompts and of training.")] = 0,
) -> None:
    """Train a local judge.

    It learns from audits in a log or a store and from human labels, and runs on your own machine.

    Some prompts are held out, by which it is calibrated and measured; its card has the figures. The same command
    continues a training that was interrupted. With --previous an earlier judge is trained further: it needs the new
    data only, and Self-Alignment Learning protects what it has learned before.
    """
    with one_line_errors("train-judge"):
        from safi_agent.local.module import Settings
        from safi_agent.local.training import train_judge as train
        from safi_agent.values import load_values

        value_set = load_values(values)
        examples = _examples(value_set, labels, log or [], store)
        settings = Settings(train_encoder=train_encoder, target=target, layers=layers, epochs=epochs, seed=seed)
        with _encoding() as advance:
            card = train(
                examples,
                value_set,
                to,
                encoder=encoder,
                previous=previous,
                settings=settings,
                progress=True,
                advance=advance,
            )
    from safi_agent.local.card import about

    print_card(card.rows, about(card), card.warnings)
    typer.echo(f"{to}: {len(card.heads)} values, from {card.data.human} human labels and {card.data.audits} findings.")


def _examples(values: "ValueSet", labels: Path | None, logs: list[Path], store: str | None) -> "list[Example]":
    from safi_agent.calibration.labels import read_labels
    from safi_agent.local.examples import combine, from_labels, read_log, read_store

    if labels is None and not logs and store is None:
        raise ValueError("expected --labels, --log or --store, got none.")
    human = [] if labels is None else list(from_labels(read_labels(labels, values)))
    audited = [read_log(log, values) for log in logs]
    if store is not None:
        with existing_store(store) as opened:
            audited.append(read_store(opened, values))
    if rehearsals := sum(one.rehearsals for one in audited):
        typer.echo(f"Left out: {rehearsals} audits by the rehearsal model, whose verdicts have no value.", err=True)
    return combine(human, [example for one in audited for example in one.examples])


@contextmanager
def _encoding() -> "Iterator[Advance]":
    """A progress bar for the encoder, which ends with its last text, so that Lightning's can follow."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("reading texts"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task("", total=None)

        def advance(done: int, total: int) -> None:
            bar.update(task, completed=done, total=total)
            if done == total:
                bar.stop()

        yield advance
