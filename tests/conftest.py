import sys

import pytest
import torch


@pytest.fixture(autouse=True)
def one_thread():
    """Small tensors on many threads are slower, and other work on the machine makes them much slower."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(autouse=True)
def wandb_forgets():
    """It reads its environment once a process; the next test may have another one."""
    yield
    if teardown := getattr(sys.modules.get("wandb"), "teardown", None):
        teardown()
