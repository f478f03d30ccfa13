"""``safi chat``: an interactive, governed conversation."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from safi_agent.cli.options import LOG, STORE, Database, Log, Model, Values, one_line_errors, printable
from safi_agent.errors import SafiError

if TYPE_CHECKING:
    from safi_agent import SafiChain


def chat(
    values: Values = "unesco",
    model: Model = None,
    store: Database = STORE,
    log: Log = LOG,
) -> None:
    """Start a conversation, one line per turn; each answer is followed by its audit.

    An empty line or the end of input ends the conversation.
    """
    from safi_agent import create_safi_chain

    with one_line_errors("chat"), create_safi_chain(model, values, store=store, log=log) as safi:
        while prompt := _read_prompt():
            typer.echo(f"\n{turn(safi, prompt, log)}\n")


def _read_prompt() -> str:
    try:
        return input("you: ").strip()
    except EOFError:
        return ""


def turn(safi: "SafiChain", prompt: str, log: Path) -> str:
    """The output of a turn; the error message if it fails, so that the conversation can continue."""
    try:
        return talk(safi, prompt, log)
    except SafiError as error:
        return f"This turn failed: {error}"


def talk(safi: "SafiChain", prompt: str, log: Path) -> str:
    """The answer and a summary of its audit, for which this function waits."""
    message = safi.invoke(prompt)
    safi.drain()
    turn_id = message.response_metadata["safi"]["turnId"]
    record = next((r for r in records(log) if r["turnId"] == turn_id), None)
    output = "\n".join([str(message.text), *([] if record is None else ["", *summary(record)])])
    return printable(output)


def records(log: Path) -> Iterator[dict[str, Any]]:
    """The records of a log, newest first; empty if the log does not exist."""
    if not log.is_file():
        return
    for line in reversed(log.read_text(encoding="ascii").splitlines()):
        yield json.loads(line)


def summary(record: dict[str, Any]) -> Iterator[str]:
    """The lines that summarize a record: the Will's decision, the ledger, the Spirit's figures."""
    yield f"  Will: {record['willDecision']}. {record['willReflection']}"
    for row in record["conscienceLedger"]:
        yield f"  {row['score']:+4.1f}  (confidence: {row['confidence']:.1f})  {row['value']}"
    if record["willDecision"] == "approve":
        drift = "no baseline yet" if record["drift"] is None else f"{record['drift']:.2f}"
        yield f"  Spirit: {record['spiritScore']} of 10, drift: {drift}"
