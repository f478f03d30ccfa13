"""Options shared by the commands."""

import argparse
from pathlib import Path

from experiments.continual.data import NAMED


def add_data(made: argparse.ArgumentParser) -> None:
    """Add the option for the data set."""
    made.add_argument("--data", default="mnist", help=f"{', '.join(NAMED)}, or a folder with the four MNIST files")


def add_results(made: argparse.ArgumentParser, out: str, block: str) -> None:
    """Add options for the output folder, rerunning, the page to update, and torch's threads."""
    made.add_argument("--out", type=Path, default=Path(out))
    made.add_argument("--force", action="store_true", help="rerun what already has a result")
    made.add_argument("--table", type=Path, metavar="FILE.md", help=f"fill this page's {block}")
    made.add_argument("--threads", type=int, default=1, help="CPU threads of torch (default: %(default)s)")
