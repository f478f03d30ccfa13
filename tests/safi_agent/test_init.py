"""The package stands alone."""

import subprocess
import sys

import safi_agent


def test_importing_it_loads_neither_sal_lightning_nor_torch() -> None:
    code = "import sys, safi_agent; print(*sorted({'sal_lightning', 'torch', 'lightning'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""


def test_public_list_holds_names_that_exist() -> None:
    assert all(hasattr(safi_agent, name) for name in safi_agent.__all__)
