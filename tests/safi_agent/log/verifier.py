"""A process that verifies logs with a public key, and has neither their store nor their secret keys.

``python verifier.py FOLDER``: prints the first fault of the log in each folder of FOLDER, as JSON.
"""

import json
import sys
from pathlib import Path

from safi_agent.log import verify, verify_signed
from safi_agent.log.signing_keys import read_public_keys


def first_fault(folder: Path, keys: list) -> list | None:
    verdict = verify_signed.verify_signed(folder / "log.json", keys, sorted(folder.glob("exported*"))).verdict
    return [Path(verdict.faults[0].file).name, *verdict.faults[0][1:]] if verdict.faulty else None


if __name__ == "__main__":
    verify.PAUSE = verify_signed.PAUSE = 0  # nobody writes to these logs
    folders = sorted(path for path in Path(sys.argv[1]).iterdir() if path.is_dir())
    public = read_public_keys(Path(sys.argv[1]) / "key.pub")
    print(json.dumps({folder.name: first_fault(folder, public) for folder in folders}))
