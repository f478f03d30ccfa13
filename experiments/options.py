"""Options that the commands share."""

import argparse
from pathlib import Path

from experiments.continual.data import NAMED


def add_data(made: argparse.ArgumentParser) -> None:
    """Which pictures."""
    made.add_argument("--data", default="mnist", help=f"{', '.join(NAMED)}, or a folder with the four MNIST files")


def add_results(made: argparse.ArgumentParser, out: str, block: str) -> None:
    """Where results go, whether there are new ones, the part of a page that shows them, and torch's threads."""
    made.add_argument("--out", type=Path, default=Path(out))
    made.add_argument("--force", action="store_true", help="run again what has a result already")
    made.add_argument("--table", type=Path, metavar="FILE.md", help=f"fill this page's {block}")
    made.add_argument("--threads", type=int, default=1, help="CPU threads of torch (default: %(default)s)")
