import pytest
import torch


@pytest.fixture(autouse=True)
def one_thread():
    """Small tensors on many threads are slower, and other work on the machine makes them much slower."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
