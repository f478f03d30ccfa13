"""``safi show``: one turn and its audit."""

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any

import typer

from safi_agent.cli.options import STORE, Database, Timeout, existing_store, one_line_errors, printable
from safi_agent.contents import IN_RECORD
from safi_agent.errors import AuditTimeoutError

if TYPE_CHECKING:
    from rich.console import Group
    from rich.table import Table

NOT_AUDITED = 1
SHADOW_NOTE = " (shadow mode: the answer was returned)"
SAMPLED = {"drawn": "drawn at random", "novel": "novel prompt", "shadow": "violation in shadow mode"}
FIELDS = {
    "Turn": "turnId",
    "Time": "timestamp",
    "Values": "valueSet",
    "Question": "userPrompt",
    "Answer": "finalOutput",
    "Will": "willDecision",
    "Reason": "willReflection",
}


def show(
    turn: Annotated[
        str, typer.Argument(metavar="TURN", help="Id of the turn, from the answer's metadata or a line of the log.")
    ],
    store: Database = STORE,
    timeout: Timeout = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print the record as one line of JSON.")] = False,
) -> None:
    """Show a turn and its audit.

    They are the answer, the Will's decision, the finding on each value, score and drift.

    Exit code: 0 if the audit is complete or the turn needs none; 1 if it failed or is not finished; 2 if the store does
    not have the turn.
    """
    from rich.console import Console

    from safi_agent.audit.finished import wait_for_audit

    with (
        one_line_errors("show", interrupted="The audit goes on; the same command shows it."),
        existing_store(store) as database,
    ):
        try:
            audit = wait_for_audit(database, turn, timeout)
        except AuditTimeoutError:
            typer.echo(f"safi show: the audit of turn {turn!r} is not finished.", err=True)
            raise typer.Exit(NOT_AUDITED) from None
    if as_json:
        typer.echo(json.dumps(audit.record, allow_nan=False))
    else:
        Console(highlight=False).print(page(audit.record))
    raise typer.Exit(NOT_AUDITED if audit.status == "failed" else 0)


def page(record: Mapping[str, Any]) -> "Group":
    """A record as two tables: its fields, and the ledger."""
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    fields = Table(box=None, show_header=False, padding=(0, 1, 0, 0))
    fields.add_column(style="bold")
    fields.add_column(overflow="fold")
    for title, key in FIELDS.items():
        if record[key] is not None:
            erased = "erased" in record and key in IN_RECORD
            text = "erased" if erased else printable(str(record[key]))
            fields.add_row(title, Text(text + SHADOW_NOTE if key == "willDecision" and _has_left(record) else text))
    fields.add_row("Spirit", Text(spirit(record)))
    if record.get("auditReason") in SAMPLED:
        fields.add_row("Audited", SAMPLED[record["auditReason"]])
    if record["flags"]:
        fields.add_row("Flags", Text(", ".join(record["flags"])))
    if not record["conscienceLedger"]:
        return Group(fields)
    return Group(fields, "", ledger_table(record))


def ledger_table(record: Mapping[str, Any], *, reasons: bool = True) -> "Table":
    """The ledger as a table: a row for each value, with the judge's reason unless ``reasons`` is off."""
    from rich.table import Table
    from rich.text import Text

    ledger = Table(box=None, padding=(0, 1, 0, 0))
    ledger.add_column("Value", overflow="fold", ratio=2 if reasons else None)
    ledger.add_column("Score", justify="right")
    ledger.add_column("Conf.", justify="right")
    if reasons:
        ledger.add_column("Reason", overflow="fold", ratio=3)
    for row in record["conscienceLedger"]:
        score = f"{row['score']:+.2g}" if row["score"] else "0"
        reason = "erased" if "erased" in record else printable(row["reason"])
        cells = (Text(printable(row["value"])), score, f"{row['confidence']:.2f}", Text(reason))
        ledger.add_row(*cells[: 4 if reasons else 3])
    return ledger


def _not_audited(record: Mapping[str, Any]) -> str:
    if record.get("auditReason") == "tool_calls":
        return "not audited: a call of a tool; the answer after it is"
    if record.get("auditReason") != "not_drawn":
        return "not audited: no draft was approved"
    figures = ", ".join(f"{name} {figure:.2g}" for name, figure in record["sampling"].items())
    return f"not audited: not in the sample ({figures})"


def _has_left(record: Mapping[str, Any]) -> bool:
    """Whether the answer was returned although the Will had refused it."""
    return record["willDecision"] == "violation" and "shadow" in record["flags"]


def spirit(record: Mapping[str, Any]) -> str:
    """The Spirit's figures in one line, or why there are none."""
    if record["auditStatus"] == "none":
        return _not_audited(record)
    if record["spiritScore"] is None:
        return printable(str(record["spiritReflection"]))
    drift = "no baseline yet" if record["drift"] is None else f"{record['drift']:.2f}"
    return f"score {record['spiritScore']} of 10, drift {drift}"
