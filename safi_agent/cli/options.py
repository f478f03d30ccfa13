"""What several commands ask for in the same words."""

from pathlib import Path
from typing import Annotated

import typer

from safi_agent.values import shipped

Values = Annotated[str, typer.Option(help=f"One of {', '.join(shipped())}, or a YAML file.")]
Model = Annotated[str | None, typer.Option(help='For init_chat_model, or "offline". Default: gpt-4o if it has a key.')]
Database = Annotated[str, typer.Option(help="The store's URL.")]
Log = Annotated[Path, typer.Option(help="The log.")]

STORE = "sqlite:///safi.db"
LOG = Path("saf-spirit-log.json")
