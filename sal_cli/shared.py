"""What the commands ``sal`` and ``safi`` share: the style of help and errors, and ``--version``."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.metadata import version
from typing import Annotated, Any

import typer
from typer.core import TyperArgument, TyperCommand

FAILED, INTERRUPTED = 2, 130  # exit codes
AGAIN = "Repeat the command to start again."


class Command(TyperCommand):
    """A command whose help names an argument by its metavar, without a Python type such as ``list[Path]``."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        for parameter in self.params:
            if isinstance(parameter, TyperArgument):
                vars(parameter)["display_type_rich"] = lambda ctx: None


def new_app(help: str) -> typer.Typer:
    """An app in plain text, which fits terminals of 60 columns and can be copied; with shell completion."""
    app = typer.Typer(
        help=help,
        no_args_is_help=True,
        rich_markup_mode=None,
        pretty_exceptions_enable=False,  # tracebacks with locals would contain prompts, and URLs with passwords
    )
    app.callback()(_options)
    return app


def add(app: typer.Typer, command: Callable[..., None]) -> None:
    """Add a command under its function's name."""
    app.command(cls=Command)(command)


def _show_version(asked: bool) -> None:
    if asked:
        typer.echo(f"sal-lightning {version('sal-lightning')}")
        raise typer.Exit


def _options(
    version: Annotated[
        bool, typer.Option("--version", help="Show the version and exit.", callback=_show_version, is_eager=True)
    ] = False,
) -> None:
    """Options of the program itself."""


@contextmanager
def one_line(command: str, *errors: type[Exception], interrupted: str = AGAIN) -> Iterator[None]:
    """Print these errors as one line instead of a traceback, and exit with code 2; on Ctrl-C, say how to go on.

    Args:
        command: the command with its program, such as "sal report"; the line begins with it.
        errors: the classes of the errors.
        interrupted: the sentence after Ctrl-C, which exits with code 130.
    """
    try:
        yield
    except errors as error:
        typer.echo(f"{command}: {error}", err=True)
        raise typer.Exit(FAILED) from None
    except KeyboardInterrupt:
        typer.echo(f"\n{command}: stopped. {interrupted}", err=True)
        raise typer.Exit(INTERRUPTED) from None
