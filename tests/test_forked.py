"""A forked program ends as one of its own interpreter does."""

import os
from pathlib import Path

from tests import forked


def test_it_has_its_arguments_folder_and_environment_and_what_it_prints_is_kept(tmp_path: Path) -> None:
    code = "import os, sys; print(*sys.argv, os.getcwd(), os.environ['A']); print('so', file=sys.stderr); sys.exit(3)"
    done = forked.run(code, 1, "b", cwd=tmp_path, env={**os.environ, "A": "of its own"})
    assert (done.returncode, done.stderr) == (3, "so\n")
    assert done.stdout == f"-c 1 b {tmp_path} of its own\n"


def test_an_error_ends_it_with_1_and_a_traceback_and_a_hanging_one_is_killed() -> None:
    failed = forked.run("1 / 0")
    assert failed.returncode == 1
    assert "ZeroDivisionError" in failed.stderr
    assert forked.run("import time; time.sleep(60)", timeout=0.1).returncode == -9
    assert forked.run("import os; os._exit(7)").returncode == 7
