"""The command line ``safi``: one file per command, listed here in the order of ``safi --help``."""

import typer

from safi_agent.cli import chat, drain, reaudit, replay, report, show, values, verify, worker

app = typer.Typer(
    help="Governed answers, audited value by value.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_show_locals=False,  # locals contain prompts, and URLs with passwords
)
for command in (
    chat.chat,
    show.show,
    drain.drain,
    reaudit.reaudit,
    worker.worker,
    verify.verify,
    replay.replay,
    report.report,
):
    app.command()(command)
app.add_typer(values.app, name="values")
