"""Options shared by the commands."""

import argparse
from pathlib import Path

from experiments.continual.data import NAMED

RESULTS = "docs/results.md"


def add_data(made: argparse.ArgumentParser) -> None:
    """Add the option for the data set."""
    made.add_argument("--data", default="mnist", help=f"{', '.join(NAMED)}, or a folder with the four MNIST files")


def add_table(made: argparse.ArgumentParser, about: str, page: str = RESULTS, name: str = "--table") -> None:
    """Add an option that fills blocks of a page; without a value it is the page that has them."""
    made.add_argument(
        name, type=Path, nargs="?", const=Path(page), metavar="FILE.md", help=f"{about} (without a value: {page})"
    )


def add_reruns(made: argparse.ArgumentParser) -> None:
    """Add options to run what has a result again, or to run nothing."""
    which = made.add_mutually_exclusive_group()
    which.add_argument("--force", action="store_true", help="rerun what already has a result")
    which.add_argument("--from-records", action="store_true", help="run nothing, show and write what has a result")


def add_results(made: argparse.ArgumentParser, out: str, block: str, page: str = RESULTS) -> None:
    """Add options for the output folder, rerunning, the page to update, and torch's threads."""
    made.add_argument("--out", type=Path, default=Path(out))
    add_reruns(made)
    add_table(made, f"fill this page's {block}", page)
    made.add_argument("--threads", type=int, default=1, help="CPU threads of torch (default: %(default)s)")
