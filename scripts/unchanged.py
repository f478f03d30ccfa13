"""Compare the results of two commits bit for bit: short trainings under each rule, and an audited log.

Both commits run scripts/fingerprint.py of this tree with the packages that are installed here. Exits with 1 if any line
differs.
"""

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from commits import ROOT, extract


def fingerprints(commit: str) -> dict[str, str]:
    """Each result's fingerprint, by name."""
    with tempfile.TemporaryDirectory() as folder:
        tree = extract(commit, Path(folder))
        environment = {**os.environ, "PYTHONPATH": str(tree), "OMP_NUM_THREADS": "1"}
        command = [sys.executable, str(ROOT / "scripts/fingerprint.py")]
        done = subprocess.run(command, cwd=tree, env=environment, stdout=subprocess.PIPE, check=True)
    return dict(line.split("\t") for line in done.stdout.decode().splitlines())


def main() -> int:
    """Print line by line what is equal and what differs."""
    parser = argparse.ArgumentParser(prog="scripts/unchanged", description=__doc__)
    parser.add_argument("old", metavar="COMMIT")
    parser.add_argument("new", metavar="COMMIT", nargs="?", default="HEAD", help="default: HEAD")
    arguments = parser.parse_args()
    old, new = fingerprints(arguments.old), fingerprints(arguments.new)
    different = [name for name in old | new if old.get(name) != new.get(name)]
    for name in old | new:
        if name in different:
            print(f"different  {name}\n  {arguments.old}: {old.get(name)}\n  {arguments.new}: {new.get(name)}")
        else:
            print(f"equal      {name}: {new[name]}")
    print(f"{len(different)} of {len(old | new)} results differ.")
    return 1 if different else 0


if __name__ == "__main__":
    sys.exit(main())
