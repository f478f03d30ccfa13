"""``safi chat``: a governed conversation at a prompt."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from safi_agent.cli.options import LOG, STORE, Database, Log, Model, Values, one_line_errors
from safi_agent.errors import SafiError

if TYPE_CHECKING:
    from safi_agent import SafiChain

# Control characters of a terminal.
_STEERING = {n: "\ufffd" for n in (*range(32), *range(127, 160)) if chr(n) not in "\n\t"}


def chat(
    values: Values = "unesco",
    model: Model = None,
    store: Database = STORE,
    log: Log = LOG,
) -> None:
    """Talk, one line a turn; an empty line or the end of input ends it. The audit follows each answer."""
    from safi_agent import create_safi_chain

    with one_line_errors("chat"), create_safi_chain(model, values, store=store, log=log) as safi:
        while asked := _asked():
            typer.echo(f"\n{turn(safi, asked, log)}\n")


def _asked() -> str:
    try:
        return input("you: ").strip()
    except EOFError:
        return ""


def turn(safi: "SafiChain", asked: str, log: Path) -> str:
    """The output of a turn, or its error; the conversation goes on."""
    try:
        return talk(safi, asked, log)
    except SafiError as error:
        return f"This turn failed: {error}"


def talk(safi: "SafiChain", asked: str, log: Path) -> str:
    """The answer and, once it is done, what the audit found."""
    message = safi.invoke(asked)
    safi.drain()
    turn_id = message.response_metadata["safi"]["turnId"]
    record = next((r for r in records(log) if r["turnId"] == turn_id), None)
    said = "\n".join([str(message.text), *([] if record is None else ["", *summary(record)])])
    return said.translate(_STEERING)


def records(log: Path) -> Iterator[dict[str, Any]]:
    """The lines of a log, the last first; none while it cannot be written."""
    if not log.is_file():
        return
    for line in reversed(log.read_text(encoding="ascii").splitlines()):
        yield json.loads(line)


def summary(record: dict[str, Any]) -> Iterator[str]:
    """A record in a few lines."""
    yield f"  Will: {record['willDecision']}. {record['willReflection']}"
    for row in record["conscienceLedger"]:
        yield f"  {row['score']:+4.1f}  (sure: {row['confidence']:.1f})  {row['value']}"
    if record["willDecision"] == "approve":
        drift = "no baseline yet" if record["drift"] is None else f"{record['drift']:.2f}"
        yield f"  Spirit: {record['spiritScore']} of 10, drift: {drift}"
