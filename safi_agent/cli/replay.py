"""``safi replay``: recompute the figures of a log from its ledgers."""

from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from safi_agent import defaults
from safi_agent.cli.options import LOG, STORE, LogFile, existing_store, one_line_errors
from safi_agent.errors import LogError
from safi_agent.unicode_text import many
from safi_agent.values import ValueSet, load_values, shipped

if TYPE_CHECKING:
    from safi_agent.log.replay import Find, Replayed

SAME, DIFFERENT = 0, 1


def replay(
    log: LogFile = LOG,
    values: Annotated[
        list[str] | None,
        typer.Option(metavar="FILE", help="File of a value set that is not in the store; can be repeated."),
    ] = None,
    store: Annotated[str, typer.Option(metavar="URL", help="URL of the store that contains the value sets.")] = STORE,
    beta: Annotated[
        float, typer.Option(metavar="NUMBER", help="Decay β of the profile, for lines that do not contain it.")
    ] = defaults.BETA,
) -> None:
    """Recompute the figures of a log.

    The score, μ and drift of every line are computed from its ledger and compared with the log.

    Exit code: 0 if all figures match; 1 if some differ, with their lines printed; 2 if they could not be computed.
    """
    from safi_agent.faculties.spirit import is_invalid_beta
    from safi_agent.log.replay import replay as replay_log

    with one_line_errors("replay", about=f"{log}: not computed"), ExitStack() as stack:
        if is_invalid_beta(beta):
            raise ValueError(f"beta: expected a number in [0, 1), got {beta!r}.")
        replayed = replay_log(log, _finder(values or [], store, stack), beta)
    raise typer.Exit(_print_result(log, replayed))


def _finder(files: list[str], store: str, stack: ExitStack) -> "Find":
    """A lookup of value sets by fingerprint and by name: in the package, in ``files`` and in the store.

    ``stack`` closes the store.
    """
    from safi_agent.record import parse_value_set
    from safi_agent.store.database_errors import raise_as

    sets = [*map(load_values, shipped()), *map(load_values, files)]
    by_name = {values.name: values for values in sets} | {values.fingerprint: values for values in sets}
    try:
        database = stack.enter_context(existing_store(store))
    except ValueError:
        if store != STORE:
            raise
        return by_name.get

    @raise_as(_unreadable, "The store could not be read")
    def find(name: str) -> ValueSet | None:
        if name not in by_name and (text := database.read_values(name)) is not None:
            values = parse_value_set(text)
            if name == values.fingerprint:  # a value set that was edited in the store has another fingerprint
                by_name[name] = values
        return by_name.get(name)

    return find


def _unreadable(cause: str) -> LogError:
    return LogError(
        f"store: expected a database that can be read, got {cause}. Details are in the logger 'safi_agent'."
    )


def _print_result(log: Path, replayed: "Replayed") -> int:
    for fault in replayed.faults:
        typer.echo(str(fault))
    if replayed.faulty:
        typer.echo(f"{log}: {replayed.faulty:,} figures in {replayed.lines:,} lines differ from the ledgers.")
        return DIFFERENT
    typer.echo(f"{log}: {replayed.lines:,} lines, all figures follow from their ledgers.")
    if replayed.erased:
        typer.echo(f"{many(replayed.erased, 'line')} erased; their figures follow like those of the others.")
    if replayed.late:
        typer.echo(
            f"{replayed.late:,} memory keys begin after their first turn; their first logged μ could not be checked."
        )
    if replayed.other_maps:
        typer.echo(f"{replayed.other_maps:,} scores use a custom φ or σ and were not recomputed.")
    return SAME
