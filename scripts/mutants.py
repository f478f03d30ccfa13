"""Break ten guards one at a time, and see that a test fails for each: a test that cannot fail protects nothing.

Each change is made in a copy of the last commit, where only the named tests run; they have to pass without it. Exits
with 1 if a change makes no test fail.
"""

import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

from commits import extract


class Mutant(NamedTuple):
    """A guard, and the change that removes it."""

    guard: str
    file: str
    line: str  # what is there once, without indentation
    instead: str
    tests: tuple[str, ...]


MUTANTS = (
    Mutant(
        "the gradient is masked",
        "sal_lightning/rules/projection.py",
        "self.hold_back(G)",
        "pass",
        ("tests/sal_lightning/rules/test_subspace.py",),
    ),
    Mutant(
        "the optimizer's step is restored",
        "sal_lightning/communication.py",
        "self.layer.restore()",
        "pass",
        ("tests/sal_lightning/test_communication.py",),
    ),
    Mutant(
        "a suspicion alone is no change",
        "sal_lightning/change_monitor.py",
        "if evidence >= CONFIRM:",
        "if evidence >= SUSPECT:",
        ("tests/sal_lightning/test_provisional.py",),
    ),
    Mutant(
        "statistics of BatchNorm are kept",
        "sal_lightning/batch_norm.py",
        "module.training = False",
        "pass",
        ("tests/sal_lightning/test_batch_norm.py",),
    ),
    Mutant(
        "padding is excluded",
        "sal_lightning/padding.py",
        "return (mask != 0).reshape(-1, mask.shape[-1])",
        "return torch.ones_like(mask, dtype=torch.bool).reshape(-1, mask.shape[-1])",
        ("tests/sal_lightning/test_padding.py",),
    ),
    Mutant(
        "the Will refuses if its judge's reply cannot be read",
        "safi_agent/faculties/will.py",
        "return (answer.found or UNCLEAR)._replace(usage=answer.usage, model=answer.model)",
        "return (answer.found or APPROVED_BY_RULES)._replace(usage=answer.usage, model=answer.model)",
        ("tests/safi_agent/faculties/test_will.py",),
    ),
    Mutant(
        "untrusted text cannot close its fence",
        "safi_agent/faculties/fence.py",
        "return f\"<{name}>\\n{neutralize(text) or 'None'}\\n</{name}>\"",
        "return f\"<{name}>\\n{text or 'None'}\\n</{name}>\"",
        ("tests/safi_agent/faculties/test_fence.py",),
    ),
    Mutant(
        "an audit is committed once",
        "safi_agent/store/store.py",
        'if c.scalar(_HEAD, {"of": batch.key}) != batch.rows[0]["of"]:',
        "if False:",
        ("tests/safi_agent/store/test_store.py",),
    ),
    Mutant(
        "a line of the log needs its MAC",
        "safi_agent/log/hash_chain.py",
        'return hmac.compare_digest(hmac.digest(key, line[:-_MAC], "sha256"), bytes.fromhex(seal.mac))',
        "return True",
        ("tests/safi_agent/log/test_hash_chain.py",),
    ),
    Mutant(
        "a message that was put in an answer's place is governed",
        "safi_agent/agents/final_answer.py",
        "return not more and (last.content, last.response_metadata) == (expected.content, expected.response_metadata)",
        "return True",
        ("tests/safi_agent/test_middleware_forged.py",),
    ),
)


def failing(tree: Path, tests: tuple[str, ...]) -> str:
    """The first of these tests that fails; empty if all pass.

    Raises:
        RuntimeError: the tests could not be run.
    """
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", *tests]
    environment = {**os.environ, "PYTHONPATH": str(tree)}
    done = subprocess.run(command, cwd=tree, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    said = done.stdout.decode()
    if done.returncode not in (0, 1):
        raise RuntimeError(f"The tests {tests} could not be run:\n{said}")
    failures = re.findall(r"^(?:FAILED|ERROR) (.+?)(?: - .*)?$", said, re.MULTILINE)
    return failures[0] if failures else ""


def killer(tree: Path, mutant: Mutant) -> str:
    """The test that fails if the guard is removed; empty if none does.

    Raises:
        RuntimeError: the line is not in the file once, or the tests fail already with the guard.
    """
    file = tree / mutant.file
    text = file.read_text()
    if text.count(mutant.line) != 1:
        raise RuntimeError(f"Expected {mutant.line!r} once in {mutant.file}, got {text.count(mutant.line)} times.")
    if test := failing(tree, mutant.tests):
        raise RuntimeError(f"Expected the tests to pass without a change, got a failure of {test}.")
    file.write_text(text.replace(mutant.line, mutant.instead))
    try:
        return failing(tree, mutant.tests)
    finally:
        file.write_text(text)


def main() -> int:
    """Print for each guard the test that protects it."""
    survived = 0
    with tempfile.TemporaryDirectory() as folder:
        tree = extract("HEAD", Path(folder))
        for mutant in MUTANTS:
            begun, test = time.monotonic(), killer(tree, mutant)
            survived += not test
            result = f"killed by {test}" if test else "survived"
            print(f"{mutant.guard} ({mutant.file}): {result}, {time.monotonic() - begun:.0f} s", flush=True)
    print(f"{len(MUTANTS) - survived} of {len(MUTANTS)} killed.")
    return 1 if survived else 0


if __name__ == "__main__":
    sys.exit(main())
