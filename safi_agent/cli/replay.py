"""``safi replay``: whether the figures of a log follow from its ledgers."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from safi_agent import defaults
from safi_agent.cli.options import LOG, STORE, open_existing_store
from safi_agent.errors import LogError
from safi_agent.values import ValueSet, load_values, shipped

if TYPE_CHECKING:
    from safi_agent.log.replay import Find, Replayed

SAME, DIFFERENT, UNCHECKED = 0, 1, 2


def replay(
    log: Annotated[Path, typer.Argument(help="The log; its full files are found beside it.")] = LOG,
    values: Annotated[list[str] | None, typer.Option(help="A value set's file, where no store has it.")] = None,
    store: Annotated[str, typer.Option(help="URL of the store that has the value sets.")] = STORE,
    beta: Annotated[float, typer.Option(help="That of lines which do not say theirs.")] = defaults.BETA,
) -> None:
    """Compute the score, μ and drift of every line again from its ledger, and compare.

    Ends with 0 if all are the same; 1 if one is not, and says where; 2 if that could not be computed.
    """
    from safi_agent.faculties.spirit import is_invalid_beta
    from safi_agent.log.replay import replay as replay_log

    try:
        if is_invalid_beta(beta):
            raise ValueError(f"beta: expected a number in [0, 1), got {beta!r}.")
        replayed = replay_log(log, _finder(values or [], store), beta)
    except (LogError, ValueError, OSError) as error:
        typer.echo(f"{log}: not computed: {error}", err=True)
        raise typer.Exit(UNCHECKED) from None
    raise typer.Exit(_say(log, replayed))


def _finder(files: list[str], store: str) -> "Find":
    """Value sets from the files that were given, the store and the package, by their content and by their name."""
    from safi_agent.record import parse_value_set
    from safi_agent.store.database_errors import raise_as

    sets = [*map(load_values, shipped()), *map(load_values, files)]
    known = {one.name: one for one in sets} | {one.fingerprint: one for one in sets}
    try:
        kept = open_existing_store(store)
    except ValueError:
        if store != STORE:
            raise
        return known.get

    @raise_as(_unreadable, "The store could not be read")
    def find(name: str) -> ValueSet | None:
        if name not in known and (text := kept.read_values(name)) is not None:
            found = parse_value_set(text)
            if name == found.fingerprint:  # a value set that was edited in the store has another fingerprint
                known[name] = found
        return known.get(name)

    return find


def _unreadable(cause: str) -> LogError:
    return LogError(f"store: expected one that can be read, got {cause}. Details are in the logger 'safi_agent'.")


def _say(log: Path, replayed: "Replayed") -> int:
    for fault in replayed.faults:
        typer.echo(str(fault))
    if replayed.faulty:
        typer.echo(f"{log}: {replayed.faulty:,} figures in {replayed.lines:,} lines are not what the ledgers give.")
        return DIFFERENT
    typer.echo(f"{log}: {replayed.lines:,} lines, all figures follow from their ledgers.")
    if replayed.late:
        typer.echo(f"Of {replayed.late:,} memory keys the first turn is not here; their first μ was taken as it is.")
    if replayed.other_maps:
        typer.echo(f"{replayed.other_maps:,} scores were made with another φ or σ and not computed again.")
    return SAME
