"""``safi serve``: a chain as an HTTP service with OpenAI's API."""

from pathlib import Path
from typing import Annotated

import typer

from safi_agent.cli.drain import finish
from safi_agent.cli.options import LOG, STORE, Conscience, Database, Escalation, Log, Model, Values, one_line_errors

Host = Annotated[
    str, typer.Option(metavar="ADDRESS", help="Address to listen at; others than loopback need bearer keys.")
]
Port = Annotated[int, typer.Option(metavar="PORT", help="Port to listen at; 0 takes a free one.", min=0, max=65535)]
Keys = Annotated[
    Path | None,
    typer.Option(metavar="FILE", envvar="SAFI_SERVE_KEYS_FILE", help='File of bearer keys, made by "safi bearer".'),
]
Name = Annotated[
    str | None, typer.Option(metavar="NAME", help="Name of the model in requests. Default: that of the model.")
]
Rate = Annotated[
    int,
    typer.Option(metavar="COUNT", help="Requests in a minute for each memory key and endpoint; 0 for no limit.", min=0),
]
MaxBytes = Annotated[int, typer.Option(metavar="BYTES", help="Maximum size of a request's body.")]
Policies = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE", help="A YAML file: will_mode, outage_message, refused, sampling, prompts, as of a chain."
    ),
]
Grace = Annotated[
    float,
    typer.Option(metavar="SECONDS", help="Time for requests, and then for audits, to finish after a signal.", min=0),
]


def serve(
    values: Values = "unesco",
    model: Model = None,
    conscience_model: Conscience = None,
    escalation_model: Escalation = None,
    store: Database = STORE,
    log: Log = LOG,
    host: Host = "127.0.0.1",
    port: Port = 8000,
    keys: Keys = None,
    name: Name = None,
    rate: Rate = 60,
    max_bytes: MaxBytes = 1_000_000,
    policies: Policies = None,
    grace: Grace = 25,
) -> None:
    """Serve a governed model over HTTP.

    It has OpenAI's API for chat completions and runs until SIGTERM or Ctrl-C. Audits that are unfinished then stay
    in the store, and the next process that opens it finishes them. Exit code: 1 if there are any; 2 if the service
    could not be started.
    """
    with one_line_errors("serve"):
        from safi_agent import create_safi_chain
        from safi_agent.models import default_model
        from safi_agent.policies import load_policies
        from safi_agent.serve import RequestParameters, create_app, load_bearer_keys
        from safi_agent.serve.metrics import configure_metrics
        from safi_agent.serve.server import check_address, listen, serve_until_stopped

        known = load_bearer_keys(keys)
        settings = load_policies(policies).settings()
        check_address(host, known)
        judge = default_model() if model is None else model
        with listen(host, port) as listener:
            registry = configure_metrics()
            safi = create_safi_chain(
                RequestParameters(judge),
                values,
                will_model=judge,
                conscience_model=conscience_model or judge,
                escalation_model=escalation_model,
                store=store,
                log=log,
                **settings,
            )
            app = create_app(safi, known, name=name, rate=rate or None, max_bytes=max_bytes, registry=registry)
            url = f"http://{f'[{host}]' if ':' in host else host}:{listener.getsockname()[1]}/v1"
            left = serve_until_stopped(
                app, listener, grace, lambda: typer.echo(f"Serving {safi.values.name!r} at {url}")
            )
        result = safi.close(left)
    finish(result, "serve")
