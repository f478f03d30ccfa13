"""The files of a commit, for the scripts that compare or change them."""

import io
import subprocess
import tarfile
from pathlib import Path

ROOT = Path(__file__).parents[1]


def git(*arguments: str) -> bytes:
    """The output of a git command in this repository."""
    return subprocess.run(["git", "-C", str(ROOT), *arguments], stdout=subprocess.PIPE, check=True).stdout


def archive(commit: str, *paths: str) -> tarfile.TarFile:
    """The files of a commit, or those below some paths."""
    return tarfile.open(fileobj=io.BytesIO(git("archive", commit, *paths)))


def extract(commit: str, folder: Path) -> Path:
    """Write all files of a commit into a folder."""
    archive(commit).extractall(folder, filter="data")
    return folder
