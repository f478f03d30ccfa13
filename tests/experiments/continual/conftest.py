"""A run to look at."""

import pytest

from experiments.continual.protocol import Result, run


@pytest.fixture(scope="session")
def plain() -> Result:
    return run("split-domain", "plain", seed=0, steps=40, data="digits", every=20)
