"""The command line ``safi``: one file per command, listed here in the order of ``safi --help``."""

from safi_agent.cli import (
    bearer,
    calibrate,
    chat,
    checkpoint,
    drain,
    erase,
    keys,
    prove,
    reaudit,
    replay,
    report,
    serve,
    show,
    train_judge,
    values,
    verify,
    verify_proof,
    worker,
)
from sal_cli.shared import add, new_app

app = new_app("Governed answers, audited value by value.")
for command in (
    chat.chat,
    show.show,
    drain.drain,
    reaudit.reaudit,
    worker.worker,
    serve.serve,
    bearer.bearer,
    verify.verify,
    replay.replay,
    report.report,
    calibrate.calibrate,
    train_judge.train_judge,
    erase.erase,
    keys.keys,
    checkpoint.checkpoint,
    prove.prove,
    verify_proof.verify_proof,
):
    add(app, command)
app.add_typer(values.app, name="values")
