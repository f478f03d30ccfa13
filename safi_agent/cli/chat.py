"""``safi chat``: a governed conversation in the terminal."""

import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any

import typer

from safi_agent.cli.conversation import Conversation
from safi_agent.cli.line_input import line_reader
from safi_agent.cli.options import (
    LOG,
    STORE,
    Conscience,
    Database,
    Escalation,
    Log,
    Model,
    Values,
    one_line_errors,
    printable,
)
from safi_agent.errors import AuditFailedError, IntellectError, SafiError
from safi_agent.unicode_text import many

if TYPE_CHECKING:
    from rich.console import Console, RenderableType
    from rich.panel import Panel

    from safi_agent import SafiChain

UNREACHABLE = 1
NEW, QUIT = "/new", "/quit"


def chat(
    values: Values = "unesco",
    model: Model = None,
    conscience_model: Conscience = None,
    escalation_model: Escalation = None,
    store: Database = STORE,
    log: Log = LOG,
    verbose: Annotated[bool, typer.Option("--verbose", help="Print warnings with their tracebacks.")] = False,
) -> None:
    """Talk to a governed model.

    Each answer is followed by its audit, and each turn is given the turns before it. Ctrl-D or /quit ends the
    conversation, /new begins another one, and Ctrl-C stops waiting.

    Exit code: 0; 1 if the model cannot be reached; 2 if the conversation could not be started.
    """
    from rich.console import Console

    from safi_agent import create_safi_chain

    console = Console(highlight=False)
    with (
        one_line_errors("chat", interrupted="'safi drain' finishes the audits that are open."),
        _warnings_in_one_line(verbose),
        create_safi_chain(
            model,
            values,
            conscience_model=conscience_model,
            escalation_model=escalation_model,
            store=store,
            log=log,
        ) as safi,
    ):
        console.print(greeting(safi))
        conversation = Conversation(safi)
        converse(conversation, safi, line_reader(), console)
        if conversation.turns:
            console.print(f"{many(conversation.turns, 'turn')}. 'safi verify' checks the log, 'safi report' shows it.")


def converse(conversation: Conversation, safi: "SafiChain", read: Callable[[], str], console: "Console") -> None:
    """Read and answer prompts until the end of the input, or ``/quit``.

    Raises:
        typer.Exit: the model cannot be reached; exit code 1.
    """
    while True:
        try:
            prompt = read()
        except EOFError:
            return
        except KeyboardInterrupt:
            if not console.is_terminal:
                raise
            console.print(f"Ctrl-D or {QUIT} ends the conversation.")
            continue
        if prompt == QUIT:
            return
        if prompt == NEW:
            conversation.forget()
            console.print("A new conversation: the turns before it are not given to the model.")
        elif prompt:
            _turn(conversation, safi, prompt, console)


def _turn(conversation: Conversation, safi: "SafiChain", prompt: str, console: "Console") -> None:
    """Print an answer and then its audit; an error is printed, so that the conversation can continue."""
    try:
        with console.status("Answering …"):
            message = conversation.ask(prompt)
        metadata = message.response_metadata["safi"]
        console.print(answer_panel(str(message.text), metadata))
        with console.status("Auditing … Ctrl-C goes on without waiting."):
            record = safi.audit(metadata["turnId"], timeout=None).record
        console.print(audit_panel(record))
    except AuditFailedError as error:
        console.print(printable(f"{error.cause} 'safi reaudit' repeats it."))
    except SafiError as error:
        if conversation.is_unreachable(error):
            typer.echo(f"safi chat: {_reason(error)}", err=True)
            raise typer.Exit(UNREACHABLE) from None
        console.print(printable(f"This turn failed: {_reason(error)}"))
    except KeyboardInterrupt:
        console.print("Stopped waiting. What is unfinished of this turn is audited in the background.")


def _reason(error: SafiError) -> str:
    if isinstance(error, IntellectError):
        return f"The model returned no answer ({error.cause}). --verbose shows the cause."
    return str(error)


def greeting(safi: "SafiChain") -> "Panel":
    """What is asked, under which values, where it is logged, and how to leave."""
    values = safi.values
    gates = f", {many(len(values.gates), 'hard gate')}" if values.gates else ""
    rows = {
        "Model": safi.release.models["intellect"],
        "Values": f"{values.name}: {many(len(values.scored), 'weighted value')}{gates}",
        "Log": safi.log or "none",
        "Leave": f"Ctrl-D or {QUIT}; {NEW} begins another conversation",
    }
    return _panel(_fields(rows), "safi chat", "cyan")


def answer_panel(text: str, metadata: Mapping[str, Any]) -> "Panel":
    """The answer, and whether the Will approved it."""
    from rich.text import Text

    approved = metadata["willDecision"] == "approve"
    title, color = ("Answer", "green") if approved else ("Refused", "yellow")
    return _panel(Text(printable(text)), title, color)


def audit_panel(record: Mapping[str, Any]) -> "Panel":
    """The Will's decision, the Spirit's figures and the ledger of a turn."""
    from rich.console import Group

    from safi_agent.cli.show import ledger_table, spirit

    parts: list[RenderableType] = [
        _fields({"Will": f"{record['willDecision']}: {record['willReflection']}", "Spirit": spirit(record)})
    ]
    if record["conscienceLedger"]:
        parts += ["", ledger_table(record, reasons=False)]
    return _panel(Group(*parts), "Audit", "blue", f"turn {record['turnId']}")


def _fields(rows: Mapping[str, str]) -> "RenderableType":
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, show_header=False, padding=(0, 1, 0, 0))
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    for name, text in rows.items():
        table.add_row(name, Text(printable(text)))
    return table


def _panel(content: "RenderableType", title: str, color: str, subtitle: str | None = None) -> "Panel":
    from rich.panel import Panel
    from rich.text import Text

    below = None if subtitle is None else Text(printable(subtitle), style="dim")
    return Panel(content, title=title, title_align="left", subtitle=below, subtitle_align="left", border_style=color)


class _OneLine(logging.Handler):
    """Prints a warning without its traceback, with the class of its exception."""

    def emit(self, record: logging.LogRecord) -> None:
        kind = record.exc_info[0] if record.exc_info else None
        if record.module == "intellect" and kind is not None:
            return  # the turn fails with the same cause, which is printed
        cause = f" ({kind.__name__})" if kind is not None else ""
        typer.echo(printable(f"safi chat: {record.getMessage()}{cause}"), err=True)


@contextmanager
def _warnings_in_one_line(verbose: bool) -> Iterator[None]:
    if verbose:
        yield
        return
    log, handler = logging.getLogger("safi_agent"), _OneLine(logging.WARNING)
    propagate, log.propagate = log.propagate, False
    log.addHandler(handler)
    try:
        yield
    finally:
        log.removeHandler(handler)
        log.propagate = propagate
