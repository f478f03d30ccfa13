"""The commit a number comes from."""

import subprocess
from pathlib import Path

from experiments import provenance


def test_the_commit_is_unknown_outside_git(tmp_path: Path) -> None:
    assert provenance.commit(tmp_path) == "unknown"


def test_a_commit_with_changes_is_called_dirty(tmp_path: Path) -> None:
    def git(*args: str) -> str:
        identity = ["-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgsign=false"]
        done = subprocess.run(["git", *identity, *args], cwd=tmp_path, capture_output=True, text=True, check=True)
        return done.stdout.strip()

    git("init")
    (tmp_path / "file").write_text("one")
    git("add", "file")
    git("commit", "--message=one")
    (tmp_path / "results").mkdir()
    (tmp_path / "results/runs").write_text("one")
    git("add", "results")
    git("commit", "--message=results")
    (tmp_path / "results/runs").write_text("two")
    assert provenance.commit(tmp_path) == git("rev-parse", "HEAD")
    (tmp_path / "file").write_text("two")
    assert provenance.commit(tmp_path) == git("rev-parse", "HEAD") + "-dirty"
